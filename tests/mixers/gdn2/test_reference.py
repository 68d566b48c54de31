"""GDN-2's torch forms: the chunked form against the recurrence, in values and gradients, at any decay."""

import pytest
import torch

from mixers.gdn2 import gated_delta_rule_2
from tests.mixers.parts.cases import F32, F64, brutal_decay, inputs, relative


@pytest.mark.parametrize("steps", [1, 5, 64, 150])
@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("value_heads", [2, 4])
def test_chunked_equals_recurrent(steps: int, chunk_size: int, value_heads: int) -> None:
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


@pytest.mark.parametrize("decay", ["brutal", "all at once", "none"])
def test_chunks_are_exact_at_any_decay_in_outputs_state_and_gradients(decay: str) -> None:
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
        # 2e-6: sums of one sign keep fp32's 6e-8 over about 30 accumulations; differences of sums would cost 1e-3.
        scale = expected.norm()
        assert (got.double() - expected).norm() <= 2e-6 * scale + 1e-30, name


@pytest.mark.parametrize("value_heads", [1, 2])
def test_chunked_gradients_are_those_of_its_values(value_heads: int) -> None:
    x = inputs(11, batch=1, heads=1, value_heads=value_heads, k=3, v=2)
    state = torch.randn(1, value_heads, 3, 2, dtype=F64)

    def run(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *tensors, s = args
        return gated_delta_rule_2(*tensors, initial_state=s, output_final_state=True, chunk_size=4, backend="chunked")

    assert torch.autograd.gradcheck(run, tuple(t.requires_grad_() for t in (*x.values(), state)))
