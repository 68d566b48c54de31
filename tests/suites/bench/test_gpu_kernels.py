"""The benchmarks of a GPU, in what a CPU can check: what is counted and what is said."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule
from suites.bench import gpu_kernels
from suites.bench.gpu_kernels import BOTH, CHUNKED, DECODE, FORWARD, LENGTHS, WRONG, Case

CEILINGS = {"copy_bytes_per_s": 4e12, "matmul_flop_per_s": 8e14}
BIRTH = {"device": "a device", "version_torch": "2", "version_triton": "3", "version_fla": None, "git_commit": None}
SMALL = Case(steps=40, batch=1, heads=2, value_heads=4, key_dim=16, value_dim=8)


def made_rows(direction: str, case: Case) -> list[dict]:
    """Rows as a measurement gives them: implementation i took i + 1 ms."""
    return [
        gpu_kernels.identity(form, case, direction)
        | CEILINGS
        | BIRTH
        | {"output_error": 4e-3, "peak_memory_bytes": 2**30, "host_ms": 0.5}
        | gpu_kernels.summary(form, case, direction, [i + 0.9, i + 1.0, i + 1.1], CEILINGS)
        for i, form in enumerate(gpu_kernels.implementations(direction))
    ]


def test_the_plan_covers_lengths_decoding_and_head_shapes_with_equal_tokens() -> None:
    plan = gpu_kernels.plan()
    assert len(plan) == len(set(plan)) == 2 * 5 + 4 + 2 * 3
    assert {case.steps * case.batch for case, direction in plan if direction != DECODE} == {32768}
    assert {case.batch for case, direction in plan if direction == DECODE} == {1, 8, 64, 256}


def test_floors_count_bytes_and_flops_once() -> None:
    case = Case(steps=64, batch=1, heads=1, value_heads=1, key_dim=128, value_dim=128)
    tokens, wide = 64, 128
    # Per channel and token: q, k, b, v, w and o of two bytes, g of four.
    assert gpu_kernels.byte_floor("gdn2", case, FORWARD) == tokens * wide * (6 * 2 + 4)
    assert gpu_kernels.byte_floor("kda", case, FORWARD) == tokens * (wide * (4 * 2 + 4) + 2)
    assert gpu_kernels.byte_floor("gated_deltanet", case, FORWARD) == tokens * (wide * 4 * 2 + 4 + 2)
    assert gpu_kernels.byte_floor("gdn2", case, BOTH) == 2 * gpu_kernels.byte_floor("gdn2", case, FORWARD)
    assert gpu_kernels.byte_floor("gdn2", replace(case, steps=1, batch=8), DECODE) == 8 * 2 * 4 * 128 * 128
    # One chunk: five products of 64·64·128 (T, Aqk, Y, U, Aqk R), three of 64·128·128, and the inverse.
    forward = 2 * (5 * 64 * 64 * 128 + 3 * 64 * 128 * 128) + 64**3 / 3
    assert gpu_kernels.chunk_flops(case, FORWARD) == pytest.approx(forward)
    assert gpu_kernels.chunk_flops(case, BOTH) == pytest.approx(3 * forward)


def test_a_row_follows_from_its_times() -> None:
    row = gpu_kernels.summary(CHUNKED[0], LENGTHS[0], BOTH, [1.0, 2.0, 3.0, 4.0], CEILINGS)
    assert row["ms_p20"] <= row["ms"] == 2.5 <= row["ms_p80"] and row["repeats"] == 4
    assert row["tokens_per_s"] == pytest.approx(32768 / 2.5e-3)
    assert row["copy_fraction"] * CEILINGS["copy_bytes_per_s"] * 2.5e-3 == pytest.approx(row["bytes"])
    assert row["matmul_fraction"] * CEILINGS["matmul_flop_per_s"] * 2.5e-3 == pytest.approx(row["flops"])


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
    errors = gpu_kernels.errors(form, call, case, direction, "cpu")
    present = [error for error in errors.values() if error is not None]
    assert len(present) == (1 if direction == FORWARD else 2)
    # The output is rounded to bf16, so no error is nought; the state of a decoding step stays in fp32.
    assert errors["output_error"] > 1e-4 and max(present) < WRONG / 3


def test_a_wrong_implementation_is_seen_and_one_that_is_not_finite_refused() -> None:
    def scaled(q, k, v, g, b, w, factor=1.0):
        o, state = gated_delta_rule_2(q, k, v, g, b, w, backend="chunked", chunk_size=16)
        return factor * o, state

    errors = gpu_kernels.errors(CHUNKED[0], partial(scaled, factor=1.1), SMALL, BOTH, "cpu")
    row = gpu_kernels.identity(CHUNKED[0], SMALL, BOTH) | errors
    assert gpu_kernels.wrong(row) and errors["gradient_error"] == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ArithmeticError, match="not finite"):
        gpu_kernels.errors(CHUNKED[0], partial(scaled, factor=float("nan")), SMALL, FORWARD, "cpu")


def test_the_table_has_ratios_refusals_and_what_was_left_out() -> None:
    rows = made_rows(BOTH, LENGTHS[1]) + made_rows(DECODE, gpu_kernels.DECODING[2])
    lines = gpu_kernels.render(rows).splitlines()
    both = next(line for line in lines if line.startswith("forward+backward"))
    assert "1.000 [0.9" in both and both.endswith("1.00  2.00×")
    assert next(line for line in lines if line.startswith("decode  ")).endswith("2.00×")

    rows[1] |= {"gradient_error": 0.5}
    text = gpu_kernels.render(rows)
    assert "disagree" in text and "gdn2 fla chunk: output 4.0e-03, gradient 5.0e-01" in text

    rows[1] |= {"refused": "RuntimeError: not with this Triton", "ms": None, "gradient_error": None}
    late = gpu_kernels.identity(CHUNKED[0], LENGTHS[4], BOTH)
    text = gpu_kernels.render([*rows, late | CEILINGS | BIRTH | {"left_out": "not started: 9 s were used up"}])
    assert "refused, gdn2 fla chunk, forward+backward T=4096 B=8 H=16 K=128 V=128: RuntimeError: not with" in text
    assert "not started: 9 s were used up: forward+backward T=32768 B=1" in text


def test_reasons_are_one_line() -> None:
    assert gpu_kernels.reason(RuntimeError("one\n  two")) == "RuntimeError: one two"
    assert len(gpu_kernels.reason(RuntimeError("long " * 200))) == 300


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_kernels_are_not_measured(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no CUDA device"):
        gpu_kernels.run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds"):
        gpu_kernels.run(tmp_path, seconds=0)
