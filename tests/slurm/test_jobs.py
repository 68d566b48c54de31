"""Jobs in this process: what they do, how a signal ends them, and what they record about it."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT
from harness.run_folder import RunFolder
from harness.training.train import train
from slurm.jobs import (
    SILENT_MINUTES,
    CollectJob,
    EvaluateJob,
    Job,
    Notice,
    PackJob,
    PrepareJob,
    TrainJob,
    device_works,
    in_turn,
    run_jobs,
)
from slurm.plan import plan
from slurm.state import LEAVE_SIGNAL, LEFT, at_work, settle, started
from suites.units import TRAIN
from tests.slurm.experiments import experiment


@dataclass(frozen=True)
class Scripted(Job):
    """A job whose work is to send itself signals, to fail, or to write its result."""

    signals: tuple[int, ...] = ()
    failure: str = ""

    def done(self) -> bool:
        return (self.folder / "result").exists()

    def work(self, notice: Notice) -> None:
        assert at_work(self.folder, self.unit)
        for number in self.signals:
            os.kill(os.getpid(), number)
        if self.failure:
            raise ValueError(self.failure)
        (self.folder / "result").touch()


def recorded(folder: Path, unit: str) -> list[str]:
    return [event.get("outcome", event["event"]) for event in RunFolder(folder).read_attempts(unit)]


def test_a_job_records_its_attempt_and_does_nothing_a_second_time(tmp_path: Path) -> None:
    job = Scripted(tmp_path, "recall")
    in_turn([job, job])
    assert recorded(tmp_path, "recall") == ["started"]
    assert RunFolder(tmp_path).read_status("recall").state == "done" and not at_work(tmp_path, "recall")


@pytest.mark.parametrize(
    ("signals", "outcome"),
    [((LEAVE_SIGNAL,), "left"), ((signal.SIGTERM,), "terminated")],
)
def test_a_signal_ends_a_job_with_its_own_exit_status_and_is_recorded(
    tmp_path: Path, signals: tuple[int, ...], outcome: str
) -> None:
    with pytest.raises(SystemExit) as ending:
        Scripted(tmp_path, "recall", signals)()
    assert ending.value.code == LEFT
    assert recorded(tmp_path, "recall") == ["started", outcome]
    status = RunFolder(tmp_path).read_status("recall")
    assert status.state == "stopped" and signal.Signals(signals[0]).name in status.detail
    assert not (tmp_path / "result").exists()


def test_a_training_that_is_cancelled_says_at_which_step(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = plan(load_experiment(experiment(tmp_path, small_data, mixers=["attention"])), tmp_path / "runs")

    def cancelled(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        train(*arguments, **options)

    monkeypatch.setattr("slurm.jobs.train", cancelled)
    (job,) = run_jobs(run, [TRAIN], "command")
    with pytest.raises(SystemExit):
        job()
    assert not settle(run.folder, TRAIN, LEFT, terminated=True)
    status = RunFolder(run.folder).read_status(TRAIN)
    assert (status.state, status.detail) == ("stopped", "stopped at step 1 of 4: told to end by SIGTERM")


def test_training_is_told_by_its_notice_and_a_second_signal_changes_nothing(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (LEAVE_SIGNAL, signal.SIGTERM)]
    with Notice(at_once=False) as notice:
        assert notice.outcome is None
        os.kill(os.getpid(), LEAVE_SIGNAL)
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.outcome == "left" and notice.reason == "told to leave by SIGUSR2"
    assert [signal.getsignal(number) for number in (LEAVE_SIGNAL, signal.SIGTERM)] == handlers


def test_a_failure_is_recorded_in_one_line_and_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out of\s+paper"):
        Scripted(tmp_path, "recall", failure="out of\n  paper")()
    assert recorded(tmp_path, "recall") == ["started", "failed"]
    assert RunFolder(tmp_path).read_status("recall").detail == "out of paper"


def test_a_run_becomes_a_job_per_unit_and_an_untrained_one_is_not_evaluated(tmp_path: Path, small_data: Path) -> None:
    (run,) = plan(load_experiment(experiment(tmp_path, small_data, mixers=["attention"])), tmp_path / "runs")
    train, evaluate = run_jobs(run, run.missing, "command", "fsdp")
    assert isinstance(train, TrainJob) and (train.unit, train.sharding) == (TRAIN, "fsdp")
    assert isinstance(evaluate, EvaluateJob) and evaluate.evaluation == run.units["recall"]
    assert not train.done()
    with pytest.raises(ValueError, match="the run is not trained to its end; submit or train it first"):
        evaluate.done()


def test_a_status_is_not_written_more_often_than_the_heartbeat(tmp_path: Path) -> None:
    beat = Scripted(tmp_path, "recall").beat()
    for step in range(100):
        beat("at work", step=step)
    assert RunFolder(tmp_path).read_status("recall").step == 0


def test_preparing_is_done_once_and_collecting_always_again(tmp_path: Path) -> None:
    job = PrepareJob(tmp_path, "prepare")
    assert not job.done()
    (tmp_path / "prepared").touch()
    assert job.done()
    assert not CollectJob(tmp_path, "collect", tmp_path, tmp_path, "command").done()


def test_a_signal_that_submitit_hears_first_is_no_failure(tmp_path: Path) -> None:
    job = Scripted(tmp_path, "recall")
    with pytest.raises(SystemExit) as ending:
        job.checkpoint()
    started(tmp_path, "recall", "log")
    assert settle(tmp_path, "recall", ending.value.code) and recorded(tmp_path, "recall")[1] == "left"


@pytest.mark.parametrize(("minutes", "outcome"), [("0.0005", ["started", "failed"]), ("60", ["started"])])
def test_a_job_that_hangs_ends_itself_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: str, outcome: list[str]
) -> None:
    ended = threading.Event()

    def exit_process(code: int) -> None:
        ended.set()
        time.sleep(0.5)  # the watchdog's thread ends with its context

    class Hanging(Scripted):
        def work(self, notice: Notice) -> None:
            ended.wait(2 if minutes == "0.0005" else 0.1)

    monkeypatch.setattr("slurm.jobs.WATCH", 0.02)
    monkeypatch.setattr("os._exit", exit_process)
    monkeypatch.setenv(SILENT_MINUTES, minutes)
    Hanging(tmp_path, "recall")()
    assert recorded(tmp_path, "recall") == outcome
    if len(outcome) == 2:
        assert RunFolder(tmp_path).read_attempts("recall")[-1]["reason"].startswith("silent for 0.0005 min")
        assert settle(tmp_path, "recall", 1), "and it starts again"


@dataclass(frozen=True)
class Unit(Scripted):
    """The same with a result per unit, and a note of each attempt."""

    def done(self) -> bool:
        return (self.folder / f"{self.unit}.result").exists()

    def work(self, notice: Notice) -> None:
        with (self.folder / "order").open("a") as order:
            order.write(self.unit)
        super().work(notice)
        (self.folder / f"{self.unit}.result").touch()


def test_a_failed_evaluation_keeps_the_next_from_nothing_and_fails_the_job_at_its_end(tmp_path: Path) -> None:
    broken = Unit(tmp_path, "b", failure="no data")
    pack = PackJob((Unit(tmp_path, "a"), broken, Unit(tmp_path, "c")))
    with pytest.raises(RuntimeError, match="^b: no data$"):
        pack()
    assert (tmp_path / "order").read_text() == "abc"
    assert [recorded(tmp_path, unit) for unit in "abc"] == [["started"], ["started", "failed"], ["started"]]
    assert [RunFolder(tmp_path).read_status(unit).state for unit in "abc"] == ["done", "stopped", "done"]
    assert settle(tmp_path, "b", 1)
    with pytest.raises(RuntimeError, match="^b: no data$"):  # what is done is not done again
        pack()
    assert (tmp_path / "order").read_text() == "abcb"
    assert not settle(tmp_path, "b", 1)
    with pytest.raises(RuntimeError, match="^b: no data .failed twice in the same way"):  # nor what is given up
        pack()
    assert (tmp_path / "order").read_text() == "abcb"


def test_after_an_error_that_spoils_the_device_the_others_are_done_first_in_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = PackJob((Unit(tmp_path, "a", failure="illegal memory access"), Unit(tmp_path, "b"), Unit(tmp_path, "c")))
    for works, order in ((False, "a"), (True, "abca")):
        monkeypatch.setattr("slurm.jobs.device_works", lambda works=works: works)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            pack()
        assert (tmp_path / "order").read_text() == order


def test_a_packed_job_that_is_told_to_leave_does_not_begin_the_next(tmp_path: Path) -> None:
    pack = PackJob((Unit(tmp_path, "a"), Unit(tmp_path, "b", (LEAVE_SIGNAL,)), Unit(tmp_path, "c")))
    with pytest.raises(SystemExit) as ending:
        pack()
    assert ending.value.code == LEFT and (tmp_path / "order").read_text() == "ab"
    assert recorded(tmp_path, "b") == ["started", "left"] and recorded(tmp_path, "c") == []


def test_this_device_works() -> None:
    assert device_works()


def test_packages_that_only_some_jobs_need_are_imported_by_them(tmp_path: Path) -> None:
    heavy = ("transformers", "lm_eval", "datasets", "matplotlib", "torch._dynamo")  # each takes half a second or more
    code = f"import sys, slurm.jobs, slurm.submission; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
