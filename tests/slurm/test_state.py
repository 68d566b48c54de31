"""What becomes of a unit whose process has ended, from its markers alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import batch_end as after
from slurm.queue import SILENCE, Queue
from slurm.state import (
    MOST_FAILURES,
    Status,
    at_work,
    ended,
    events,
    exclusively,
    forgive,
    read_status,
    settle,
    started,
    write_status,
)
from slurm.status import Row, Submitted, overview, troubles
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
    status = read_status(folder, TRAIN)
    assert status is not None
    return status.state


def test_the_second_failure_of_a_kind_at_the_same_place_is_the_last(tmp_path: Path) -> None:
    assert fail(tmp_path, "step 17: loss nan") and state(tmp_path) == "requeued"
    assert not fail(tmp_path, "step 18: loss nan") and state(tmp_path) == "failed"
    assert (
        read_status(tmp_path, TRAIN).detail == "step 18: loss nan (failed twice in the same way; `retry` tries again)"
    )
    forgive(tmp_path, TRAIN)
    assert read_status(tmp_path, TRAIN) is None
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
    assert f"failed {MOST_FAILURES} times" in read_status(tmp_path, TRAIN).detail


def test_a_process_that_left_no_word_counts_as_failed_with_its_signal(tmp_path: Path) -> None:
    for again in (True, False):
        started(tmp_path, TRAIN, "log")
        assert settle(tmp_path, TRAIN, KILLED) is again
        assert read_status(tmp_path, TRAIN).detail.startswith("killed by SIGKILL")


def test_what_ended_without_a_word_is_noted_by_the_next_attempt_and_no_failure(tmp_path: Path) -> None:
    for _ in range(MOST_FAILURES + 1):
        started(tmp_path, TRAIN, "log")
    *before, last = events(tmp_path, TRAIN)
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
    assert "ended with exit code 1 before it began; see the job's log" in read_status(tmp_path, TRAIN).detail


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


def test_the_end_of_a_batch_script_asks_without_torch(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    listed = tmp_path / "train-0.json"
    listed.write_text(json.dumps([["elsewhere", TRAIN], [str(tmp_path), TRAIN]]))
    code = "import sys, slurm.batch_end; print(slurm.batch_end.main(*sys.argv[1:]), 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(listed), "1", str(KILLED), "0"], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["0", "False"]
    started(tmp_path, TRAIN, "log")
    assert after.main(str(listed), "1", str(KILLED), "0") == 1


def test_who_holds_a_unit(tmp_path: Path) -> None:
    queued = Status("queued", job="12_3", updated=0)
    assert Queue({"12_3": ("PENDING", "", "")}).holds(tmp_path, TRAIN, queued) == "job 12_3"
    assert Queue({}).holds(tmp_path, TRAIN, queued) is None
    assert Queue(None).holds(tmp_path, TRAIN, queued) == "job 12_3"  # Slurm does not answer: it may be waiting
    for silent, holder in ((1, "process 7 on elsewhere"), (SILENCE + 1, None)):
        running = Status("running", node="elsewhere", pid=7, job="12_3", updated=time.time() - silent)
        assert Queue(None).holds(tmp_path, TRAIN, running) == holder
    here = Status("running", updated=time.time(), pid=7)
    with exclusively(tmp_path, TRAIN):
        assert Queue(None).holds(tmp_path, TRAIN, here) is not None


def test_status_of_what_slurm_starts_again_and_why(tmp_path: Path) -> None:
    run = Submitted("tiny", "run", tmp_path, 9, {})

    def row(said: tuple[str, str, str] | None) -> Row:
        (found,) = overview([run], Queue({} if said is None else {"7": said}))
        return found

    started(tmp_path, TRAIN, "log")
    write_status(tmp_path, TRAIN, "running", "", job="7", node="n1")
    waiting = row(("PENDING", "", "BeginTime"))
    assert (waiting.state, waiting.reason) == ("requeued", "BeginTime; ended without a word on n1")
    # A job that Slurm ends itself is told as a cancelled one is: what follows is for Slurm to say.
    ended(tmp_path, TRAIN, "terminated", "told to end by SIGTERM")
    write_status(tmp_path, TRAIN, "stopped", "told to end by SIGTERM", job="7", node="n1")
    for said in (("PENDING", "", "None"), ("RUNNING", "n2", "None")):
        assert (row(said).state, row(said).reason) == ("requeued", "told to end by SIGTERM")
    for said in (("COMPLETING", "n1", "None"), None):
        assert row(said).state == "stopped"
    started(tmp_path, TRAIN, "log")
    write_status(tmp_path, TRAIN, "running", "", job="7", node="n2")
    again = row(("RUNNING", "n2", "None"))
    assert (again.state, again.attempts, again.node) == ("training", 2, "n2")
    assert again.reason == "started again: told to end by SIGTERM"


def test_status_says_why_a_submission_could_not_prepare(tmp_path: Path) -> None:
    for number, name in enumerate(("tiny-1", "tiny-2")):
        folder = tmp_path / "submissions" / name
        folder.mkdir(parents=True)
        head = {"experiment": "tiny", "time": number, "runs": []}
        (folder / "plan.json").write_text(json.dumps(head))
    write_status(tmp_path / "submissions" / "tiny-1", "prepare", "failed", "long ago")
    assert troubles(tmp_path, "tiny") == []
    write_status(tmp_path / "submissions" / "tiny-2", "prepare", "failed", "swde: cannot be had here")
    assert troubles(tmp_path, "tiny") == ["prepare of tiny-2 failed: swde: cannot be had here"]
