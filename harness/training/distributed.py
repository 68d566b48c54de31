"""Several processes that train one run: how they find each other, and how they agree on what happens next.

They are told their places by the environment, as torchrun and submitit's TorchDistributedEnvironment set it.

What they hold is one of two things: each a whole model (`ddp`), or each a part of every parameter, gradient and moment
(`fsdp`), brought together block by block while it computes. Both compute the same function.
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

# All wait while the first writes a checkpoint or makes the shards of the data.
PATIENCE = timedelta(minutes=30)


class PeerFailed(RuntimeError):
    """Another process of the run failed; the message says which and why."""


@dataclass(frozen=True)
class World:
    """This process's place among those of its run. rank: from 0 to size - 1. local_rank: among those of this machine.
    group: torch's, of the connections that are used; its default one where None.

    Every method is called by all processes in the same order; with one process each does what it says at once.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, value by value in float64; the same bits on all."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        try:
            dist.all_reduce(sums, group=self.group)
        except RuntimeError as lost:
            raise PeerFailed(f"another process of the run has gone, and its log says why ({lost})") from lost
        return sums.tolist()

    def anyone(self, says: bool) -> bool:
        """Whether any process says so."""
        return self.total([says])[0] > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What any process raises in the block is raised by all at its end: its own by the process that failed,
        PeerFailed by the others. The first writes the traceback of every other to the log. The block itself must not
        wait for other processes."""
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
        """What each process gives, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, which alone runs it; what it raises is raised by all."""
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
        """The same processes over connections of their own, on which a thread may wait while others are in use."""
        return self if self.size == 1 else replace(self, group=dist.new_group(backend="gloo", timeout=PATIENCE))


ALONE = World()


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that the environment names, and leave them at the end; inside another `world`, that one.

    WORLD_SIZE missing or 1 means this process alone. With more, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must be
    set (ValueError otherwise). Tensors on a CPU go through gloo, those on a GPU through NCCL, and the process's GPU is
    that of its local rank.
    """
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
        return
    size = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size < 1:
        raise ValueError(f"WORLD_SIZE: {size} is no number of processes; give at least 1")
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
        raise ValueError(f"RANK: {world.rank} is no place among WORLD_SIZE={size} processes; give 0 to {size - 1}")
    cuda = torch.cuda.is_available()
    if cuda:
        _take_gpu(world.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def shard(root: nn.Module, blocks: Iterable[nn.Module], world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Spread the parameters of a module over the processes, in place (`divide`), and move it to the device a block at a
    time. All processes hold the same whole module before.

    Raises RuntimeError where the shards do not add up to what the parameters were.
    """
    from torch.distributed.device_mesh import init_device_mesh

    before = _moments(root)
    divide(root, blocks, init_device_mesh(device.type, (world.size,)), dtype)
    names, size = list(before), len(next(iter(before.values())))
    own = _moments(root)
    sums = world.total([value for name in names for value in own[name]])
    for index, name in enumerate(names):
        after = sums[size * index : size * (index + 1)]
        # Both are float64 sums of the same numbers, in another order.
        if any(abs(a - b) > 1e-9 * before[name][-1] for a, b in zip(after, before[name], strict=True)):
            raise RuntimeError(
                f"{name}: sharded over {world.size} processes it has (numbers, sum, sum of absolute values) {after}, "
                f"before {before[name]}; train with ddp, and report torch {torch.__version__}"
            )


def divide(root: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """The plan by which parameters are spread over the processes of a mesh (torch's fully_shard, FSDP2): each along its
    first axis, in place.

    root: whose forward pass computes the loss; its gradients are the mean over the processes, summed in fp32. blocks:
    parts of it that are brought together one after another, and whose `mlp` is all matrices. dtype: of activations.
    The master weights stay fp32. Of parameters only an MLP's travel in `dtype`: its layers would round them so anyway,
    while those of norms, decays and convolutions are used in fp32, as in a process alone.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    marks = {name: dict(vars(p)) for name, p in root.named_parameters()}
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    rounded = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block.mlp, mesh=mesh, mp_policy=rounded)
        fully_shard(block, mesh=mesh, mp_policy=exact)
    fully_shard(root, mesh=mesh, mp_policy=exact)
    for name, parameter in root.named_parameters():  # such as fla's _no_weight_decay
        vars(parameter).update(marks[name])


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor brought together, which all processes ask for; any other tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _moments(module: nn.Module) -> dict[str, list[float]]:
    """Of each parameter's part that is here: how many numbers, their sum and that of their absolute values."""
    moments = {}
    for name, parameter in module.named_parameters():
        part = local(parameter).detach().double()
        moments[name] = [part.numel(), part.sum().item(), part.abs().sum().item()]
    return moments


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name}: {os.environ[name]!r} in the environment is no whole number; correct it") from None


def _take_gpu(local_rank: int) -> None:
    seen = torch.cuda.device_count()
    # Schedulers may show each process nothing but its own GPU, which then has the number 0.
    index = 0 if seen == 1 else local_rank
    if index >= seen:
        raise ValueError(
            f"LOCAL_RANK: {local_rank} has no GPU of its own among the {seen} of this machine; start at most {seen} "
            "processes a machine"
        )
    torch.cuda.set_device(index)
    torch.cuda.init()  # else a device mesh takes the device of LOCAL_RANK, whether it can be seen or not
