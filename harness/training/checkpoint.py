"""Checkpoints of a run: written whole or not at all, verified before they are used.

`checkpoints/index.json` lists the complete ones with the SHA-256 of each file; what is not listed was being written
when its run died, and is ignored. One process, or several that hold a whole model each, write a file `step_<step>.pt`.
Processes that hold parts of a model write a folder `step_<step>.dcp` together (torch.distributed.checkpoint), each its
own part. Either can be read by any number of processes, in parts or whole. `Writer` does so while training goes on.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from harness.files import atomic, file_sha256, write_atomic, write_json
from harness.run_folder import RunFolder
from harness.training.distributed import World, whole

log = logging.getLogger(__name__)

KEEP = 2
REST = "rest.pt"  # in a folder, what is no tensor of the model or the optimiser

Content = dict[str, Any]
"""Of a checkpoint: `model` and `optimizer`, state dicts of torch, and whatever else."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the remedy."""


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    path = RunFolder(folder.parent).checkpoint_index
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise CheckpointError(f"{path}: not JSON; delete the folder {folder} to train from the start") from None


def save(run_dir: Path, step: int, content: Content, milestones: int | None = None) -> Path:
    """Write the checkpoint of a step and drop all but the last KEEP, those of every `milestones` steps, and any of
    later steps: they are damaged ones that the run went back behind. Raises OSError when the disk refuses."""
    folder = RunFolder(run_dir).checkpoints
    _clear(folder)
    path = folder / f"step_{step:08d}.pt"
    with atomic(path) as file:
        hashed = _Hashed(file)
        try:
            torch.save(content, hashed)
        except RuntimeError as error:  # torch's own, which hides what the file said
            raise hashed.refused or error from None
    _list(path, step, {"sha256": hashed.digest.hexdigest()}, milestones)
    return path


class _Hashed:
    """A file that knows the SHA-256 of what is written to it, and the error with which it refused."""

    def __init__(self, file: BinaryIO):
        self.digest, self.refused = hashlib.sha256(), None
        self.flush, self._write = file.flush, file.write

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        try:
            return self._write(part)
        except OSError as error:
            self.refused = error
            raise


