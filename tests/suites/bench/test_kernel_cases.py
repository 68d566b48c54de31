"""Cases of the kernel benchmarks: their plan, their floors of bytes and FLOPs, and errors against float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule
from suites.bench.gpu_kernels import WRONG
from suites.bench.kernel_cases import (
    AS_LAYER,
    BOTH,
    CHUNKED,
    DECODE,
    FORWARD,
    LAYER,
    OPERATORS,
    Case,
    byte_floor,
    case_errors,
    chunk_flops,
    draw_inputs,
    input_shapes,
    inputs_of,
    our_layer_call,
    plan,
    relative_errors,
)

SMALL = Case(steps=40, batch=1, heads=2, value_heads=4, key_dim=16, value_dim=8)


def test_the_plan_covers_lengths_decoding_and_head_shapes_with_equal_tokens() -> None:
    units = plan()
    assert len(units) == len(set(units)) == 2 * 5 + 2 + 4 + 2 * 3
    assert {case.steps * case.batch for case, direction in units if direction != DECODE} == {32768}
    assert {case.batch for case, direction in units if direction == DECODE} == {1, 8, 64, 256}


def test_floors_count_bytes_and_flops_once() -> None:
    case = Case(steps=64, batch=1, heads=1, value_heads=1, key_dim=128, value_dim=128)
    tokens, wide = 64, 128
    # Per channel and token: q, k, b, v, w and o of two bytes, g of four.
    assert byte_floor("gdn2", case, FORWARD) == tokens * wide * (6 * 2 + 4)
    assert byte_floor("kda", case, FORWARD) == tokens * (wide * (4 * 2 + 4) + 2)
    assert byte_floor("gated_deltanet", case, FORWARD) == tokens * (wide * 4 * 2 + 4 + 2)
    assert byte_floor("gdn2", case, BOTH) == 2 * byte_floor("gdn2", case, FORWARD)
    assert byte_floor("gdn2", replace(case, steps=1, batch=8), DECODE) == 8 * 2 * 4 * 128 * 128
    # One chunk: five products of 64·64·128 (T, Aqk, Y, U, Aqk R), three of 64·128·128, and the inverse.
    forward = 2 * (5 * 64 * 64 * 128 + 3 * 64 * 128 * 128) + 64**3 / 3
    assert chunk_flops(case, FORWARD) == pytest.approx(forward)
    assert chunk_flops(case, BOTH) == pytest.approx(3 * forward)


@pytest.mark.parametrize("direction", [FORWARD, BOTH, DECODE])
@pytest.mark.parametrize(
    ("form", "call"),
    [
        (CHUNKED[0], partial(gated_delta_rule_2, backend="chunked", chunk_size=16)),
        (CHUNKED[2], partial(kimi_delta_rule, chunk_size=16)),
        (CHUNKED[3], partial(gated_delta_rule, chunk_size=16)),
    ],
    ids=["gdn2", "kda", "gated_deltanet"],
)
def test_a_right_implementation_is_within_the_bound_in_bf16(form, call, direction: str) -> None:
    case = replace(SMALL, steps=1) if direction == DECODE else SMALL
    errors = case_errors(form, call, case, direction, "cpu")
    present = [error for error in errors.values() if error is not None]
    assert len(present) == (1 if direction == FORWARD else 2)
    # The output is rounded to bf16, so its error is not zero; the state of a decoding step stays in fp32.
    assert errors["output_error"] > 1e-4 and max(present) < WRONG / 3


def test_the_layers_call_is_right_and_its_floor_has_the_decay_in_16_bits() -> None:
    errors = case_errors(LAYER[0], partial(our_layer_call, backend="chunked"), SMALL, AS_LAYER, "cpu")
    assert 1e-4 < errors["output_error"] < WRONG / 3 and errors["gradient_error"] < WRONG / 3
    case = Case(steps=64, batch=1, heads=1, value_heads=1, key_dim=128, value_dim=128)
    assert byte_floor("gdn2", case, AS_LAYER) == 2 * (64 * 128 * 7 * 2 + 4 + 4 * 128)


def scaled_gdn2(q, k, v, g, b, w, factor: float):
    """Gated Delta Rule-2 with its output scaled."""
    o, state = gated_delta_rule_2(q, k, v, g, b, w, backend="chunked", chunk_size=16)
    return factor * o, state


def test_a_scaled_output_is_wrong_by_its_scale() -> None:
    errors = case_errors(CHUNKED[0], partial(scaled_gdn2, factor=1.1), SMALL, BOTH, "cpu")
    assert errors["output_error"] == pytest.approx(0.1, rel=0.1)
    assert errors["gradient_error"] == pytest.approx(0.1, rel=0.1)
    assert errors["state_error"] is None


def test_a_result_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        case_errors(CHUNKED[0], partial(scaled_gdn2, factor=float("nan")), SMALL, FORWARD, "cpu")


def test_inputs_have_the_shapes_and_bytes_that_the_floors_count() -> None:
    drawn = draw_inputs(SMALL, "cpu", seed=0)
    for name, (shape, size) in input_shapes(SMALL).items():
        assert (drawn[name].shape, drawn[name].element_size()) == (shape, size), name
    used = {name for o in OPERATORS.values() for name in o.arguments.values()}
    assert used | set(inputs_of("gdn2", AS_LAYER).values()) == input_shapes(SMALL).keys()
    assert all((drawn[name] < 0).all() for name in ("g", "value_g", "head_g"))
    # bf16 rounds each of the 16 entries by 4e-3 at most.
    torch.testing.assert_close(drawn["q"].float().norm(dim=-1), torch.ones(1, 40, 2), atol=4e-3, rtol=0)
    assert all(torch.equal(x, drawn[name]) for name, x in draw_inputs(SMALL, "cpu", seed=0).items())


def test_an_error_is_relative_to_the_norm_of_the_exact_result() -> None:
    exact = [torch.tensor([3.0, 4.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    assert relative_errors([torch.tensor([3.0, 4.5])], exact) == [0.1]
