"""Tiny experiments for tests of the orchestrator, and the command that runs our command line."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.experiments.schema import Experiment
from harness.files import CHECKOUT
from run import app
from slurm.plan import RunPlan, plan
from slurm.snapshot import PARTS, open_submission
from slurm.state import write_status
from suites.units import TRAIN

RUN = [sys.executable, str(CHECKOUT / "run.py")]


def data_config(data: Path, steps: int) -> dict:
    """Training data of an experiment: `steps` steps of 4 rows of 64 tokens from the shards in `data`."""
    phase = {"tokens": steps * 4 * 64, "seq_len": 64, "rows": {"text": 2, "mqar": 2}}
    return {"source": str(data), "phases": [phase]}


def experiment(folder: Path, shards: Path, **changes: object) -> Path:
    """Write a tiny experiment of two mixers to `folder`; returns the file. changes: fields that differ."""
    content = {
        "name": "tiny",
        "preset": "cpu-600k",
        "mixers": ["gated_deltanet", "attention"],
        "data": data_config(shards, steps=4),
        "train": {"lr": 1e-3, "checkpoint_every": 2, "threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 12}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def call(folder: Path, command: str, *options: str, name: str | None = None) -> str:
    """Call a command on the experiment of a folder and its runs; returns what it printed. name: another experiment."""
    result = CliRunner().invoke(app, [command, name or str(folder / "tiny.yaml"), "--runs", f"{folder}/runs", *options])
    assert result.exit_code == 0, result.output
    return result.output


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition holds; AssertionError if it does not in time."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def copy_checkout(folder: Path) -> Path:
    """Copy the project's code to `folder`, which can be edited; returns it."""
    folder.mkdir()
    for part in PARTS:
        if (CHECKOUT / part).is_dir():
            shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / part, folder / part)
    return folder


def break_checkout(checkout: Path) -> None:
    """Edit a copy of the code so that no run trains with it."""
    for module in (checkout / "harness" / "training" / "train.py", checkout / "slurm" / "jobs.py"):
        assert module.is_file()
        module.write_text("raise SystemError('edited')\n")


PARENT = {
    **{"SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_MEM_PER_CPU": "100"},
    **{"SLURM_MEM_PER_NODE": "100", "SLURM_CPUS_PER_TASK": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    **{"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_PREEMPT_SIGNAL": "USR1", "SBATCH_PARTITION": "elsewhere"},
    **{"SRUN_CPUS_PER_TASK": "7", "PMI_RANK": "1", "PMIX_RANK": "1"},
}
"""Variables that a process inherits from the job in which it runs."""

TEXT = "[/data/x] has shape [b, t]"
"""An error text that rich would take for markup, and refuse."""


def failed_run(folder: Path, shards: Path) -> tuple[Experiment, list[RunPlan], Path]:
    """An experiment that was submitted, and whose first run failed with TEXT."""
    loaded, runs = load_experiment(experiment(folder, shards)), folder / "runs"
    plans = plan(loaded, runs)
    open_submission(loaded, plans, runs, "slurm")
    plans[0].folder.mkdir()
    write_status(plans[0].folder, TRAIN, "failed", TEXT)
    return loaded, plans, runs
