"""Our command line, called as a user of a test cluster calls it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from slurm.plan import RunPlan
from tests.slurm.cluster.minislurm import MiniSlurm
from tests.slurm.experiments import RUN

TINY = {"gpus_per_node": 0, "cpus_per_task": 1, "mem_gb": 2, "minutes": 60}
"""Resources that fit next to other jobs on a small machine."""


class Client:
    """A cluster, a profile of it, and our command line on it. profile: fields that replace those of a tiny profile."""

    def __init__(self, cluster: MiniSlurm, folder: Path, **profile: object):
        self.cluster, self.folder, self.runs = cluster, folder, folder / "runs"
        content = {"train": TINY, "evaluate": TINY, "prepare": TINY, "signal_delay_s": 20}
        (folder / "profile.yaml").write_text(yaml.safe_dump(content | profile))

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command of run.py."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*RUN, *command], cwd=self.folder, env=self.cluster.env, **pipes)

    def call(self, *command: str, code: int = 0) -> str:
        """Run a command of run.py, which must exit with `code`; returns its output."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=180)
        assert process.returncode == code, output
        return output

    def submit(self, path: Path, *options: str, code: int = 0) -> str:
        """Submit an experiment to the cluster; returns the output."""
        return self.call(
            "submit", str(path), "--cluster", "profile.yaml", "--runs", str(self.runs), *options, code=code
        )

    def rows(self, path: Path) -> dict[str, dict]:
        """The rows of `status`, by run."""
        found = json.loads(self.call("status", str(path), "--runs", str(self.runs), "--json"))
        return {row["run"]: row for row in found}

    def finish(self, seconds: float = 400) -> None:
        """Wait until the queue is empty."""
        self.cluster.wait(lambda: not self.cluster.squeue(), "the queue to empty", seconds)

    def wait_for_checkpoint(self, run: RunPlan) -> dict:
        """Wait until a run is in the middle of its training; returns its status."""
        index = run.folder / "checkpoints" / "index.json"
        self.cluster.wait(index.exists, f"a checkpoint of {run.config.run_id}", 240)
        return json.loads((run.folder / "state" / "train.json").read_text())
