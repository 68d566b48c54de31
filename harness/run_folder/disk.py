"""Disk space of runs: what each takes, and the removal of checkpoints of finished ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.files import read_json, write_json
from harness.run_folder.run import RunFolder


def size(paths: Iterable[Path]) -> int:
    """Bytes of files and of everything in folders."""
    files = (file for path in paths for file in (path, *path.rglob("*")))
    return sum(file.lstat().st_size for file in files if file.is_file())


def prune(run: RunFolder, keep_last: bool) -> int:
    """Remove the checkpoints of a finished run, all of them or all but the last; returns the bytes freed.

    Without the last one the run keeps its records and can be neither evaluated nor exported any more. Raises ValueError
    if the list of checkpoints is damaged.
    """
    try:
        index = read_json(run.checkpoint_index, "delete the folder's checkpoints to train from the start")
    except FileNotFoundError:
        return 0
    kept = {name: index[name] for name in sorted(index)[-1:]} if keep_last else {}
    gone = [path for path in run.checkpoints.glob("step_*") if path.name not in kept]
    freed = size(gone)
    write_json(run.checkpoint_index, kept)  # before the files: nothing is listed that is not whole
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed
