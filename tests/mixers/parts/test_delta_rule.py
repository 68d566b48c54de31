"""The delta-rule operators: against each other, against code that is not ours, and at decays that break others."""

import pytest
import torch
import torch.nn.functional as F

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule
from mixers.parts.delta_rule import UnitLowerInverse

F64, F32 = torch.float64, torch.float32


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def inputs(
    steps: int, batch: int = 2, heads: int = 2, value_heads: int = 2, k: int = 16, v: int = 24, dtype: torch.dtype = F64
) -> dict[str, torch.Tensor]:
    """q, k, v, g, b, w of gdn2, drawn in float64 so that every dtype gets the same numbers."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=F64)

    key, value = (batch, steps, heads, k), (batch, steps, value_heads, v)
    out = {
        "q": F.normalize(draw(*key), dim=-1),
        "k": F.normalize(draw(*key), dim=-1),
        "v": draw(*value),
        "g": -draw(*key).abs(),
        "b": draw(*key).sigmoid(),
        "w": draw(*value).sigmoid(),
    }
    return {name: x.to(dtype) for name, x in out.items()}


def brutal_decay(shape: tuple[int, ...]) -> torch.Tensor:
    """Every 7th step -50, every 11th step -1e4 on a third of the channels, else U(-0.5, 0)."""
    g = -0.5 * torch.rand(shape, dtype=F64)
    g[:, ::7] = -50
    g[:, ::11, :, ::3] = -1e4
    return g


@pytest.mark.parametrize("steps", [1, 5, 64, 150])
@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("value_heads", [2, 4])
def test_gdn2_chunked_equals_recurrent(steps: int, chunk_size: int, value_heads: int) -> None:
    # float64 rounds at 1e-16 and a few hundred sums stay far under 1e-9; fp32 rounds at 6e-8.
    for dtype, tolerance in ((F64, 1e-9), (F32, 1e-4)):
        torch.manual_seed(steps)
        x = inputs(steps, value_heads=value_heads, dtype=dtype)
        state = torch.randn(2, value_heads, 16, 24, dtype=F64).to(dtype)
        o, s = gated_delta_rule_2(
            **x, initial_state=state, output_final_state=True, chunk_size=chunk_size, backend="chunked"
        )
        exact = {name: value.double() for name, value in x.items()}
        o_ref, s_ref = gated_delta_rule_2(
            **exact, initial_state=state.double(), output_final_state=True, backend="recurrent"
        )
        assert relative(o, o_ref) < tolerance
        assert relative(s, s_ref) < tolerance


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


@pytest.mark.parametrize("decay", ["brutal", "all at once", "none"])
def test_gdn2_is_exact_at_any_decay_in_outputs_state_and_gradients(decay: str) -> None:
    x = inputs(200, k=16, v=16)
    x["g"] = {
        "brutal": brutal_decay((2, 200, 2, 16)),
        "all at once": torch.full((2, 200, 2, 16), -1e4, dtype=F64),
        "none": torch.zeros(2, 200, 2, 16, dtype=F64),
    }[decay]
    results = []
    for dtype, backend in ((F64, "recurrent"), (F32, "chunked")):
        leaves = {name: value.detach().clone().to(dtype).requires_grad_() for name, value in x.items()}
        torch.manual_seed(1)
        state = torch.randn(2, 2, 16, 16, dtype=F64).to(dtype).requires_grad_()
        o, s = gated_delta_rule_2(**leaves, initial_state=state, output_final_state=True, backend=backend)
        weights = torch.randn(o.shape, dtype=F64).to(dtype), torch.randn(s.shape, dtype=F64).to(dtype)
        ((o * weights[0]).sum() + (s * weights[1]).sum()).backward()
        results.append({"o": o, "state": s, "d state": state.grad} | {n: leaf.grad for n, leaf in leaves.items()})
    for name, expected in results[0].items():
        got = results[1][name]
        assert torch.isfinite(got).all(), name
        # 2e-6: sums of one sign keep fp32's 6e-8 through some 30 accumulations; differences would stand at 1e-3.
        scale = expected.norm()
        assert (got.double() - expected).norm() <= 2e-6 * scale + 1e-30, name


def test_gdn2_with_tied_gates_is_kda_and_with_a_scalar_decay_gated_deltanet() -> None:
    x = inputs(100, k=16, v=16)
    beta = torch.rand(2, 100, 2, dtype=F64)
    tied = beta[..., None].expand(2, 100, 2, 16)
    scalar = x["g"][..., :1]
    for backend in ("recurrent", "chunked"):
        o, s = gated_delta_rule_2(**(x | {"b": tied, "w": tied}), output_final_state=True, backend=backend)
        o_kda, s_kda = kimi_delta_rule(x["q"], x["k"], x["v"], x["g"], beta, backend=backend)
        torch.testing.assert_close(o, o_kda, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(s, s_kda, rtol=1e-12, atol=1e-13)
        o_kda, s_kda = kimi_delta_rule(x["q"], x["k"], x["v"], scalar.expand_as(x["g"]), beta, backend=backend)
        o_gdn, s_gdn = gated_delta_rule(x["q"], x["k"], x["v"], scalar.squeeze(-1), beta, backend=backend)
        torch.testing.assert_close(o_gdn, o_kda, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(s_gdn, s_kda, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_operators_agree_with_flash_linear_attention(backend: str) -> None:
    """fla's naive operators are torch code by other hands; they compute in fp32, hence 1e-5."""
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
        # bf16 activations go in as they are, and the output comes back in v's dtype.
        with torch.autocast("cpu", torch.bfloat16):
            o, state = operator(*(t.bfloat16() for t in arguments))
        assert (o.dtype, state.dtype) == (torch.bfloat16, F32)


