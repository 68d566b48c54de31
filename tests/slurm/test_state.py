"""Units whose process has ended: which start again and which are given up, from their markers alone."""

import json
import signal
from pathlib import Path

import pytest

from harness.run_folder import RunFolder
from slurm.state import (
    LEAVE_SIGNAL,
    MOST_FAILURES,
    at_work,
    ended,
    exclusively,
    failed_units,
    forgive,
    settle,
    started,
    write_status,
)
from suites.units import TRAIN

KILLED = 128 + signal.SIGKILL


def fail(folder: Path, reason: str) -> bool:
    started(folder, TRAIN, "log")
    ended(folder, TRAIN, "failed", reason)
    return settle(folder, TRAIN, 1)


def checkpoint(folder: Path, step: int) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "index.json").write_text(json.dumps({f"step_{step:08d}.pt": {}}))


def state(folder: Path) -> str:
    status = RunFolder(folder).read_status(TRAIN)
    assert status is not None
    return status.state


def test_the_second_failure_of_a_kind_at_the_same_place_is_the_last(tmp_path: Path) -> None:
    assert fail(tmp_path, "step 17: loss nan") and state(tmp_path) == "requeued"
    assert not fail(tmp_path, "step 18: loss nan") and state(tmp_path) == "failed"
    assert (
        RunFolder(tmp_path).read_status(TRAIN).detail
        == "step 18: loss nan (failed twice in the same way; `retry` tries again)"
    )
    forgive(tmp_path, TRAIN)
    assert RunFolder(tmp_path).read_status(TRAIN) is None
    assert fail(tmp_path, "step 17: loss nan")


def test_a_failure_of_another_kind_or_further_on_is_another_one(tmp_path: Path) -> None:
    assert fail(tmp_path, "killed")
    assert fail(tmp_path, "out of memory")
    checkpoint(tmp_path, 5)
    assert fail(tmp_path, "killed")
    checkpoint(tmp_path, 10)
    assert fail(tmp_path, "killed")
    assert not fail(tmp_path, "killed")


def test_no_unit_fails_without_end(tmp_path: Path) -> None:
    again = [fail(tmp_path, "reason " + "x" * n) for n in range(MOST_FAILURES)]
    assert again == [True] * (MOST_FAILURES - 1) + [False]
    assert f"failed {MOST_FAILURES} times" in RunFolder(tmp_path).read_status(TRAIN).detail


def test_a_process_that_left_no_word_counts_as_failed_with_its_signal(tmp_path: Path) -> None:
    for again in (True, False):
        started(tmp_path, TRAIN, "log")
        assert settle(tmp_path, TRAIN, KILLED) is again
        assert RunFolder(tmp_path).read_status(TRAIN).detail.startswith("killed by SIGKILL")


def test_what_ended_without_a_word_is_noted_by_the_next_attempt_and_no_failure(tmp_path: Path) -> None:
    for _ in range(MOST_FAILURES + 1):
        started(tmp_path, TRAIN, "log")
    *before, last = RunFolder(tmp_path).read_attempts(TRAIN)
    lost = [event for event in before if event["event"] == "ended"]
    assert [(event["outcome"], event["reason"]) for event in lost] == [
        ("lost", f"ended without a word on {last['node']}")
    ] * MOST_FAILURES
    assert settle(tmp_path, TRAIN, KILLED) and state(tmp_path) == "requeued"


def test_a_job_that_never_began_is_not_started_without_end(tmp_path: Path) -> None:
    # Its last attempt left in peace; what ends now has not come as far as saying that it begins.
    started(tmp_path, TRAIN, "log")
    ended(tmp_path, TRAIN, "left", "told to leave by SIGUSR2")
    assert settle(tmp_path, TRAIN, 75)
    assert [settle(tmp_path, TRAIN, 1) for _ in range(2)] == [True, False]
    assert "ended with exit code 1 before it began; see the job's log" in RunFolder(tmp_path).read_status(TRAIN).detail


