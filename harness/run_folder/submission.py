"""Submissions of experiments: the resolved experiment, its plan and its jobs, and the code that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.files import read_json, write_atomic, write_json


@dataclass(frozen=True)
class Submission:
    """One submission: the resolved experiment, its plan, and the jobs that it put into a queue."""

    path: Path

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs.json"

    @property
    def prepared(self) -> Path:
        return self.path / "prepared"

    @property
    def logs(self) -> Path:
        """Scripts, pickles and output of submitit."""
        return self.path / "logs"

    def array(self, name: str) -> Path:
        """The folder and the units of every task of a job array."""
        return self.path / "arrays" / f"{name}.json"

    def write_experiment(self, experiment: Mapping[str, Any]) -> None:
        """Store the resolved experiment, as plain values."""
        write_atomic(self.experiment, yaml.safe_dump(dict(experiment), sort_keys=False).encode())

    def read_plan(self) -> dict[str, Any]:
        """Keys: experiment, cluster, host, pid, time, and runs with their units. Raises ValueError if it is damaged."""
        remedy = f"delete {self.path} and submit again"
        plan = read_json(self.plan, remedy)
        named = isinstance(plan, dict) and {"experiment", "cluster", "host", "pid", "time", "runs"} <= plan.keys()
        if not named or not isinstance(plan["runs"], list) or not all(map(_is_run, plan["runs"])):
            raise ValueError(f"{self.plan}: damaged, no plan of a submission; {remedy}")
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        write_json(self.plan, dict(plan))

    def read_jobs(self) -> dict[str, str]:
        """Slurm's job id by array name; empty while nothing was put into a queue."""
        remedy = f"see `squeue` for its jobs, then delete {self.path}"
        try:
            ids = read_json(self.jobs, remedy)
        except FileNotFoundError:
            return {}
        if not isinstance(ids, dict) or not all(isinstance(job, str) for job in ids.values()):
            raise ValueError(f"{self.jobs}: damaged, no mapping of job ids; {remedy}")
        return ids

    def write_jobs(self, ids: Mapping[str, str]) -> None:
        write_json(self.jobs, dict(ids))

    def write_array(self, name: str, tasks: Mapping[int, tuple[Path, Sequence[str]]]) -> Path:
        """List the folder and the units of every task of a job array, by its index."""
        write_json(self.array(name), {index: [str(folder), units] for index, (folder, units) in tasks.items()})
        return self.array(name)


def _is_run(entry: Any) -> bool:
    """Whether an entry of a plan describes a run."""
    kinds = {"run": str, "steps": int, "units": dict}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def submissions_folder(runs_root: Path) -> Path:
    return runs_root / "submissions"


def submissions(runs_root: Path, experiment: str) -> list[Submission]:
    """Submissions of an experiment, oldest first. Raises ValueError for a damaged plan."""
    dated = []
    for path in submissions_folder(runs_root).glob(f"{experiment}-*/plan.json"):
        submission = Submission(path.parent)
        plan = submission.read_plan()
        if plan["experiment"] == experiment:
            dated.append((plan["time"], str(path.parent), submission))
    return [submission for *_, submission in sorted(dated, key=lambda item: item[:2])]


def submitted(runs_root: Path) -> set[str]:
    """Names of all experiments that were submitted in a folder of runs. Raises ValueError for a damaged plan."""
    plans = submissions_folder(runs_root).glob("*/plan.json")
    return {Submission(path.parent).read_plan()["experiment"] for path in plans}


def code_folder(runs_root: Path) -> Path:
    """Snapshots of the code of submissions, and copies of the files that define mixers."""
    return runs_root / "code"


def submitting_lock(runs_root: Path) -> Path:
    return runs_root / "submitting.lock"
