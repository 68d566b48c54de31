"""Checkpoints of a run: written whole or not at all, verified before they are used.

`checkpoints/index.json` lists the complete ones with their SHA-256; a file that is not listed was being written when
its run died, and is ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEEP = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the remedy."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or all of the new. Raises OSError naming the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path}: cannot be written ({error.strerror}); free space or fix the permissions, then run again",
        ) from None


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "index.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise CheckpointError(f"{path}: not JSON; delete the folder {folder} to train from the start") from None


def save(run_dir: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and drop all but the last KEEP. Raises OSError when the disk refuses."""
    folder = run_dir / "checkpoints"
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = folder / f"step_{step:08d}.pt"
    write_atomic(path, buffer.getbuffer())
    index = _index(folder)
    index[path.name] = {"step": step, "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()}
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


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU. Raises CheckpointError for a missing or damaged file."""
    expected = _index(path.parent).get(path.name)
    remedy = f"delete it, its line in {path.parent / 'index.json'} and train.json to go back to the one before"
    if expected is None or not path.exists():
        raise CheckpointError(f"{path}: the checkpoint is missing; {remedy}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the recorded one; {remedy}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over named tensors, bit for bit: what "the same weights" means."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
