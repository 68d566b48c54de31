"""GDN-2's chunked kernels against the float64 recurrence, on a GPU or under Triton's interpreter on a CPU."""

import pytest
import torch

from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.chunk import chunk_size_for, compute_dtype
from tests.mixers.gdn2.cases import (
    DECAYS,
    DEVICE,
    GRADIENT,
    OUTPUT,
    errors,
    evaluate,
    inputs,
    products_in_tf32x3,
    worst,
)

pytestmark = pytest.mark.long

# 16-bit inputs pass about five roundings on the way to an output and ten on the way to a gradient. Triton's interpreter
# truncates where hardware rounds, which doubles each of them: 2 and 4 steps of the dtype.
OUTPUT_STEPS, GRADIENT_STEPS = 2, 4


def within_fp32(measured: dict[str, float]) -> None:
    output, gradient = worst(measured)
    assert output < OUTPUT, measured
    assert gradient < GRADIENT, measured


@pytest.mark.parametrize("decay", DECAYS)
def test_every_output_and_gradient_is_exact_at_any_decay(decay: str) -> None:
    within_fp32(errors(inputs(80, decay=decay, device=DEVICE)))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_cost_their_own_rounding_and_no_more(decay: str, dtype: torch.dtype) -> None:
    # After a step of -50 the initial state's gradient is 1e-22, too small for fp16.
    found = errors(inputs(70, K=16, V=16, decay=decay, dtype=dtype, device=DEVICE), torch.finfo(dtype).smallest_normal)
    output, gradient = worst(found)
    assert output < OUTPUT_STEPS * torch.finfo(dtype).eps, found
    assert gradient < GRADIENT_STEPS * torch.finfo(dtype).eps, found


@pytest.mark.parametrize(
    "steps,chunk_size", [(1, 64), (2, 16), (15, 64), (16, 16), (17, 64), (33, 32), (64, 64), (65, 64), (130, 32)]
)
def test_any_length_and_chunk_size(steps: int, chunk_size: int) -> None:
    within_fp32(errors(inputs(steps, value_heads=1, K=16, V=16, decay="brutal", device=DEVICE), chunk_size=chunk_size))


@pytest.mark.parametrize(
    "batch,heads,value_heads,K,V",
    [(2, 2, 2, 16, 16), (2, 1, 3, 20, 24), (1, 2, 4, 80, 40), (1, 1, 1, 256, 16), (1, 1, 1, 16, 256)],
)
def test_any_head_shape_and_grouping(batch: int, heads: int, value_heads: int, K: int, V: int) -> None:
    x = inputs(21, batch=batch, heads=heads, value_heads=value_heads, K=K, V=V, device=DEVICE)
    within_fp32(errors(x, chunk_size=16))


@pytest.mark.parametrize("chunk_size", [16, 64])
def test_packed_sequences_see_nothing_of_each_other(chunk_size: int) -> None:
    # One token, a chunk and a token, the same again, and a border inside every chunk of the whole.
    offsets = torch.tensor([0, 1, 18, 35, 100], device=DEVICE)
    x = inputs(100, sequences=4, K=16, V=16, decay="brutal", device=DEVICE)
    within_fp32(errors(x, cu_seqlens=offsets, chunk_size=chunk_size))


@pytest.mark.parametrize("K,steps", [(16, 20), (48, 70)])
def test_normalisation_and_activations_inside(K: int, steps: int) -> None:
    x = inputs(steps, heads=2, value_heads=2, K=K, V=16, device=DEVICE, unit=False)
    x["g"], x["b"], x["w"] = x["g"] * 3 + 2, x["b"] * 8 - 4, x["w"] * 8 - 4  # as large as projections may be
    x["A_log"] = torch.tensor([0.1, 2.5], device=DEVICE)
    x["dt_bias"] = torch.linspace(-7, 1, 2 * K, device=DEVICE)
    found = errors(x, use_qk_l2norm=True, erase_range=2.0)
    assert {"d_A_log", "d_dt_bias"} <= set(found)
    within_fp32(found)


def test_a_scale_of_ones_choice_and_no_gradient_where_none_is_asked() -> None:
    x = inputs(20, value_heads=1, K=16, V=16, device=DEVICE)
    within_fp32(errors(x, scale=-3.0, use_qk_l2norm=True))
    q = x["q"].requires_grad_()
    o, state = gated_delta_rule_2(**x, output_final_state=True, backend="triton")
    state.sum().backward()  # o takes no part
    assert torch.isfinite(q.grad).all()
    assert q.grad.abs().max() == 0  # a state does not depend on who reads it
    assert x["k"].grad is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the products are emulated under the interpreter")
def test_products_in_tf32x3_keep_the_bounds_of_fp32() -> None:
    with products_in_tf32x3():
        within_fp32(errors(inputs(80, decay="brutal")))


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "b", "w"])
def test_no_bit_of_an_output_depends_on_a_later_token_not_even_on_its_gates(name: str) -> None:
    x = inputs(40, value_heads=1, K=16, V=16, decay="brutal", device=DEVICE)
    changed = x | {name: x[name].clone()}
    changed[name][:, 21:] = 2 * x[name][:, 21:] - 1 if name != "g" else 0.0
    with torch.no_grad():
        before, after = (gated_delta_rule_2(**t, backend="triton", chunk_size=64)[0] for t in (x, changed))
    assert torch.equal(before[:, :21], after[:, :21]) and not torch.equal(before[:, 21:], after[:, 21:])


def test_the_same_bits_every_time() -> None:
    x = inputs(70, K=16, V=16, device=DEVICE)
    first, second = (evaluate(x, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_inputs_of_different_dtypes_and_strides() -> None:
    x = inputs(20, value_heads=1, K=16, V=16, device=DEVICE)
    x["q"] = x["q"].bfloat16()
    x["v"] = x["v"].transpose(1, 3).contiguous().transpose(1, 3)
    found = errors(x)
    assert max(error for name, error in found.items() if name != "d_q") < GRADIENT
    assert found["d_q"] < torch.finfo(torch.bfloat16).eps  # rounded once, on the way out


def test_chunks_are_no_longer_than_the_longest_sequence_and_short_in_fp32() -> None:
    assert [chunk_size_for(64, longest, torch.bfloat16) for longest in (1, 17, 33, 1000)] == [16, 32, 64, 64]
    assert chunk_size_for(64, 1000, torch.float32) == 16


def test_products_are_in_16_bits_only_if_all_operands_share_a_16_bit_dtype() -> None:
    half, brain, single = (torch.zeros(1, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    assert compute_dtype(brain, brain) == torch.bfloat16 and compute_dtype(half, half) == torch.float16
    assert compute_dtype(brain, half) == compute_dtype(brain, single) == compute_dtype(single) == torch.float32
