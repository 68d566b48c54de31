"""Checkpoints of a run: written whole or not at all, verified before they are used.

`checkpoints/index.json` lists the complete ones with their SHA-256; a file that is not listed was being written when
its run died, and is ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.files import write_atomic

KEEP = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the remedy."""


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "index.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise CheckpointError(f"{path}: not JSON; delete the folder {folder} to train from the start") from None


def save(run_dir: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and drop all but the last KEEP, and any of later steps: they are damaged ones that
    the run went back behind. Raises OSError when the disk refuses."""
    folder = run_dir / "checkpoints"
    for left in folder.glob("step_*.partial"):  # by a process that was killed while it wrote
        left.unlink()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = folder / f"step_{step:08d}.pt"
    index = {name: entry for name, entry in _index(folder).items() if entry["step"] < step}
    index[path.name] = {"step": step, "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()}
    write_atomic(path, buffer.getbuffer())
    kept = dict(sorted(index.items())[-KEEP:])
    write_atomic(folder / "index.json", json.dumps(kept, indent=1).encode())
    for old in folder.glob("step_*.pt"):
        if old.name not in kept:
            old.unlink()
    return path


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, if it has one."""
    index = _index(run_dir / "checkpoints")
    return run_dir / "checkpoints" / max(index) if index else None


def latest_sound(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is what was written, if the run has any, and a line for every newer, damaged one.

    Raises CheckpointError when there are checkpoints and all of them are damaged.
    """
    folder = run_dir / "checkpoints"
    faults: list[str] = []
    for name in sorted(_index(folder), reverse=True):
        try:
            _read(folder / name)
        except CheckpointError as fault:
            faults.append(str(fault))
        else:
            return folder / name, [f"{fault}; going on from the one before, {name}" for fault in faults]
    if faults:
        raise CheckpointError(f"{faults[0]}, and there is no sound one; delete {folder} to train from the start")
    return None, []


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU. Raises CheckpointError for a missing or damaged file."""
    try:
        content = _read(path)
    except CheckpointError as fault:
        again = path.parent.parent / "train.json"
        raise CheckpointError(f"{fault}; delete {again} and submit again to train on from the one before") from None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read(path: Path) -> bytes:
    """A checkpoint file's content, if it is what was written; CheckpointError without a remedy otherwise."""
    expected = _index(path.parent).get(path.name)
    if expected is None or not path.exists():
        raise CheckpointError(f"{path}: the checkpoint is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the recorded one")
    return content


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over named tensors, bit for bit: what "the same weights" means."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
