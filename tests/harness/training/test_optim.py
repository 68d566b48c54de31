"""Clipping of gradients: torch's bit for bit, in one process and sharded over several."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from harness.training.optim import clip_gradients


def with_gradients(norm: float) -> list[nn.Parameter]:
    """Three parameters, one without a gradient; the norm of the other gradients together is `norm`."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (1000, 7, 1)]
    drawn = torch.randn(1007, generator=generator)
    drawn *= norm / drawn.norm()
    parameters[0].grad, parameters[1].grad = drawn[:1000].clone(), drawn[1000:].clone()
    return parameters


@pytest.mark.parametrize("norm", [0.0, 0.3, 0.98, 0.9899999, 0.999999, 1.0, 1.0000001, 1.5, 1e8, float("nan")])
def test_gradients_are_clipped_as_by_torch_bit_for_bit(norm: float) -> None:
    ours, theirs = with_gradients(norm), with_gradients(norm)
    found = clip_gradients(iter(ours), 1.0)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert found == wanted.item() or norm != norm
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(a.grad.view(torch.int32), b.grad.view(torch.int32))
    assert ours[2].grad is None


def _clip_sharded(rank: int, folder: Path) -> None:
    """One of two processes: both kinds of clipping on sharded gradients, of a norm below the limit and of one above."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for norm in (0.3, 1.5):
        found = []
        for clip in (clip_gradients, torch.nn.utils.clip_grad_norm_):
            parameter = nn.Parameter(distribute_tensor(torch.zeros(1000), mesh, [Shard(0)]))
            parameter.grad = distribute_tensor(with_gradients(norm)[0].grad, mesh, [Shard(0)])
            value = clip([parameter], 1.0)
            found.append((value if isinstance(value, float) else value.full_tensor().item(), parameter.grad.to_local()))
        assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    dist.destroy_process_group()


def test_sharded_gradients_are_clipped_alike_in_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_clip_sharded, args=(tmp_path,), nprocs=2)