@pytest.mark.parametrize(
    ("outcome", "told", "expected"),
    [("left", False, "requeued"), ("terminated", False, "stopped"), (None, True, "stopped")],
)
def test_what_was_told_to_end_does_not_start_again_and_what_was_told_to_leave_does(
    tmp_path: Path, outcome: str | None, told: bool, expected: str
) -> None:
    started(tmp_path, TRAIN, "log")
    if outcome is not None:
        ended(tmp_path, TRAIN, outcome, "told")
    assert settle(tmp_path, TRAIN, 143, terminated=told) == (expected == "requeued")
    assert state(tmp_path) == expected


def test_a_process_told_to_leave_before_it_could_say_so_has_not_failed(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    ended(tmp_path, TRAIN, "left", "told to leave by SIGUSR2")
    assert settle(tmp_path, TRAIN, 75)
    for number in range(2):  # once while Python was starting, once before its handlers were in place
        if number:
            started(tmp_path, TRAIN, "log")
        assert settle(tmp_path, TRAIN, 128 + LEAVE_SIGNAL) and state(tmp_path) == "requeued"
    ends = [event for event in RunFolder(tmp_path).read_attempts(TRAIN) if event["event"] == "ended"]
    assert [(end["outcome"], end["reason"]) for end in ends[1:]] == [
        ("left", "told to leave by SIGUSR2 before it began"),
        ("left", "told to leave by SIGUSR2"),
    ]


@pytest.mark.parametrize(("unit", "stage"), [(TRAIN, "train"), ("recall+1234abcd", "evaluate"), ("collect", "prepare")])
def test_a_unit_whose_time_never_suffices_is_given_up_with_the_remedy(tmp_path: Path, unit: str, stage: str) -> None:
    def leave() -> bool:
        return settle(tmp_path, unit, 128 + LEAVE_SIGNAL)

    assert [leave() for _ in range(MOST_FAILURES)] == [True] * (MOST_FAILURES - 1) + [False]
    status = RunFolder(tmp_path).read_status(unit)
    assert status is not None and status.state == "failed"
    assert f"raise {stage}.minutes in the profile; `retry` tries again" in status.detail
    forgive(tmp_path, unit)
    assert leave()


def test_a_run_that_goes_on_after_every_time_limit_is_never_given_up(tmp_path: Path) -> None:
    for step in range(2 * MOST_FAILURES):
        checkpoint(tmp_path, step)
        assert settle(tmp_path, TRAIN, 128 + LEAVE_SIGNAL)


def test_exit_codes_that_are_no_signals_are_told_as_they_are(tmp_path: Path) -> None:
    for again in (True, False):
        started(tmp_path, TRAIN, "log")
        assert settle(tmp_path, TRAIN, 255) is again
    assert RunFolder(tmp_path).read_status(TRAIN).detail.startswith("ended with exit code 255 (failed twice")


def test_death_for_lack_of_memory_names_the_field_to_raise(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    assert settle(tmp_path, TRAIN, KILLED, out_of_memory=True)
    detail = RunFolder(tmp_path).read_status(TRAIN).detail
    assert detail == "killed by SIGKILL: out of memory; raise train.mem_gb in the profile"


def test_a_process_that_was_turned_away_has_no_say(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    write_status(tmp_path, TRAIN, "running")
    with exclusively(tmp_path, TRAIN):
        assert at_work(tmp_path, TRAIN)
        assert not settle(tmp_path, TRAIN, 1)
        with (
            pytest.raises(RuntimeError, match="another process is working on train of this run"),
            exclusively(tmp_path, TRAIN),
        ):
            pass
    assert state(tmp_path) == "running" and not at_work(tmp_path, TRAIN)


def test_only_units_that_were_given_up_have_failed(tmp_path: Path) -> None:
    write_status(tmp_path, "recall", "failed", "no data")
    write_status(tmp_path, "ruler@256", "stopped", "cancelled")
    places = {unit: unit for unit in (TRAIN, "recall", "ruler@256")}
    assert failed_units(tmp_path, places) == ["recall"]
    forgive(tmp_path, "recall")
    assert failed_units(tmp_path, places) == []
