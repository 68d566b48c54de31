"""Several processes that train one run: how they join, agree on what happens next, and share a model.

Each process reads its rank from the environment, as torchrun and submitit's TorchDistributedEnvironment set it.

With `ddp` each process holds the whole model. With `fsdp` each holds a shard of every parameter, gradient and moment,
and parameters are gathered block by block during the computation. Both compute the same function.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger(__name__)

T = TypeVar("T")

Sharding = Literal["ddp", "fsdp"]

PATIENCE = timedelta(minutes=30)  # others wait while the first writes a checkpoint or prepares the data


class PeerFailed(RuntimeError):
    """Another process of the run failed. The message says which one and why."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen from this one.

    rank: this process, from 0 to size - 1. local_rank: its rank among the processes of this machine. group: the process
    group of torch.distributed that methods use; None for the default one.

    All processes must call every method, in the same order. With one process nothing is communicated.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the process that writes files."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum over the processes, value by value, in float64. All processes get the same bits.

        Raises PeerFailed if a process is gone.
        """
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        try:
            dist.all_reduce(sums, group=self.group)
        except RuntimeError as lost:
            raise PeerFailed(f"another process of the run has gone, and its log says why ({lost})") from lost
        return sums.tolist()

    def anyone(self, says: bool) -> bool:
        """Whether any process says yes."""
        return self.total([says])[0] > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Fail together: if the block raises in any process, all processes raise at its end.

        A process that failed raises its own error, the others raise PeerFailed. Rank 0 logs the tracebacks of all that
        failed. The block itself must not wait for other processes.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if not self.anyone(error is not None):
            return
        reasons = self.gather(
            None if error is None else (f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
        )
        failed = [(rank, *reason) for rank, reason in enumerate(reasons) if reason is not None]
        if self.first:
            for rank, _, trace in failed:
                log.error("rank %d of %d failed:\n%s", rank, self.size, trace.rstrip())
        if error is not None:
            raise error
        rank, reason, _ = failed[0]
        raise PeerFailed(f"rank {rank}: {reason}")

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank. Values are pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` in rank 0 alone and return its result in all processes. If it raises, all raise (`together`)."""
        result = None
        with self.together():
            if self.first:
                result = action()
        if self.size == 1:
            return result
        shared = [result]
        dist.broadcast_object_list(shared, group=self.group)
        return shared[0]

    def new_group(self) -> World:
        """The same processes with a process group of their own, so that a thread can communicate at the same time."""
        return self if self.size == 1 else replace(self, group=dist.new_group(backend="gloo", timeout=PATIENCE))


ALONE = World()


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that the environment names, and leave them at the end. Inside another `join_world`, reuse it.

    Without WORLD_SIZE, or with 1, this process is alone. Otherwise RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must
    be set. CPU tensors travel over gloo and GPU tensors over NCCL; each process uses the GPU of its local rank.

    Raises ValueError if the environment is incomplete or inconsistent.
    """
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
        return
    size = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size < 1:
        raise ValueError(f"WORLD_SIZE: {size} is not a number of processes; give at least 1")
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE: {size} processes, but the environment lacks {', '.join(missing)}; start them with torchrun, "
            "or unset WORLD_SIZE for one process"
        )
    world = World(_number("RANK"), size, _number("LOCAL_RANK"))
    if not 0 <= world.rank < size:
        raise ValueError(f"RANK: {world.rank} is not a rank among WORLD_SIZE={size} processes; give 0 to {size - 1}")
    cuda = torch.cuda.is_available()
    if cuda:
        _take_gpu(world.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def shard(root: nn.Module, blocks: Iterable[nn.Module], world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Shard the parameters of a module over the processes, in place (`divide`), and move it to the device block by
    block. Beforehand all processes hold the same whole module.

    Raises RuntimeError if the shards do not add up to the parameters.
    """
    from torch.distributed.device_mesh import init_device_mesh

    before = _moments(root)
    divide(root, blocks, init_device_mesh(device.type, (world.size,)), dtype)
    names, size = list(before), len(next(iter(before.values())))
    shards = _moments(root)
    sums = world.total([value for name in names for value in shards[name]])
    for index, name in enumerate(names):
        after = sums[size * index : size * (index + 1)]
        # Both are float64 sums of the same numbers in different orders.
        if any(abs(a - b) > 1e-9 * before[name][-1] for a, b in zip(after, before[name], strict=True)):
            raise RuntimeError(
                f"{name}: sharded over {world.size} processes it has (numbers, sum, sum of absolute values) {after}, "
                f"before {before[name]}; train with ddp, and report torch {torch.__version__}"
            )


def divide(root: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard each parameter along its first axis over the processes of a mesh, in place (torch's fully_shard, FSDP2).

    root: module whose forward pass computes the loss. Its gradients are averaged over the processes, summed in fp32.
    blocks: its submodules that are gathered one after another; the `mlp` of each is None or holds
    nothing but matrices. dtype:
    dtype of activations.

    Master weights stay fp32. Only MLP parameters travel in `dtype`: their layers would round them anyway. Parameters of
    norms, decays and convolutions are used in fp32, as in a single process.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    marks = {name: dict(vars(p)) for name, p in root.named_parameters()}
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    rounded = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
    for block in blocks:
        if block.mlp is not None:
            fully_shard(block.mlp, mesh=mesh, mp_policy=rounded)
        fully_shard(block, mesh=mesh, mp_policy=exact)
    fully_shard(root, mesh=mesh, mp_policy=exact)
    for name, parameter in root.named_parameters():  # fully_shard drops attributes such as fla's _no_weight_decay
        vars(parameter).update(marks[name])


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; any other tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered; any other tensor itself. All processes must call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _moments(module: nn.Module) -> dict[str, list[float]]:
    """Count, sum and sum of absolute values of this process's part of each parameter."""
    moments = {}
    for name, parameter in module.named_parameters():
        part = local(parameter).detach().double()
        moments[name] = [part.numel(), part.sum().item(), part.abs().sum().item()]
    return moments


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name}: {os.environ[name]!r} in the environment is not a whole number; correct it") from None


def _take_gpu(local_rank: int) -> None:
    seen = torch.cuda.device_count()
    # A scheduler may show each process its own GPU alone, as number 0.
    index = 0 if seen == 1 else local_rank
    if index >= seen:
        raise ValueError(
            f"LOCAL_RANK: {local_rank} has no GPU of its own among the {seen} of this machine; start at most {seen} "
            "processes per machine"
        )
    torch.cuda.set_device(index)
    torch.cuda.init()  # else a device mesh takes the GPU numbered LOCAL_RANK, even if this process cannot see it