def save_sharded(run_dir: Path, step: int, content: Content, world: World, milestones: int | None = None) -> Path:
    """The same by all processes of a run whose content is sharded: a folder. Raises OSError when a disk refuses, in all
    processes, or PeerFailed."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    folder = RunFolder(run_dir).checkpoints
    path = folder / f"step_{step:08d}.dcp"
    partial = path.with_name(f"{path.name}.partial")
    tensors, rest = _tensors(content), _without_tensors(content)

    def begin() -> None:
        _clear(folder)
        partial.mkdir(parents=True)
        buffer = io.BytesIO()
        torch.save(rest, buffer)
        write_atomic(partial / REST, buffer.getbuffer())

    world.on_first(begin)
    try:
        # Tensors are on the CPU. To copy ahead, of which there is nothing, this thread would open the first GPU.
        writer = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
        dcp.save(tensors, storage_writer=writer, process_group=world.group)
    except CheckpointException as error:  # no Exception, and raised by all processes
        if world.first:
            shutil.rmtree(partial, ignore_errors=True)
        reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise OSError(
            f"{path}: cannot be written ({reasons}); free space or fix the permissions, then run again"
        ) from None
    with world.together():  # each process what it has written itself
        own = {file.name: file_sha256(file) for file in partial.glob(f"__{world.rank}_*")}
    hashes = {name: value for part in world.gather(own) for name, value in part.items()}

    def finish() -> None:
        for name in (".metadata", REST):
            hashes[name] = file_sha256(partial / name)
        shutil.rmtree(path, ignore_errors=True)  # complete but not listed when its run died
        os.replace(partial, path)
        _list(path, step, {"files": hashes}, milestones)

    world.on_first(finish)
    return path


class Writer:
    """Writes a run's checkpoints in a thread while training goes on, one at a time. All processes call every method.

    Meanwhile a process has on the CPU a copy of what it writes. last: the newest one that is complete.
    """

    def __init__(self, run_dir: Path, world: World, sharded: bool, milestones: int | None, last: Path | None):
        self.last, self._run_dir, self._milestones = last, run_dir, milestones
        self._world = world
        # What the thread says to those of the other processes must not come between what training says.
        self._writers = world.new_group() if sharded else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, content: Content) -> None:
        """Copy the content to the CPU, and begin to write it once the one before is written. Raises what `wait`
        does, of the one before."""
        self.wait()
        own = self._writers is not None or self._world.first
        with self._world.together():  # there may be no memory for it
            copied = _copy(content) if own else None
        if self._writers is not None:
            self._writing = self._thread.submit(
                save_sharded, self._run_dir, step, copied, self._writers, self._milestones
            )
        elif own:
            self._writing = self._thread.submit(save, self._run_dir, step, copied, self._milestones)

    def check(self) -> None:
        """Raise what a write that has ended by now has raised in this process. Waits for nothing."""
        if self._writing is not None and self._writing.done():
            written, self._writing = self._writing, None
            self.last = written.result()

    def wait(self) -> None:
        """Until what was begun is written. Raises OSError, or PeerFailed beside the process that could not."""
        with self._world.together():
            if self._writing is not None:
                written, self._writing = self._writing, None
                self.last = written.result()
        self.last = self._world.on_first(lambda: self.last)

    def close(self) -> None:
        """End the thread, behind what it is writing; where that fails nobody else says so any more."""
        self._thread.shutdown()
        if self._writing is not None and (error := self._writing.exception()) is not None:
            log.error(f"the last checkpoint was not written: {error}")


def _copy(content: Content) -> Content:
    """Of all its tensors, on the CPU; sharded ones stay so, and one that has two names, as a tied embedding, one."""
    from torch.distributed.checkpoint.staging import BlockingAsyncStager
    from torch.distributed.tensor import DTensor

    stager, copies = BlockingAsyncStager(), {}

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(part) for key, part in value.items()}
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        if isinstance(value, DTensor):
            return stager.stage({"": value})[""]
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or place not in copies:
            copies[place] = value.detach().to("cpu", copy=True)
        return copies[place]

    return copied(content)


def _clear(folder: Path) -> None:
    """Remove what processes that were killed had not finished."""
    for left in folder.glob("step_*.partial"):
        _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _list(path: Path, step: int, entry: dict[str, Any], milestones: int | None) -> None:
    """Put a checkpoint that is complete on the list, and remove those that are not to be kept."""
    folder = path.parent
    index = {name: known for name, known in _index(folder).items() if known["step"] < step}
    index[path.name] = {"step": step} | entry
    steps = kept_steps([known["step"] for known in index.values()], milestones)
    kept = {name: index[name] for name in sorted(index) if index[name]["step"] in steps}
    write_json(RunFolder(folder.parent).checkpoint_index, kept)
    for old in [*folder.glob("step_*.pt"), *folder.glob("step_*.dcp")]:
        if old.name not in kept:
            _remove(old)


def kept_steps(saved: Iterable[int], milestones: int | None) -> set[int]:
    """Of the steps that were saved, those whose checkpoint is kept: the last KEEP and every `milestones`th step."""
    steps = sorted(saved)
    return {*steps[-KEEP:], *(step for step in steps if milestones is not None and step % milestones == 0)}


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, if it has one."""
    index = _index(RunFolder(run_dir).checkpoints)
    return RunFolder(run_dir).checkpoints / max(index) if index else None


