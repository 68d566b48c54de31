"""The optimiser: which parameters decay, the learning rate, and clipping that equals torch's bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from harness.experiments.matching import matched_config
from harness.experiments.schema import TrainConfig
from harness.model.language_model import build_model
from harness.training.optim import build_optimizer, clip_gradients, decays, learning_rate


def test_weight_decay_reaches_matrices_alone() -> None:
    for mixer in ("gdn2", "mamba3_mimo"):
        model = build_model(matched_config("cpu-600k", "recurrent", mixer), 0)
        spared = {name.split(".")[-1] for name, p in model.named_parameters() if not decays(name, p)}
        assert (
            spared
            == {
                "gdn2": {"weight", "A_log", "dt_bias", "bias"},
                "mamba3_mimo": {"weight", "B_bias", "C_bias", "D", "dt_bias"},
            }[mixer]
        )
        norms = [n for n, p in model.named_parameters() if not decays(n, p) and n.endswith("weight")]
        assert all("norm" in name for name in norms)
        groups = build_optimizer(model, TrainConfig()).param_groups
        assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


def test_the_learning_rate_warms_up_over_tokens_and_ends_at_a_tenth() -> None:
    config = TrainConfig(lr=1.0, warmup_ratio=0.1)
    assert learning_rate(config, 5_000, 100_000) == pytest.approx(0.5)
    assert learning_rate(config, 10_000, 100_000) == pytest.approx(1.0)
    assert learning_rate(config, 55_000, 100_000) == pytest.approx(0.55)  # half a cosine, halfway
    assert learning_rate(config, 100_000, 100_000) == pytest.approx(0.1)
    assert learning_rate(config, 100_500, 100_000) == pytest.approx(0.1)


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
    clipped = clip_gradients(iter(ours), 1.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert clipped == expected.item() or norm != norm
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(a.grad.view(torch.int32), b.grad.view(torch.int32))
    assert ours[2].grad is None


def _clip_sharded(rank: int, folder: Path) -> None:
    """One of two processes: both ways of clipping sharded gradients, whose norm is below the limit and above it."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for norm in (0.3, 1.5):
        results = []
        for clip in (clip_gradients, torch.nn.utils.clip_grad_norm_):
            parameter = nn.Parameter(distribute_tensor(torch.zeros(1000), mesh, [Shard(0)]))
            parameter.grad = distribute_tensor(with_gradients(norm)[0].grad, mesh, [Shard(0)])
            value = clip([parameter], 1.0)
            results.append(
                (value if isinstance(value, float) else value.full_tensor().item(), parameter.grad.to_local())
            )
        assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    dist.destroy_process_group()


def test_sharded_gradients_are_clipped_as_by_torch_in_all_processes(tmp_path: Path) -> None:
    # Forked processes need not import torch again.
    torch.multiprocessing.start_processes(_clip_sharded, args=(tmp_path,), nprocs=2, start_method="fork")
