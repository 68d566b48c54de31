"""Device functions against their definitions, inside small kernels of the tests' own."""

import pytest
import torch
import triton
import triton.language as tl

from mixers.gdn2.kernels.tiles import level_mask, products_of_8, reciprocal_norms, rows_of_8, sibling_product, softplus
from tests.mixers.gdn2.cases import DEVICE


@triton.jit
def _softplus(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, softplus(tl.load(x + at)))


@triton.jit
def _level_mask(y, M: tl.constexpr, C: tl.constexpr):
    r = tl.arange(0, C)
    tl.store(y + r[:, None] * C + r[None, :], level_mask(r, M).to(tl.int32))


@triton.jit
def _products(x, within, after, count, C: tl.constexpr, K: tl.constexpr):
    block, c = tl.arange(0, C // 8), tl.arange(0, K)
    upto, beyond = products_of_8(rows_of_8(x, block, c, count, K, K))
    for i in tl.static_range(8):
        at = (block * 8 + i)[:, None] * K + c[None, :]
        tl.store(within + at, upto[i])
        tl.store(after + at, beyond[i])


@triton.jit
def _sibling(whole, y, M: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    r, c = tl.arange(0, C), tl.arange(0, K)
    tl.store(y + r[:, None] * K + c[None, :], sibling_product(whole, r, c, M, K))


@triton.jit
def _norms(x, y, count, C: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    r = tl.arange(0, C)
    tl.store(y + r, reciprocal_norms(x, r, count, K, K, BK))


def test_softplus_keeps_its_digits_at_both_ends() -> None:
    x = torch.tensor([-80.0, -20.0, -3.0, 0.0, 3.0, 20.0, 80.0, 1e4], device=DEVICE)
    y = torch.empty_like(x)
    _softplus[(1,)](x, y, N=8)
    torch.testing.assert_close(y.double(), torch.nn.functional.softplus(x.double(), threshold=700), rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", [8, 16])
def test_a_level_pairs_rows_with_keys_of_the_block_to_their_left(m: int) -> None:
    y = torch.empty(32, 32, dtype=torch.int32, device=DEVICE)
    _level_mask[(1,)](y, M=m, C=32)
    expected = torch.zeros(32, 32, dtype=torch.int32)
    for start in range(0, 32, 2 * m):
        expected[start + m : start + 2 * m, start : start + m] = 1
    assert torch.equal(y.cpu(), expected)


def test_products_inside_a_block_of_8_end_with_the_whole_block() -> None:
    x = torch.rand(16, 16, device=DEVICE) + 0.5
    within, after = torch.empty_like(x), torch.empty_like(x)
    _products[(1,)](x, within, after, 16, C=16, K=16)
    blocks = x.unflatten(0, (2, 8)).double()
    torch.testing.assert_close(within.unflatten(0, (2, 8)).double(), blocks.cumprod(1), rtol=1e-6, atol=0)
    following = torch.cat([blocks[:, 1:], torch.ones_like(blocks[:, :1])], 1).flip(1).cumprod(1).flip(1)
    torch.testing.assert_close(after.unflatten(0, (2, 8)).double(), following, rtol=1e-6, atol=0)


def test_the_sibling_of_a_row_is_the_other_half_of_its_pair_of_blocks() -> None:
    whole = torch.rand(4, 16, device=DEVICE) + 0.5  # products over the blocks of 8 of 32 tokens
    y = torch.empty(32, 16, device=DEVICE)
    _sibling[(1,)](whole, y, M=16, C=32, K=16)
    halves = whole.unflatten(0, (2, 2)).prod(1)
    torch.testing.assert_close(y, torch.cat([halves[1].expand(16, 16), halves[0].expand(16, 16)]))


def test_norms_leave_out_rows_beyond_the_count() -> None:
    x = torch.randn(16, 24, device=DEVICE)
    y = torch.empty(16, device=DEVICE)
    _norms[(1,)](x, y, 10, C=16, K=24, BK=16)
    torch.testing.assert_close(y[:10], (x[:10].square().sum(1) + 1e-6).rsqrt())
    torch.testing.assert_close(y[10:], torch.full((6,), 1e3, device=DEVICE))  # 1 / √1e-6
