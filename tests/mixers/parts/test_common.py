"""Convolution, norms, time steps and checks that mixers share, against torch and their definitions."""

import pytest
import torch
import torch.nn.functional as F

from mixers.parts.common import (
    DepthwiseConvolution,
    Normalise,
    RMSNorm,
    ShortConvolution,
    accumulator_dtype,
    inverse_softplus_dt,
    is_power_of_two,
    l2_normalise,
    require,
)


def test_accumulators_have_at_least_32_bits() -> None:
    half, double = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)
    assert accumulator_dtype(half) == torch.float32
    assert accumulator_dtype(half, double) == torch.float64


@pytest.mark.parametrize("bias", [False, True])
def test_the_convolution_is_causal_per_channel_and_resumes_from_its_tail(bias: bool) -> None:
    conv = ShortConvolution(3, width=4, bias=bias)
    x = torch.randn(2, 9, 3)
    whole, tail = conv(x)
    reference = torch.nn.Conv1d(3, 3, 4, padding=3, groups=3, bias=bias)
    reference.load_state_dict(conv.state_dict())
    torch.testing.assert_close(whole, F.silu(reference(x.transpose(1, 2)))[..., :9].transpose(1, 2))
    assert torch.equal(tail, x[:, -3:])
    outputs, tail = [], None
    for piece in x.split([1, 1, 5, 2], 1):
        y, tail = conv(piece, tail)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)


@pytest.mark.parametrize(("steps", "width"), [(2, 1), (2, 4), (5, 3)])
def test_the_convolution_keeps_its_last_inputs_and_differentiates(steps: int, width: int) -> None:
    x = torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(width, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DepthwiseConvolution.apply, (x, taps))
    _, tail = ShortConvolution(3, width).double()(x)
    assert torch.equal(tail, F.pad(x, (0, 0, width, 0))[:, steps + 1 :])


def test_the_convolution_starts_within_one_over_the_root_of_its_width() -> None:
    weight = ShortConvolution(1000, width=4).weight
    assert 0.49 < weight.abs().max() <= 0.5


def test_rms_norm_works_in_fp32_and_keeps_the_dtype() -> None:
    norm = RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 8)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-5))
    y = norm(300 * x.half())  # 300² overflows fp16
    assert y.dtype == torch.float16 and y.isfinite().all()


def test_normalised_vectors_have_length_1_and_zero_stays_zero() -> None:
    x = torch.randn(4, 16)
    torch.testing.assert_close(l2_normalise(x).norm(dim=-1), torch.ones(4))
    assert torch.equal(l2_normalise(torch.zeros(2, 16)), torch.zeros(2, 16))


def test_the_gradient_of_a_norm_is_that_of_its_values() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    for share in (1.0, 0.2):
        assert torch.autograd.gradcheck(lambda t, share=share: Normalise.apply(t, share, 1e-3), (x,))


def test_initial_time_steps_lie_in_their_range() -> None:
    dt = F.softplus(inverse_softplus_dt(1000).double())
    assert 0.00099 < dt.min() < 0.0012 and 0.09 < dt.max() < 0.101


def test_powers_of_two_and_broken_requirements() -> None:
    assert [size for size in range(-2, 20) if is_power_of_two(size)] == [1, 2, 4, 8, 16]
    require(True, "unused")
    with pytest.raises(ValueError, match="width: 3 is odd; choose an even one"):
        require(False, "width: 3 is odd; choose an even one")
