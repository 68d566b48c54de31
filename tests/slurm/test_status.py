"""`status`: the state of runs from their markers and Slurm's queue, logs and cancelling."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT
from harness.run_folder import RunFolder
from slurm.plan import plan
from slurm.queue import Queue
from slurm.snapshot import open_submission
from slurm.state import ended, started, write_status
from slurm.status import FOLD, Filter, Row, Submitted, cancel, duration, logs, overview, report, runs_of, troubles
from suites.units import TRAIN
from tests.slurm.experiments import experiment


def test_status_of_what_slurm_starts_again_and_why(tmp_path: Path) -> None:
    run = Submitted("tiny", "run", tmp_path, 9, {})

    def row(said: tuple[str, str, str] | None) -> Row:
        (found,) = overview([run], Queue({} if said is None else {"7": said}))
        return found

    started(tmp_path, TRAIN, "log")
    write_status(tmp_path, TRAIN, "running", "", job="7", node="n1")
    waiting = row(("PENDING", "", "BeginTime"))
    assert (waiting.state, waiting.reason) == (
        "requeued",
        "waits for its time to start, which a requeue puts off (BeginTime); ended without a word on n1",
    )
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


def test_a_job_without_a_sign_of_life_is_silent(tmp_path: Path) -> None:
    write_status(tmp_path, TRAIN, "running", job="7", node="n1", seconds_left=4, updated=time.time() - 3600)
    queue = Queue({"7": ("RUNNING", "n1", "None")})
    for minutes, state in ((30, "silent"), (90, "training"), (None, "training")):
        (row,) = overview([Submitted("tiny", "run", tmp_path, 9, {}, silent_minutes=minutes)], queue)
        assert (row.state, row.node) == (state, "n1")
        assert row.reason.startswith("no sign of life for 1 h 0 min") == (state == "silent")


def test_status_counts_by_state_folds_many_runs_and_lists_those_asked_for(tmp_path: Path) -> None:
    runs = [
        Submitted("tiny", f"run-{n}", tmp_path / f"run-{n}", 9, {}, label="Full attention", mixer="attention", seed=n)
        for n in range(FOLD + 2)
    ]
    write_status(runs[0].folder, TRAIN, "failed", "loss nan")
    write_status(runs[1].folder, TRAIN, "running", updated=time.time(), node="elsewhere")
    head, failed, training, rest = report(tmp_path, "tiny", runs).splitlines()
    assert head == f"tiny: 0 of {FOLD + 2} runs done, {FOLD} waiting, 1 failed, 1 training"
    assert failed.split()[:4] == ["run-0", "Full", "attention", "failed"] and training.startswith("run-1")
    assert rest == f"{FOLD} waiting: Full attention × {FOLD} (--state waiting lists them)"
    for asked, names in ((Filter(state="waiting"), range(2, FOLD + 2)), (Filter(mixer="attention", seed=0), range(1))):
        lines = report(tmp_path, "tiny", runs, asked).splitlines()[1:]
        assert [line.split()[0] for line in lines] == [f"run-{n}" for n in names]
    assert len(report(tmp_path, "tiny", runs[:FOLD]).splitlines()) == 1 + FOLD


def test_status_says_why_a_submission_could_not_prepare(tmp_path: Path) -> None:
    for number, name in enumerate(("tiny-1", "tiny-2")):
        folder = tmp_path / "submissions" / name
        folder.mkdir(parents=True)
        head = {"experiment": "tiny", "cluster": "slurm", "host": "login", "pid": 1, "time": number, "runs": []}
        (folder / "plan.json").write_text(json.dumps(head))
    write_status(tmp_path / "submissions" / "tiny-1", "prepare", "failed", "long ago")
    assert troubles(tmp_path, "tiny") == []
    write_status(tmp_path / "submissions" / "tiny-2", "prepare", "failed", "swde: cannot be had here")
    assert troubles(tmp_path, "tiny") == ["prepare of tiny-2 failed: swde: cannot be had here"]


def test_runs_are_those_of_the_submissions_or_else_of_the_plan(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    name, planned = runs_of(runs, str(path), None)
    assert name == "tiny" and [run.folder.parent for run in planned] == [runs] * 2
    loaded = load_experiment(path)
    open_submission(loaded, plan(loaded, runs)[:1], runs, "slurm")
    assert runs_of(runs, str(path), None)[1] == planned[:1]
    assert runs_of(runs, "tiny", None) == ("tiny", planned[:1])


@pytest.mark.parametrize("command", ["status", "status --json", "cancel", "logs", "runs list"])
def test_commands_that_only_look_import_no_torch(folder: Path, command: str) -> None:
    (run,) = plan(load_experiment(folder / "tiny.yaml"), folder / "runs")
    open_submission(load_experiment(folder / "tiny.yaml"), [run], folder / "runs", "slurm")
    name, *options = command.split()
    subject = {"logs": [run.config.run_id], "runs": []}.get(name, [str(folder / "tiny.yaml")])
    code = "import sys; from run import app; app(standalone_mode=False); print('torch' in sys.modules)"
    arguments = [name, *options, *subject, "--runs", str(folder / "runs")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.4, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min"), (90_000, "1 d 1 h")]
)
def test_a_duration_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_logs_end_with_the_last_lines_of_the_last_attempt(tmp_path: Path) -> None:
    run = tmp_path / "run-1"
    with pytest.raises(ValueError, match="no 'run-1' has started in .*; known: none"):
        logs(tmp_path, "run-1", None, 3)
    for unit, text in ((TRAIN, "first"), ("recall", "second")):
        err = tmp_path / f"{unit}.err"
        err.write_text("\n".join(f"{text} {i}" for i in range(9)))
        started(run, unit, str(err))
    (tmp_path / "recall.out").write_text("printed")
    shown = logs(tmp_path, "run-1", None, 2).splitlines()
    assert shown == [
        f"==> recall: {tmp_path}/recall.err",
        "second 7",
        "second 8",
        f"==> recall: {tmp_path}/recall.out",
        "printed",
    ]
    assert "first 8" in logs(tmp_path, "run-1", TRAIN, 1)
    with pytest.raises(ValueError, match="'run-1' has not started ruler yet; see `status`"):
        logs(tmp_path, "run-1", "ruler", 1)
    started(run, TRAIN, "")
    with pytest.raises(ValueError, match="was not run by a job"):
        logs(tmp_path, "run-1", TRAIN, 1)


def test_cancel_marks_what_waits_as_stopped_and_ends_no_strange_process(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm
    loaded = load_experiment(experiment(tmp_path, small_data, mixers=["attention"]))
    (run,) = plan(loaded, tmp_path)
    folder = open_submission(loaded, [run], tmp_path, "local")  # of this process, which is no submit
    assert json.loads((folder / "plan.json").read_text())["pid"] == os.getpid()
    write_status(run.folder, TRAIN, "requeued", "told to leave", job="7")
    write_status(run.folder, run.place("recall"), "failed", "loss nan")
    assert cancel(tmp_path, "tiny") == []
    assert RunFolder(run.folder).read_status(TRAIN).state == "stopped"
    assert RunFolder(run.folder).read_status(run.place("recall")).state == "failed"
