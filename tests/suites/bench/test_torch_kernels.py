"""The benchmark of the chunked torch forms: its rows, its header, and no ratio where a result is wrong."""

import re

import pytest
import torch

from suites.bench.torch_kernels import FLA, OURS, render, run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def measured() -> tuple[list[dict], int]:
    """Rows measured on one thread by a process that had two, and the threads that it has afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return run(repeats=3, threads=1), torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def rows(measured: tuple[list[dict], int]) -> list[dict]:
    return measured[0]


def test_three_operators_in_both_forms_are_timed_and_right(rows: list[dict]) -> None:
    assert {(r["operator"], r["form"]) for r in rows} == {
        (operator, form) for operator in ("gdn2", "kda", "gated_deltanet") for form in (OURS, FLA)
    }
    assert len(rows) == 6
    for r in rows:
        # fp32 rounds at 6e-8, and both forms sum a few hundred terms; a wrong term would show at 1e-2.
        assert 0 < r["output_error"] < 1e-4 and 0 < r["gradient_error"] < 1e-4
        assert 0 < r["total_ms_p20"] <= r["total_ms"] <= r["total_ms_p80"]
        assert max(r["forward_ms"], r["backward_ms"]) < r["total_ms_p80"]


def test_rows_and_header_state_the_settings(rows: list[dict]) -> None:
    assert {r["form"]: r["chunk_size"] for r in rows} == {OURS: 32, FLA: 64}
    for r in rows:
        assert (r["device"], r["threads"], r["repeats"], r["torch"]) == ("cpu", 1, 3, torch.__version__)
    header = render(rows).splitlines()[0]
    assert f"cpu, threads=1, torch {torch.__version__}, repeats=3" in header


def test_a_wrong_result_on_either_side_disagrees_and_has_no_ratio(rows: list[dict]) -> None:
    assert "disagree" not in render(rows)
    for form in (OURS, FLA):
        for error in ("output_error", "gradient_error"):
            changed = [r | {error: 0.5} if (r["operator"], r["form"]) == ("kda", form) else r for r in rows]
            for line in render(changed).splitlines()[2:]:
                if line.startswith("kda"):
                    assert line.endswith("disagree")
                else:
                    assert re.search(r"\d\.\d×$", line)


def test_threads_are_left_as_they_were(measured: tuple[list[dict], int]) -> None:
    assert measured[1] == 2


@pytest.mark.parametrize(("repeats", "threads", "message"), [(2, 1, "--repeats: 2"), (3, 0, "--threads: 0")])
def test_too_few_repeats_or_threads_are_refused(repeats: int, threads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(repeats, threads)