def latest_sound(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is what was written, if the run has any, and a line for every newer, damaged one.

    Raises CheckpointError when there are checkpoints and all of them are damaged.
    """
    folder = RunFolder(run_dir).checkpoints
    faults: list[str] = []
    for name in sorted(_index(folder), reverse=True):
        try:
            _verify(folder / name)
        except CheckpointError as fault:
            faults.append(str(fault))
        else:
            return folder / name, [f"{fault}; going on from the one before, {name}" for fault in faults]
    if faults:
        raise CheckpointError(f"{faults[0]}, and there is no sound one; delete {folder} to train from the start")
    return None, []


def load(path: Path) -> Content:
    """A checkpoint's content, whole, on the CPU. Raises CheckpointError for a missing or damaged one."""
    try:
        _verify(path)
    except CheckpointError as fault:
        again = RunFolder(path.parent.parent).summary
        raise CheckpointError(f"{fault}; delete {again} and submit again to train on from the one before") from None
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    stored = _stored(path).items()
    return _read(path, {key: torch.empty(meta.size, dtype=meta.properties.dtype) for key, meta in stored})


def require_config(path: Path, content: Content, config_hash: str) -> None:
    """Raises CheckpointError for a checkpoint of another configuration."""
    if content["config_hash"] != config_hash:
        raise CheckpointError(
            f"{path}: made by another configuration ({content['config_hash'][:8]}, this is {config_hash[:8]}); use "
            "another run folder"
        )


def load_sharded(path: Path, config_hash: str, model: dict[str, Tensor], parameters: Sequence[Tensor]) -> Content:
    """A checkpoint's content, sharded over the processes as what it is for: `model`, a state dict, and the optimiser's
    `parameters` in its order. Of a folder each process reads what it holds. Verifies no bytes: `latest_sound` has.

    Raises CheckpointError for a checkpoint of another configuration.
    """
    single = path.suffix == ".pt"
    content = torch.load(path if single else path / REST, map_location="cpu", weights_only=True)
    require_config(path, content, config_hash)
    if single:
        for name, tensor in content["model"].items():
            content["model"][name] = _as(tensor, model[name])
        for number, state in content["optimizer"]["state"].items():
            content["optimizer"]["state"][number] = {k: _as(t, parameters[number]) for k, t in state.items()}
        return content
    tensors = {}
    for key, meta in _stored(path).items():
        _, name, *moment = key.split("/")
        owner = parameters[int(name)] if moment else model[name]
        same = meta.size == owner.shape and meta.properties.dtype == owner.dtype
        tensors[key] = torch.empty_like(owner) if same else torch.empty(meta.size, dtype=meta.properties.dtype)
    return _read(path, tensors)


def _as(tensor: Tensor, owner: Tensor) -> Tensor:
    """A whole tensor, sharded as another one of its shape is; any other as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(owner, DTensor) or tensor.shape != owner.shape:
        return tensor
    # Every process has all of it, so that nothing is sent.
    return distribute_tensor(tensor.to(owner.device), owner.device_mesh, owner.placements, src_data_rank=None)


def _tensors(content: Content) -> dict[str, Tensor]:
    """Those of the model as model/NAME, those of the optimiser as optimizer/NUMBER/NAME."""
    moments = content["optimizer"]["state"].items()
    return {f"model/{name}": tensor for name, tensor in content["model"].items()} | {
        f"optimizer/{number}/{name}": tensor for number, state in moments for name, tensor in state.items()
    }


def _without_tensors(content: Content) -> Content:
    return content | {"model": {}, "optimizer": content["optimizer"] | {"state": {}}}


def _stored(path: Path) -> dict[str, Any]:
    from torch.distributed import checkpoint as dcp

    return dcp.FileSystemReader(path).read_metadata().state_dict_metadata


def _read(path: Path, tensors: dict[str, Tensor]) -> Content:
    """Fill the tensors, and give the content that they are part of."""
    from torch.distributed import checkpoint as dcp

    with warnings.catch_warnings():  # that it works alone, which it is told to
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    content = torch.load(path / REST, map_location="cpu", weights_only=True)
    for key, tensor in tensors.items():
        _, name, *moment = key.split("/")
        if moment:
            content["optimizer"]["state"].setdefault(int(name), {})[moment[0]] = tensor
        else:
            content["model"][name] = tensor
    return content


def _verify(path: Path) -> None:
    """Raises CheckpointError, without a remedy, unless a checkpoint is what was written."""
    expected = _index(path.parent).get(path.name)
    if expected is None or not path.exists():
        raise CheckpointError(f"{path}: the checkpoint is missing")
    files = {path: expected["sha256"]} if "sha256" in expected else {path / k: v for k, v in expected["files"].items()}
    for file, sha256 in files.items():
        if not file.is_file():
            raise CheckpointError(f"{file}: the file is missing")
        if file_sha256(file) != sha256:
            raise CheckpointError(f"{file}: damaged, its SHA-256 is not the recorded one")


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over named tensors, bit for bit: what "the same weights" means. Sharded ones are brought together one at
    a time, so that all processes must call it."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(whole(tensors[name].detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
