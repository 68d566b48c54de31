"""Checkpoints of a run: written whole or not at all, and verified before use.

`checkpoints/index.json` lists the complete checkpoints with the SHA-256 of each file. A checkpoint that is not listed
was being written when its run died; it is ignored. One process writes a file `step_<step>.pt`, and so does the first of
several processes that each hold the whole model. Processes that each hold a part of the model write a folder
`step_<step>.dcp` together (torch.distributed.checkpoint). Any number of processes can read either form, sharded or
whole. `Writer` writes in the background while training continues.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from harness.files import atomic, file_sha256, read_json, write_atomic, write_json
from harness.run_folder import RunFolder
from harness.training.distributed import World, whole

log = logging.getLogger(__name__)

KEEP = 2
METADATA = ".metadata"  # file in a folder: which file holds which part of which tensor, pickled by torch
METADATA_CLASSES: dict[str, tuple[str, ...]] = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": ("Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
}
"""Everything that METADATA may name."""
REST = "rest.pt"  # file in a folder: everything but the tensors of the model and the optimiser

_RETRAIN = "delete the folder of checkpoints to train from the start"

Content = dict[str, Any]
"""Content of a checkpoint: the state dicts `model` and `optimizer`, and any other entries."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another configuration. The message names the file and the remedy."""


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    path, remedy = RunFolder(folder.parent).checkpoint_index, f"delete the folder {folder} to train from the start"
    try:
        index = read_json(path, remedy)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(index, dict) or not all(map(_is_entry, index.values())):
        raise CheckpointError(f"{path}: damaged, no list of checkpoints; {remedy}")
    return index


def _is_entry(entry: Any) -> bool:
    """Whether a value of an index describes a checkpoint."""
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return False
    return isinstance(entry.get("sha256"), str) or isinstance(entry.get("files"), dict)


def save(run_dir: Path, step: int, content: Content, milestones: int | None = None) -> Path:
    """Write the checkpoint of a step to a file and remove old checkpoints. Returns its path.

    The last KEEP checkpoints and those of every `milestones` steps are kept. Checkpoints of later steps are removed:
    they are damaged, and the run resumed from an earlier one. Raises OSError if the disk refuses.
    """
    folder = RunFolder(run_dir).checkpoints
    _clear(folder)
    path = folder / f"step_{step:08d}.pt"
    with atomic(path) as file:
        hashed = _Hashed(file)
        try:
            torch.save(content, hashed)
        except RuntimeError as error:  # torch hides the file's own error
            raise hashed.refused or error from None
    _list(path, step, {"sha256": hashed.digest.hexdigest()}, milestones)
    return path


class _Hashed:
    """A binary file that hashes its content as it is written, and remembers the OSError of a write that failed."""

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
    """Like `save`, for sharded content: all processes call it and write one folder together. Returns its path.

    Raises OSError, or PeerFailed in the other processes, if a disk refuses.
    """
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
        # Tensors are on the CPU already. Copying ahead would only make this thread open the first GPU.
        writer = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
        dcp.save(tensors, storage_writer=writer, process_group=world.group)
    except CheckpointException as error:  # derives from BaseException; all processes raise it
        if world.first:
            shutil.rmtree(partial, ignore_errors=True)
        reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise OSError(
            f"{path}: cannot be written ({reasons}); free space or fix the permissions, then run again"
        ) from None
    with world.together():  # each process hashes the files that it wrote
        written = {file.name: file_sha256(file) for file in partial.glob(f"__{world.rank}_*")}
    hashes = {name: value for part in world.gather(written) for name, value in part.items()}

    def finish() -> None:
        for name in (METADATA, REST):
            hashes[name] = file_sha256(partial / name)
        shutil.rmtree(path, ignore_errors=True)  # there if the run died between this rename and the index
        os.replace(partial, path)
        _list(path, step, {"files": hashes}, milestones)

    world.on_first(finish)
    return path


