"""The GPU kernel benchmark, as far as a CPU can check it: fields of rows, the table, and refusals."""

from pathlib import Path

import pytest
import torch

from suites.bench import gpu_kernels
from suites.bench.gpu_kernels import WRONG
from suites.bench.kernel_cases import AS_LAYER, BOTH, CHUNKED, DECODE, DECODING, LENGTHS, Case, implementations

CEILINGS = {"copy_bytes_per_s": 4e12, "matmul_flop_per_s": 8e14, "lead_ms": 4.0}
BIRTH = {"device": "a device", "version_torch": "2", "version_triton": "3", "version_fla": None, "git_commit": None}


def made_rows(direction: str, case: Case) -> list[dict]:
    """Return rows as a measurement makes them: implementation i took i + 1 ms."""
    return [
        gpu_kernels.case_fields(form, case, direction)
        | CEILINGS
        | BIRTH
        | {"output_error": 4e-3, "peak_memory_bytes": 2**30, "host_ms": 0.5}
        | gpu_kernels.time_fields(form, case, direction, [i + 0.9, i + 1.0, i + 1.1], CEILINGS)
        for i, form in enumerate(implementations(direction))
    ]


def test_a_row_follows_from_its_times() -> None:
    row = gpu_kernels.time_fields(CHUNKED[0], LENGTHS[0], BOTH, [1.0, 2.0, 3.0, 4.0], CEILINGS)
    assert row["ms_p20"] <= row["ms"] == 2.5 <= row["ms_p80"] and row["repeats"] == 4
    assert row["tokens_per_s"] == pytest.approx(32768 / 2.5e-3)
    assert row["copy_fraction"] * CEILINGS["copy_bytes_per_s"] * 2.5e-3 == pytest.approx(row["bytes"])
    assert row["matmul_fraction"] * CEILINGS["matmul_flop_per_s"] * 2.5e-3 == pytest.approx(row["flops"])


def test_a_row_is_wrong_if_an_error_exceeds_the_bound() -> None:
    row = gpu_kernels.case_fields(CHUNKED[0], LENGTHS[0], BOTH) | {"output_error": WRONG}
    assert not gpu_kernels.is_wrong(row)
    assert gpu_kernels.is_wrong(row | {"gradient_error": 1.1 * WRONG})


def test_the_table_has_ratios_refusals_and_omissions() -> None:
    rows = made_rows(BOTH, LENGTHS[1]) + made_rows(DECODE, DECODING[2])
    lines = gpu_kernels.render(rows).splitlines()
    both = next(line for line in lines if line.startswith("forward+backward"))
    assert "1.000 [0.9" in both and both.endswith("1.00  2.00×")
    assert next(line for line in lines if line.startswith("decode  ")).endswith("2.00×")

    rows[1] |= {"gradient_error": 0.5}
    text = gpu_kernels.render(rows)
    assert "disagree" in text and "gdn2 fla chunk: output 4.0e-03, gradient 5.0e-01" in text

    rows[1] |= {"refused": "RuntimeError: not with this Triton", "ms": None, "gradient_error": None}
    late = gpu_kernels.case_fields(CHUNKED[0], LENGTHS[4], BOTH)
    text = gpu_kernels.render([*rows, late | CEILINGS | BIRTH | {"left_out": "not started: 9 s were used up"}])
    assert "refused, gdn2 fla chunk, forward+backward T=4096 B=8 H=16 K=128 V=128: RuntimeError: not with" in text
    assert "not started: 9 s were used up: forward+backward T=32768 B=1" in text


def test_a_host_that_was_slower_than_its_lead_is_named() -> None:
    rows = made_rows(AS_LAYER, LENGTHS[2])
    assert "lead" not in gpu_kernels.render(rows)
    rows[1]["host_ms"] = 4.1
    text = gpu_kernels.render(rows)
    assert "host took longer than its lead, so launches may be in the time: gdn2 fla chunk layer's call T=8192" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_kernels_are_not_measured(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no CUDA device"):
        gpu_kernels.run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_without_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds"):
        gpu_kernels.run(tmp_path, seconds=0)