def test_gradients_through_output_and_state_of_one_scan_are_those_of_autograd() -> None:
    """ChunkScan's gradient is written by hand; here it meets several chunks, a padded one and both decay shapes."""
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


@pytest.mark.parametrize("value_heads", [1, 2])
def test_gdn2_chunked_gradients_are_those_of_its_values(value_heads: int) -> None:
    x = inputs(11, batch=1, heads=1, value_heads=value_heads, k=3, v=2)
    state = torch.randn(1, value_heads, 3, 2, dtype=F64)

    def run(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *tensors, s = args
        return gated_delta_rule_2(*tensors, initial_state=s, output_final_state=True, chunk_size=4, backend="chunked")

    assert torch.autograd.gradcheck(run, tuple(t.requires_grad_() for t in (*x.values(), state)))


def test_kda_and_gated_deltanet_gradients_are_those_of_their_values() -> None:
    x = inputs(9, batch=1, heads=1, value_heads=2, k=3, v=2)
    beta = torch.rand(1, 9, 2, dtype=F64)
    g = -torch.rand(1, 9, 2, 3, dtype=F64)
    args = [t.requires_grad_() for t in (x["q"], x["k"], x["v"], g, beta)]
    assert torch.autograd.gradcheck(lambda *a: kimi_delta_rule(*a, chunk_size=4), args)
    args[3] = g[..., 0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: gated_delta_rule(*a, chunk_size=4), args)


def test_triangular_inverse_inverts_and_differentiates() -> None:
    t = torch.randn(3, 8, 8, dtype=F64).tril(-1).requires_grad_()
    identity = torch.eye(8, dtype=F64)
    torch.testing.assert_close(UnitLowerInverse.apply(t) @ (identity + t), identity.expand(3, 8, 8))
    assert torch.autograd.gradcheck(lambda m: UnitLowerInverse.apply(m.tril(-1)), (t,))


def test_packed_sequences_do_not_see_each_other() -> None:
    x = inputs(60, batch=1)
    offsets = torch.tensor([0, 7, 8, 40, 60])
    state = torch.randn(4, 2, 16, 24, dtype=F64)
    o, s = gated_delta_rule_2(**x, initial_state=state, output_final_state=True, cu_seqlens=offsets)
    for i, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        alone = {name: value[:, a:b] for name, value in x.items()}
        o_i, s_i = gated_delta_rule_2(**alone, initial_state=state[i : i + 1], output_final_state=True)
        torch.testing.assert_close(o[:, a:b], o_i, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(s[i : i + 1], s_i, rtol=1e-12, atol=1e-14)


def test_l2_normalisation_and_scale_are_what_they_say() -> None:
    x = inputs(20)
    plain = gated_delta_rule_2(**x)[0]
    torch.testing.assert_close(gated_delta_rule_2(**x, scale=1.0)[0], plain * 4)  # 16^-1/2 is the default
    longer = x | {"q": 3 * x["q"], "k": 5 * x["k"]}
    # 1e-5: normalisation adds eps = 1e-6 under the root.
    torch.testing.assert_close(gated_delta_rule_2(**longer, use_qk_l2norm=True)[0], plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 5, 2, 8)}, r"k: expected \[2, 5, 2, 16\].*got \[2, 5, 2, 8\]"),
        ({"w": torch.zeros(2, 5, 2, 1)}, r"w: expected \[2, 5, 2, 24\]"),
        ({"v": torch.zeros(2, 5, 3, 24)}, r"v: expected .* HV a multiple of 2"),
        ({"g": torch.zeros(2, 5, 2, 16, dtype=torch.long)}, r"g: expected a floating dtype, got torch.int64"),
        ({"q": torch.zeros(2, 0, 2, 16)}, r"q: expected a non-empty"),
        ({"chunk_size": 48}, r"chunk_size: expected a power of two, got 48"),
        ({"backend": "fast"}, r"backend: expected auto, recurrent, chunked or triton, got 'fast'"),
        ({"initial_state": torch.zeros(1, 2, 16, 24)}, r"initial_state: expected \[2, 2, 16, 24\]"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens: packed sequences need a batch of 1, got 2"),
    ],
)
def test_input_outside_the_contract_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated_delta_rule_2(**(inputs(5, dtype=F32) | change))