class Writer:
    """Writes a run's checkpoints in a thread, one at a time, while training continues.

    All processes call every method. During a write, each process that writes holds a copy of its content on the CPU.
    last: path of the newest complete checkpoint; None before the first.
    """

    def __init__(self, run_dir: Path, world: World, sharded: bool, milestones: int | None, last: Path | None):
        self.last, self._run_dir, self._milestones = last, run_dir, milestones
        self._world = world
        # The thread needs a group of its own: its collectives must not interleave with those of training.
        self._writers = world.new_group() if sharded else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, content: Content) -> None:
        """Wait for the previous write, copy the content to the CPU, and start to write it.

        Raises what `wait` raises for the previous write.
        """
        self.wait()
        writes = self._writers is not None or self._world.first
        with self._world.together():  # the copy may run out of memory
            copied = _copy(content) if writes else None
        if self._writers is not None:
            self._writing = self._thread.submit(
                save_sharded, self._run_dir, step, copied, self._writers, self._milestones
            )
        elif writes:
            self._writing = self._thread.submit(save, self._run_dir, step, copied, self._milestones)

    def check(self) -> None:
        """Raise the error of a write that has ended in this process, if it failed. Does not wait."""
        if self._writing is not None and self._writing.done():
            written, self._writing = self._writing, None
            self.last = written.result()

    def wait(self) -> None:
        """Wait for the write in progress. Raises OSError if it failed here, PeerFailed if it failed elsewhere."""
        with self._world.together():
            if self._writing is not None:
                written, self._writing = self._writing, None
                self.last = written.result()
        self.last = self._world.on_first(lambda: self.last)

    def close(self) -> None:
        """End the thread after the write in progress. A failure of that write is logged, since nobody waits for it."""
        self._thread.shutdown()
        if self._writing is not None and (error := self._writing.exception()) is not None:
            log.error(f"the last checkpoint was not written: {error}")


def _copy(content: Content) -> Content:
    """Copy all tensors to the CPU. Sharded tensors stay sharded; a tensor with two names, such as a tied embedding, is
    copied once."""
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
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]

    return copied(content)


def _clear(folder: Path) -> None:
    """Remove checkpoints that killed processes left unfinished, on whatever host: the caller alone works on the run."""
    for left in [*folder.glob("step_*.partial"), *folder.glob(".step_*.partial")]:
        _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _list(path: Path, step: int, entry: dict[str, Any], milestones: int | None) -> None:
    """Add a complete checkpoint to the index, and remove those that are not kept."""
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
    """The saved steps whose checkpoints are kept: the last KEEP, and every multiple of `milestones`."""
    steps = sorted(saved)
    return {*steps[-KEEP:], *(step for step in steps if milestones is not None and step % milestones == 0)}


def latest(run_dir: Path) -> Path | None:
    """Path of a run's newest complete checkpoint; None if it has none. Verifies nothing."""
    index = _index(RunFolder(run_dir).checkpoints)
    return RunFolder(run_dir).checkpoints / max(index) if index else None


def latest_sound(run_dir: Path) -> tuple[Path | None, list[str]]:
    """Path of a run's newest undamaged checkpoint (None if it has none), and a line per newer, damaged one.

    Raises CheckpointError if there are checkpoints and all of them are damaged.
    """
    folder = RunFolder(run_dir).checkpoints
    faults: list[str] = []
    for name in sorted(_index(folder), reverse=True):
        try:
            _verify(folder / name)
        except CheckpointError as fault:
            faults.append(str(fault))
        else:
            return folder / name, [f"{fault}; resuming from the one before, {name}" for fault in faults]
    if faults:
        raise CheckpointError(f"{faults[0]}, and no earlier one is intact; delete {folder} to train from the start")
    return None, []


def load(path: Path) -> Content:
    """Content of a checkpoint, unsharded, on the CPU. Raises CheckpointError if it is missing or damaged."""
    try:
        _verify(path)
    except CheckpointError as fault:
        again = RunFolder(path.parent.parent).summary
        raise CheckpointError(f"{fault}; delete {again} and submit again to resume from the one before") from None
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    stored = _stored(path).items()
    return _read(path, {key: torch.empty(meta.size, dtype=meta.properties.dtype) for key, meta in stored})


def require_config(path: Path, content: Content, config_hash: str) -> None:
    """Raise CheckpointError if a checkpoint belongs to another configuration."""
    if content["config_hash"] != config_hash:
        raise CheckpointError(
            f"{path}: made by another configuration ({content['config_hash'][:8]}, this is {config_hash[:8]}); use "
            "another run folder"
        )


