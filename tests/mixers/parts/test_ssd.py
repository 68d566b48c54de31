"""The scan of Mamba-2 and Mamba-3: chunks against the recurrence, its matrix form, gradients and extreme decays."""

from __future__ import annotations

import pytest
import torch

from mixers.parts.ssd import ssd_chunked, ssd_recurrent
from tests.mixers.mamba import error

# groups, rank, trapezoidal: Mamba-2 with one and two groups, Mamba-3 SISO, Mamba-3 MIMO.
SCANS = ((1, 1, False), (2, 1, False), (4, 1, True), (4, 3, True))


def scan_inputs(groups, rank, trapezoidal, steps, dtype=torch.float64, seed=0, width=6, size=8, heads=4, batch=2):
    """Return the positional arguments of the scans, initial state included."""
    torch.manual_seed(seed)
    x = torch.randn(batch, steps, heads, rank, width, dtype=dtype)
    log_decay = -torch.rand(batch, steps, heads, dtype=dtype) * 2
    now, before = torch.rand(2, batch, steps, heads, dtype=dtype)
    B, C = torch.randn(2, batch, steps, groups, rank, size, dtype=dtype)
    state = torch.randn(batch, heads, width, size, dtype=dtype)
    previous = (torch.randn_like(x[:, 0]), torch.randn_like(B[:, 0]))
    return [x, log_decay, now, B, C, state, *((before, previous) if trapezoidal else (None, None))]


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("steps", [1, 7, 16, 37])
def test_chunks_give_what_the_recurrence_gives(scan, steps):
    args = scan_inputs(*scan, steps)
    expected = ssd_recurrent(*args)
    for actual, wanted in zip(ssd_chunked(*args, chunk_size=8), expected, strict=True):
        assert error(actual, wanted) < 1e-9  # the project's bound for fp64; rounding alone is about 1e-15
    single = [t.float() if isinstance(t, torch.Tensor) else t and tuple(p.float() for p in t) for t in args]
    for actual, wanted in zip(ssd_chunked(*single, chunk_size=8), expected, strict=True):
        assert actual.dtype == torch.float32
        assert error(actual, wanted) < 1e-4  # the project's bound for fp32


@pytest.mark.parametrize("scan", SCANS)
def test_extreme_decays_are_exact_with_finite_gradients(scan):
    args = scan_inputs(*scan, 37)
    choices = torch.tensor([0.0, 0.0, -1e-3, -1.0, -50.0, -1e4], dtype=torch.float64)
    args[1] = choices[torch.randint(len(choices), args[1].shape)]
    expected, expected_state = ssd_recurrent(*args)
    y, state = ssd_chunked(*args, chunk_size=16)
    assert error(y, expected) < 1e-9 and error(state, expected_state) < 1e-9
    leaves = [t.float().requires_grad_() for t in args[:6]]
    rest = [args[6] if args[6] is None else args[6].float(), args[7] and tuple(t.float() for t in args[7])]
    y, state = ssd_chunked(*leaves, *rest, chunk_size=16)
    assert error(y, expected) < 1e-4 and error(state, expected_state) < 1e-4
    gradients = torch.autograd.grad(y.sum() + state.sum(), leaves)
    doubles = [t.double().detach().requires_grad_() for t in leaves]
    reference = ssd_recurrent(*doubles, *args[6:])
    wanted = torch.autograd.grad(reference[0].sum() + reference[1].sum(), doubles)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.isfinite().all()
        assert error(gradient, want) < 1e-4  # fp32 rounding over sums of 37 tokens


@pytest.mark.parametrize("groups", [1, 2])
def test_the_scan_is_one_product_with_a_masked_decay_matrix(groups):
    """State space duality: y = (exp(segment sums) ∘ C Bᵀ) (dt x), every entry from the definition."""
    x, g, dt, B, C, *_ = scan_inputs(groups, 1, False, 21)
    steps, heads = g.shape[1:]
    M = torch.zeros(x.shape[0], heads, steps, steps, dtype=torch.float64)
    for h in range(heads):
        group = h * groups // heads
        for t in range(steps):
            for s in range(t + 1):
                product = (C[:, t, group, 0] * B[:, s, group, 0]).sum(-1)
                M[:, h, t, s] = g[:, s + 1 : t + 1, h].sum(-1).exp() * product * dt[:, s, h]
    y, _ = ssd_chunked(x, g, dt, B, C, chunk_size=8)
    assert error(y.squeeze(3), torch.einsum("bhts,bshp->bthp", M, x.squeeze(3))) < 1e-12


@pytest.mark.parametrize("scan", SCANS)
def test_gradients_of_the_chunked_scan_pass_gradcheck(scan):
    args = scan_inputs(*scan, 5, width=2, size=2, batch=1)
    leaves = [t.requires_grad_() for t in args[:6]]
    if scan[2]:
        leaves += [args[6].requires_grad_(), *(t.requires_grad_() for t in args[7])]

    def chunked(*t):
        return ssd_chunked(*t[:6], *((t[6], t[7:]) if scan[2] else ()), chunk_size=2)

    assert torch.autograd.gradcheck(chunked, leaves)


@pytest.mark.parametrize("scan", SCANS)
def test_autocast_does_not_reach_the_scan(scan):
    args = [t.float() if isinstance(t, torch.Tensor) else t for t in scan_inputs(*scan, 20)]
    for form in (ssd_recurrent, ssd_chunked):
        expected = form(*args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(form(*args), expected, strict=True))
