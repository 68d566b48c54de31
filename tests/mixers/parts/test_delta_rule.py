"""The delta rule in torch, through the three operators that share it: forms, gradients, autocast and fla's code."""

import pytest
import torch

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule
from tests.mixers.parts.cases import F32, F64, brutal_decay, inputs, relative


@pytest.mark.parametrize("steps", [1, 33, 150])
@pytest.mark.parametrize("value_heads", [2, 4])
def test_kda_and_gated_deltanet_chunked_equal_recurrent(steps: int, value_heads: int) -> None:
    for dtype, tolerance in ((F64, 1e-9), (F32, 1e-4)):
        torch.manual_seed(steps)
        x = inputs(steps, value_heads=value_heads, dtype=dtype)
        beta = torch.rand(2, steps, value_heads, dtype=F64).to(dtype)
        channel = brutal_decay((2, steps, value_heads, 16)).to(dtype)
        state = torch.randn(2, value_heads, 16, 24, dtype=F64).to(dtype)
        for operator, g in ((kimi_delta_rule, channel), (gated_delta_rule, channel[..., 0])):
            arguments = (x["q"], x["k"], x["v"], g, beta)
            o, s = operator(*arguments, initial_state=state, chunk_size=32)
            exact = [t.double() for t in arguments]
            o_ref, s_ref = operator(*exact, initial_state=state.double(), backend="recurrent")
            assert relative(o, o_ref) < tolerance
            assert relative(s, s_ref) < tolerance


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_operators_agree_with_flash_linear_attention(backend: str) -> None:
    """fla's naive operators are independent torch code. They compute in fp32, hence 1e-5."""
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gdn2.naive import naive_recurrent_gdn2
    from fla.ops.kda.naive import naive_recurrent_kda

    x = inputs(128, k=16, v=16, dtype=F32)
    state = torch.randn(2, 2, 16, 16)
    beta = torch.rand(2, 128, 2)
    o, s = gated_delta_rule_2(**x, initial_state=state, output_final_state=True, backend=backend)
    o_fla, s_fla = naive_recurrent_gdn2(**x, initial_state=state, output_final_state=True)
    assert relative(o, o_fla) < 1e-5 and relative(s, s_fla) < 1e-5
    q, k, v, g = (x[name] for name in "qkvg")
    o, s = kimi_delta_rule(q, k, v, g, beta, initial_state=state, backend=backend)
    o_fla, s_fla = naive_recurrent_kda(q, k, v, g, beta, initial_state=state, output_final_state=True)
    assert relative(o, o_fla) < 1e-5 and relative(s, s_fla) < 1e-5
    g = g[..., 0]
    o, s = gated_delta_rule(q, k, v, g, beta, initial_state=state, backend=backend)
    o_fla, s_fla = naive_recurrent_gated_delta_rule(q, k, v, beta, g, initial_state=state, output_final_state=True)
    assert relative(o, o_fla) < 1e-5 and relative(s, s_fla) < 1e-5


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_autocast_reaches_neither_the_operators_nor_their_gradients(backend: str) -> None:
    x = inputs(40, value_heads=4, dtype=F32)
    beta = torch.rand(2, 40, 4)
    channel = -torch.rand(2, 40, 4, 16)
    q, k, v = x["q"], x["k"], x["v"]
    cases = (
        (lambda *a: gated_delta_rule_2(*a, output_final_state=True, backend=backend), list(x.values())),
        (lambda *a: kimi_delta_rule(*a, backend=backend), [q, k, v, channel, beta]),
        (lambda *a: gated_delta_rule(*a, backend=backend), [q, k, v, channel[..., 0], beta]),
    )
    for operator, arguments in cases:
        leaves = [t.clone().requires_grad_() for t in arguments]
        expected = operator(*leaves)
        with torch.autocast("cpu", torch.bfloat16):
            results = operator(*leaves)
        assert results[1].dtype == F32
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
        expected_grads = torch.autograd.grad(sum(t.square().sum() for t in expected), leaves)
        grads = torch.autograd.grad(sum(t.square().sum() for t in results), leaves)
        assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))
        # bf16 activations are accepted as they are, and the output has v's dtype.
        with torch.autocast("cpu", torch.bfloat16):
            o, state = operator(*(t.bfloat16() for t in arguments))
        assert (o.dtype, state.dtype) == (torch.bfloat16, F32)


def test_gradients_through_output_and_state_of_one_scan_are_those_of_autograd() -> None:
    """It is written by hand. Several chunks, a padded one and both shapes of decay test it."""
    x = inputs(37, batch=2, heads=2, value_heads=2)
    beta = torch.rand(2, 37, 2, dtype=F64)
    state = torch.randn(2, 2, 16, 24, dtype=F64)
    for operator, g in ((kimi_delta_rule, x["g"]), (gated_delta_rule, x["g"][..., 0])):
        leaves = [t.clone().requires_grad_() for t in (x["q"], x["k"], x["v"], g, beta, state)]
        grads = []
        for backend in ("recurrent", "chunked"):
            o, s = operator(*leaves[:5], initial_state=leaves[5], chunk_size=8, backend=backend)
            grads.append(torch.autograd.grad(o.sin().sum() + s.cos().sum(), leaves))
        for a, b in zip(*grads, strict=True):
            assert relative(b, a) < 1e-9  # float64: some hundred sums at 1e-16


def test_kda_and_gated_deltanet_gradients_are_those_of_their_values() -> None:
    x = inputs(9, batch=1, heads=1, value_heads=2, k=3, v=2)
    beta = torch.rand(1, 9, 2, dtype=F64)
    g = -torch.rand(1, 9, 2, 3, dtype=F64)
    args = [t.requires_grad_() for t in (x["q"], x["k"], x["v"], g, beta)]
    assert torch.autograd.gradcheck(lambda *a: kimi_delta_rule(*a, chunk_size=4), args)
    args[3] = g[..., 0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: gated_delta_rule(*a, chunk_size=4), args)
