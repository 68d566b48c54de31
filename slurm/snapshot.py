"""Snapshots of the code and the experiment of a submission, so that edits do not change jobs that wait.

runs/code/<hash>/                                the code, one copy per content
         /mixer-<hash>/, /suite-<hash>/          files that define mixers and suites, with what lies beside them
runs/submissions/<name>-<time>/experiment.yaml   the resolved experiment
                              /plan.json         its runs and their units
                              /jobs.json         Slurm's id of each array, by name
                              /arrays/           the run folder and place of each array task
                              /logs/             submitit's scripts, pickles and output
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.code import SNAPSHOT, SOURCES, git_state
from harness.experiments.schema import Experiment
from harness.files import CHECKOUT, atomic_folder, cache_dir, clear_leftovers, file_sha256, write_json
from harness.run_folder import Submission, code_folder, submissions_folder
from mixers.plugins import files_beside
from slurm.plan import RunPlan

PARTS = ("pyproject.toml", *SOURCES)


def snapshot(runs_root: Path, checkout: Path = CHECKOUT) -> Path:
    """Copy the project's code into `runs_root/code`, once per content; returns the copy's folder.

    In a git checkout, copies the files that git tracks or would track; elsewhere, or where git does not answer,
    everything but bytecode.
    """
    files = _files(checkout)
    commit, dirty = git_state(checkout)
    digest = hashlib.sha256(json.dumps([commit, dirty]).encode())
    for file in files:
        digest.update(f"{file}\0".encode() + hashlib.sha256((checkout / file).read_bytes()).digest())
    target = code_folder(runs_root) / digest.hexdigest()[:16]
    if target.is_dir():
        return target
    try:
        with atomic_folder(target) as partial:
            for file in files:
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checkout / file, partial / file)
            write_json(partial / SNAPSHOT, {"git_commit": commit, "git_dirty": dirty})
    except OSError:
        if not target.is_dir():  # else another submission has made the same copy meanwhile
            raise
    return target


def _files(checkout: Path) -> list[str]:
    """Paths of the code relative to the checkout, sorted."""
    if (checkout / ".git").exists():
        listed = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PARTS]
        # Without git, and in a checkout that git refuses because it is somebody else's, every file counts.
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            out = os.fsdecode(subprocess.run(listed, capture_output=True, check=True).stdout)
            return sorted(f for f in set(out.split("\0")) if f and (checkout / f).is_file())
    found = [p for part in PARTS for p in [checkout / part, *(checkout / part).rglob("*")]]
    return sorted(str(p.relative_to(checkout)) for p in found if p.is_file() and "__pycache__" not in p.parts)


def environment(code: Path) -> dict[str, str]:
    """Environment variables with which a job imports the snapshot `code` and uses this process's cache."""
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "MIXERBENCH_CACHE": str(cache_dir())}


def open_submission(
    experiment: Experiment,
    plans: Sequence[RunPlan],
    runs_root: Path,
    cluster: str,
    silent_minutes: int | None = None,
) -> Path:
    """Create the folder of a new submission, with its experiment and plan; returns the folder.

    plans: its runs, trials among them. cluster: `local`, `debug` or `slurm`. silent_minutes: see Profile.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = submissions_folder(runs_root) / f"{experiment.name}-{stamp}"
    for attempt in range(1000):
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = folder.with_name(f"{experiment.name}-{stamp}-{attempt}")
    for earlier in submissions_folder(runs_root).glob(f"{experiment.name}-*"):
        clear_leftovers(earlier)  # nobody writes there again
    submission = Submission(folder)
    submission.write_experiment(experiment.model_dump(mode="json", exclude_defaults=True))
    runs = [
        {
            "run": plan.config.run_id,
            "label": plan.config.label,
            "mixer": plan.config.mixer,
            "layout": plan.config.layout,
            "preset": plan.config.preset,
            "seed": plan.config.seed,
            "steps": plan.config.data.steps,
            "units": {unit: evaluation.options for unit, evaluation in plan.units.items()},
            "trial": plan.trial,
        }
        for plan in plans
    ]
    head = {"experiment": experiment.name, "cluster": cluster, "host": socket.gethostname(), "pid": os.getpid()}
    head["silent_minutes"] = silent_minutes
    units = {unit: evaluation for plan in plans for unit, evaluation in plan.units.items()}
    head["fresh"] = [unit for unit, evaluation in units.items() if evaluation.fresh]
    head["suite_files"] = {u: asdict(evaluation.suite_file) for u, evaluation in units.items() if evaluation.suite_file}
    submission.write_plan(head | {"time": time.time(), "runs": runs})
    return folder


def _keep(kind: str, path: Path, runs_root: Path) -> Path:
    """Copy a file, and those that it imports from beside it, into a folder named by their content."""
    beside = files_beside(path)
    files = {str(file.relative_to(beside[0].parent)): file.read_bytes() for file in beside}
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    target = code_folder(runs_root) / f"{kind}-{digest}"
    if not target.is_dir():
        try:
            with atomic_folder(target) as partial:
                for name, content in files.items():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(content)
        except OSError:
            if not target.is_dir():  # else another submission has made the same copy meanwhile
                raise
    return target / path.name


def keep_files(experiment: Experiment, plans: Sequence[RunPlan], runs_root: Path) -> tuple[Experiment, list[RunPlan]]:
    """Copy the files that define mixers and suites into `runs_root/code`, so that edits do not change jobs that wait.

    Returns the experiment and the plans with the paths of the copies. Raises ValueError if a file has changed since it
    was read.
    """
    copies: dict[tuple[str, str], str] = {}

    def copied(kind: str, file: Any) -> Any:
        """A MixerFile or SuiteFile at the path of its copy; None stays None."""
        if file is None:
            return None
        if (kind, file.sha256) not in copies:
            content = Path(file.path).read_bytes()
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise ValueError(f"{kind}_file: {file.path} has changed while it was being submitted; submit again")
            copies[kind, file.sha256] = str(_keep(kind, Path(file.path), runs_root))
        return type(file)(path=copies[kind, file.sha256], sha256=file.sha256)

    def moved(plan: RunPlan) -> RunPlan:
        config = plan.config.model_copy(update={"mixer_file": copied("mixer", plan.config.mixer_file)})
        units = {u: replace(asked, suite_file=copied("suite", asked.suite_file)) for u, asked in plan.units.items()}
        selection = plan.selection
        if selection is not None:
            selection = replace(selection, trials=tuple(moved(trial) for trial in selection.trials))
        return replace(plan, config=config, units=units, selection=selection)

    moved_plans = [moved(plan) for plan in plans]
    # The files of runs that are done already, too: whoever collects the submission plans the whole experiment.
    files = {}
    for kind in ("mixer", "suite"):
        others = (Path(path) for path in getattr(experiment, f"{kind}_files"))
        others = [str(_keep(kind, path, runs_root)) for path in others if (kind, file_sha256(path)) not in copies]
        files[f"{kind}_files"] = [*(path for (k, _), path in copies.items() if k == kind), *others]
    return experiment.model_copy(update=files), moved_plans