def load_sharded(path: Path, config_hash: str, model: dict[str, Tensor], parameters: Sequence[Tensor]) -> Content:
    """Content of a checkpoint, sharded over the processes like the tensors it is loaded into.

    model: state dict of the model. parameters: the optimiser's, in its order. From a folder, each process reads only
    what it holds. Bytes are not verified again: `latest_sound` has done so.

    Raises CheckpointError if the checkpoint belongs to another configuration.
    """
    single = path.suffix == ".pt"
    content = torch.load(path if single else path / REST, map_location="cpu", weights_only=True)
    require_config(path, content, config_hash)
    if single:
        for name, tensor in content["model"].items():
            content["model"][name] = _shard_like(tensor, model[name])
        for number, state in content["optimizer"]["state"].items():
            content["optimizer"]["state"][number] = {k: _shard_like(t, parameters[number]) for k, t in state.items()}
        return content
    tensors = {}
    for key, meta in _stored(path).items():
        _, name, *moment = key.split("/")
        owner = parameters[int(name)] if moment else model[name]
        same = meta.size == owner.shape and meta.properties.dtype == owner.dtype
        tensors[key] = torch.empty_like(owner) if same else torch.empty(meta.size, dtype=meta.properties.dtype)
    return _read(path, tensors)


def _shard_like(tensor: Tensor, owner: Tensor) -> Tensor:
    """Shard a whole tensor like `owner` if that is sharded and has its shape; else return it as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(owner, DTensor) or tensor.shape != owner.shape:
        return tensor
    # Every process has read the whole tensor, so nothing has to be sent.
    return distribute_tensor(tensor.to(owner.device), owner.device_mesh, owner.placements, src_data_rank=None)


def _tensors(content: Content) -> dict[str, Tensor]:
    """All tensors by key: model/NAME for the model, optimizer/NUMBER/NAME for the optimiser."""
    moments = content["optimizer"]["state"].items()
    return {f"model/{name}": tensor for name, tensor in content["model"].items()} | {
        f"optimizer/{number}/{name}": tensor for number, state in moments for name, tensor in state.items()
    }


def _without_tensors(content: Content) -> Content:
    return content | {"model": {}, "optimizer": content["optimizer"] | {"state": {}}}


def _stored(path: Path) -> dict[str, Any]:
    return _reader(path).read_metadata().state_dict_metadata


def _reader(path: Path) -> Any:
    """A reader of a sharded checkpoint. Torch's own would unpickle whatever its metadata name."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint import metadata

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> metadata.Metadata:
            found = _unpickled(path / METADATA)
            found.storage_meta = found.storage_meta or metadata.StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    return Reader(path)


def _unpickled(path: Path) -> Any:
    """The metadata of a sharded checkpoint. Raises CheckpointError if it asks for anything but what torch writes."""
    try:
        with path.open("rb") as file:
            found = _MetadataUnpickler(file).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(f"{path}: no metadata of a checkpoint ({error}); {_RETRAIN}") from None
    if not hasattr(found, "state_dict_metadata"):
        raise CheckpointError(f"{path}: no metadata of a checkpoint; {_RETRAIN}")
    return found


class _MetadataUnpickler(pickle.Unpickler):
    """An unpickler of a checkpoint's metadata, and of nothing else: a pickle may name any function to call."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in METADATA_CLASSES.get(module, ()):
            raise CheckpointError(f"names {module}.{name}, which no checkpoint of ours holds; {_RETRAIN}")
        return super().find_class(module, name)


def _read(path: Path, tensors: dict[str, Tensor]) -> Content:
    """Read `tensors` from a folder, in place, and return the content with them in it."""
    from torch.distributed import checkpoint as dcp

    with warnings.catch_warnings():  # torch warns of a single process, which is intended
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=_reader(path), no_dist=True)
    content = torch.load(path / REST, map_location="cpu", weights_only=True)
    for key, tensor in tensors.items():
        _, name, *moment = key.split("/")
        if moment:
            content["optimizer"]["state"].setdefault(int(name), {})[moment[0]] = tensor
        else:
            content["model"][name] = tensor
    return content


def _verify(path: Path) -> None:
    """Raise CheckpointError, without a remedy, if a checkpoint is not what was written."""
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
    """SHA-256 over named tensors, bit for bit: the definition of "the same weights".

    Sharded tensors are gathered one at a time, so all processes must call it.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(whole(tensors[name].detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
