"""Timing helpers: deadlines, turns, medians with their spread, and failures that are or are not of memory."""

import time

import pytest
import torch

from suites.shared import timing
from suites.shared.timing import Shape

CPU = torch.device("cpu")


def test_calls_are_counted_and_timed() -> None:
    calls: list[float] = []
    seconds = timing.time_calls(lambda: (calls.append(0), time.sleep(0.01)), 3, CPU)
    assert len(calls) == 3 and seconds >= 0.03


def test_no_time_is_given_where_the_deadline_comes_first() -> None:
    calls: list[int] = []
    assert timing.time_calls(lambda: calls.append(1), 3, CPU, until=time.perf_counter()) is None
    assert not calls


def test_whoever_is_first_in_a_turn_is_last_in_the_next() -> None:
    assert [timing.in_turns({"a": 1, "b": 2, "c": 3}, turn) for turn in range(3)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]


def test_percentiles_lie_within_the_values() -> None:
    assert timing.median_p20_p80([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, 2.0, 5.0)
    assert timing.median_p20_p80([2.0, 1.0]) == pytest.approx((1.5, 1.2, 1.8))


def test_the_error_of_a_median_is_that_of_normal_samples() -> None:
    samples = torch.randn(4000, 25, generator=torch.Generator().manual_seed(0))
    medians, errors = zip(*(timing.median_stderr(row) for row in samples.tolist()), strict=True)
    # 4,000 medians give the deviation within 1.1%; √(π/2) is the limit of many samples and about 2% high at 25.
    assert torch.tensor(medians).std().item() == pytest.approx(sum(errors) / len(errors), rel=0.05)


def test_a_shape_listed_twice_is_refused() -> None:
    shapes = [Shape(batch=1, length=8), Shape(batch=2, length=8)]
    assert timing.check_distinct_shapes(shapes) == shapes
    with pytest.raises(ValueError, match="1 × 8 is listed twice; list each shape once"):
        timing.check_distinct_shapes([*shapes, shapes[0]])


def test_work_that_does_not_fit_the_memory_has_no_result() -> None:
    # 8·10¹⁵ bytes are more than any address space, so the allocator itself refuses.
    assert timing.unless_out_of_memory(lambda: torch.empty(10**15, dtype=torch.float64), CPU) is None
    assert timing.unless_out_of_memory(lambda: 3, CPU) == 3


def test_another_failure_than_of_memory_is_raised() -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        timing.unless_out_of_memory(fail, torch.device("cpu"))


def test_an_error_is_one_line_of_at_most_300_characters() -> None:
    assert timing.error_line(RuntimeError("one\n  two")) == "RuntimeError: one two"
    assert len(timing.error_line(RuntimeError("long " * 200))) == 300


def test_random_tokens_are_the_same_every_time() -> None:
    tokens = timing.random_tokens(Shape(batch=2, length=5), 10, CPU)
    assert tokens.shape == (2, 6) and tokens.min() >= 0 and tokens.max() < 10
    assert torch.equal(tokens, timing.random_tokens(Shape(batch=2, length=5), 10, CPU))
