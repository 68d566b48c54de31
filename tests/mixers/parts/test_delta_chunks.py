"""Inside chunks of the delta rule: both forms against the definition, and their gradients against autograd's."""

import pytest
import torch
from torch import Tensor

from mixers.parts.delta_chunks import (
    Decayed,
    decay_channels,
    decay_channels_backward,
    decay_heads,
    decay_heads_backward,
)
from tests.mixers.parts.cases import F64, brutal_decay, relative

FORMS = {"heads": (decay_heads, decay_heads_backward), "channels": (decay_channels, decay_channels_backward)}


def drawn(form: str, size: int, brutal: bool = False) -> list[Tensor]:
    """Return rows [3, C, 2, 5], keys [3, C, 5] and g."""
    torch.manual_seed(size)
    width = 1 if form == "heads" else 5
    g = brutal_decay((3, size, 1, width)).squeeze(2) if brutal else -torch.rand(3, size, width, dtype=F64)
    return [torch.randn(3, size, 2, 5, dtype=F64), torch.randn(3, size, 5, dtype=F64), g]


def defined(rows: Tensor, keys: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return products, reads, tails and total with every decay as the exponential of its own sum."""
    size, g = keys.shape[1], g.expand_as(keys)
    sums = [[g[:, s + 1 : r + 1].sum(1) for s in range(-1, size)] for r in range(size)]
    between = torch.stack([torch.stack(row, 1) for row in sums], 1).exp()  # [M, C, C + 1, K], s from -1
    products = torch.einsum("mrxk,msk,mrsk->mrxs", rows, keys, between[:, :, 1:])
    lower = torch.ones(size, size, dtype=F64).tril()
    products = products * torch.stack([lower.tril(-1), lower], 1)
    return products, rows * between[:, :, 0].unsqueeze(2), keys * between[:, -1, 1:], between[:, -1:, 0]


def masked(products: Tensor) -> Tensor:
    """Return the products with zeros where T does not hold."""
    t, aqk = products.unbind(2)
    return torch.stack([t.tril(-1), aqk], 2)


@pytest.mark.parametrize("brutal", [False, True])
@pytest.mark.parametrize("size", [1, 2, 8, 16])
@pytest.mark.parametrize("form", FORMS)
def test_a_chunk_holds_the_products_and_operands_of_the_definition(form: str, size: int, brutal: bool) -> None:
    inputs = drawn(form, size, brutal)
    found, expected = FORMS[form][0](*inputs), defined(*inputs)
    for a, b in zip((masked(found.products), *found[1:4]), expected, strict=True):
        torch.testing.assert_close(a, b[..., :1] if a.shape[-1] == 1 != b.shape[-1] else b)


@pytest.mark.parametrize("size", [1, 2, 8, 16])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradients_are_those_of_autograd(form: str, size: int) -> None:
    inputs = [x.requires_grad_() for x in drawn(form, size)]
    forward, backward = FORMS[form]
    d: Decayed = forward(*inputs)
    expected = (masked(d.products), d.reads, d.tails, d.total.log())
    directions = [torch.randn_like(x) for x in expected]
    wanted = torch.autograd.grad(
        sum((x * y).sum() for x, y in zip(defined(*inputs)[:3], directions, strict=False))
        + (defined(*inputs)[3][..., : d.total.shape[-1]].log() * directions[3]).sum(),
        inputs,
    )
    with torch.no_grad():
        found = backward(*inputs, d, *directions)
    for a, b in zip(found, wanted, strict=True):
        assert relative(a, b) < 1e-12 or a.norm() == b.norm() == 0  # float64: some hundred sums at 1e-16
