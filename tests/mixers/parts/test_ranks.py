"""MIMO's elementwise products: their values by definition, and their gradients against finite differences."""

import torch
import torch.nn.functional as F

from mixers.parts.ranks import GateRanks, SpreadRanks


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_a_tokens_numbers_are_spread_over_the_ranks() -> None:
    torch.manual_seed(0)
    x, weight = drawn(2, 5, 3, 4), drawn(3, 2, 4)
    spread = SpreadRanks.apply(x, weight)
    assert all(torch.equal(spread[..., r, :], x * weight[:, r]) for r in range(2))
    assert torch.autograd.gradcheck(SpreadRanks.apply, (x, weight))


def test_ranks_are_gated_and_summed() -> None:
    torch.manual_seed(1)
    y, z, gate, out = drawn(2, 5, 3, 2, 4), drawn(2, 5, 3, 4), drawn(3, 2, 4), drawn(3, 2, 4)
    expected = (y * F.silu(z.unsqueeze(-2) * gate) * out).sum(-2)
    torch.testing.assert_close(GateRanks.apply(y, z, gate, out), expected)
    assert torch.autograd.gradcheck(GateRanks.apply, (y, z, gate, out))
