"""Disk space of runs: what takes it, and the removal of checkpoints of finished ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from harness.files import read_json, write_json
from harness.run_folder.run import RunFolder, started_runs

Keep = Literal["last", "milestones", "none"]
"""Checkpoints that `prune` keeps; with the milestones, the last one stays too."""


def size(paths: Iterable[Path]) -> int:
    """Bytes of files and of everything in folders."""
    files = (file for path in paths for file in (path, *path.rglob("*")))
    return sum(file.lstat().st_size for file in files if file.is_file())


def by_kind(run: RunFolder) -> dict[str, int]:
    """Bytes of a run by kind: `checkpoints`, `metrics` of training, `records` with their history, `answers` of
    evaluations, and `others`."""
    known = {
        "checkpoints": [run.checkpoints],
        "metrics": [run.metrics, run.tensorboard],
        "records": [run.path / "records", run.path / "history"],
        "answers": [run.path / "answers"],
    }
    sizes = {kind: size(paths) for kind, paths in known.items()}
    return sizes | {"others": size([run.path]) - sum(sizes.values())}


def beside(runs_root: Path) -> dict[str, int]:
    """Bytes of everything in a folder of runs that is not a run: code, submissions with their logs, collections."""
    runs = set(started_runs(runs_root))
    return {path.name: size([path]) for path in sorted(runs_root.iterdir()) if path.name not in runs}


def prune(run: RunFolder, keep: Keep) -> int:
    """Remove those checkpoints of a finished run that are not to be kept; returns the bytes freed.

    Without the last one the run keeps its records and can be neither evaluated nor exported any more. Raises ValueError
    if the list of checkpoints, or for its milestones the run's configuration, is damaged.
    """
    try:
        index = read_json(run.checkpoint_index, "delete the folder's checkpoints to train from the start")
    except FileNotFoundError:
        return 0
    kept = {} if keep == "none" else {name: index[name] for name in sorted(index)[-1:]}
    if keep == "milestones" and (every := run.read_config()["train"].get("milestones")):
        kept = {name: entry for name, entry in index.items() if entry["step"] % every == 0} | kept
    gone = [path for path in run.checkpoints.glob("step_*") if path.name not in kept]
    freed = size(gone)
    write_json(run.checkpoint_index, kept)  # before the files: nothing is listed that is not whole
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed
