"""Work that is done again on request, and results that stand until then, whatever has changed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.code import this_code
from harness.experiments.load import load_experiment
from harness.run_folder import RunFolder
from run import app
from slurm.plan import RunPlan, failed_work, measured_work, only, plan, start_again
from slurm.state import write_status
from suites.units import TRAIN
from tests.slurm.experiments import call, experiment
from tests.slurm.test_trials import give_score, tuned

cli = CliRunner()
SUITES = {"recall": {"pairs": [2], "samples": 4}, "language": {"tasks": ["heldout"], "limit": 2}}


def planned(folder: Path, *overrides: str) -> RunPlan:
    (run,) = plan(load_experiment(folder / "tiny.yaml", list(overrides)), folder / "runs")
    return run


def records(run: RunPlan) -> list[dict]:
    return [json.loads(line) for line in RunFolder(run.folder).records(run.place("recall")).read_text().splitlines()]


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> str:
    """This process with edited mixers; returns the hash of its code."""
    code = replace(this_code(), sha256="e" * 64, parts=this_code().parts | {"mixers": "e" * 10})
    for module in ("harness.code", "harness.records.provenance"):
        monkeypatch.setattr(sys.modules[module], "this_code", lambda: code)
    return code.sha256


def test_changed_code_is_said_and_measures_nothing_again_unless_asked(folder: Path, edited: str) -> None:
    run = planned(folder)
    before = records(run)
    said = "made by other code: train of 1, recall of 1 runs by "
    for output in (call(folder, "status"), call(folder, "submit", "--cluster", "debug")):
        assert said in output and "since then changed: mixers" in output
    assert records(run) == before and before[0]["code_sha256"] != edited
    assert "1 evaluations are measured again" in call(folder, "retry", "--suite", "recall", "--cluster", "debug")
    after = records(run)
    assert {row["code_sha256"] for row in after} == {edited}
    assert [row["value"] for row in after] == [row["value"] for row in before]
    assert "made by other code: train of 1 runs" in call(folder, "status")
    call(folder, "collect")
    assert "content eeeeeeeeee" in call(folder, "table")


def test_nothing_is_said_of_code_that_did_not_change(folder: Path) -> None:
    assert "other code" not in call(folder, "status")
    assert "other code" not in call(folder, "submit", "--cluster", "debug")


@pytest.mark.parametrize("damaged", [None, b"{"])
def test_records_that_are_lost_or_cut_off_are_measured_again(folder: Path, damaged: bytes | None) -> None:
    run = planned(folder)
    path, before = RunFolder(run.folder).records(run.place("recall")), records(run)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    call(folder, "submit", "--cluster", "debug")
    assert [row["value"] for row in records(run)] == [row["value"] for row in before]


def test_two_experiments_over_one_run_have_their_own_records_and_collections(folder: Path) -> None:
    text = (folder / "tiny.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace("tiny", "other").replace("samples: 4", "samples: 6"))
    other = str(folder / "other.yaml")
    call(folder, "submit", "--cluster", "debug", name=other)
    assert "everything is done" in call(folder, "submit", "--cluster", "debug")
    assert len({path.name for path in (folder / "runs").glob("attention-*")}) == 1  # it is one run
    for name, samples in (("tiny", 4), ("other", 6)):
        call(folder, "collect", name=str(folder / f"{name}.yaml"))
        frame = pd.read_parquet(folder / "runs" / "collected" / name / "records.parquet")
        assert set(frame["n"]) == {samples}
    # Of one experiment alone what it asks for is measured again.
    call(folder, "retry", "--suite", "recall", "--cluster", "debug", name=other)
    (tiny, again) = (planned(folder, *change) for change in ((), ("suites.recall.samples=6",)))
    histories = [RunFolder(tiny.folder).read_history(run.place("recall")) for run in (tiny, again)]
    assert [len(history) for history in histories] == [1, 2]


def test_a_suite_that_the_experiment_lacks_or_that_is_at_work_is_refused(folder: Path) -> None:
    run = planned(folder)
    words = ["retry", str(folder / "tiny.yaml"), "--runs", str(folder / "runs"), "--suite"]
    wrong = cli.invoke(app, [*words, "rekall"])
    assert wrong.exit_code == 2 and "--suite: 'rekall' is not of this experiment; give one of: recall" in wrong.output
    write_status(run.folder, run.place("recall"), "queued", "as recall-0", job="7")
    busy = cli.invoke(app, [*words, "recall"])
    assert busy.exit_code == 2 and "at work on" in busy.output and records(run)


def test_only_what_failed_is_tried_again(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2, 3], suites=SUITES)
    plans = plan(load_experiment(path), tmp_path / "runs")
    training, evaluation, cancelled, untouched = plans
    assert untouched.missing == [TRAIN, "language", "recall"]
    write_status(training.folder, TRAIN, "failed", "loss nan")
    write_status(evaluation.folder, evaluation.place("recall"), "failed", "no data")
    write_status(cancelled.folder, TRAIN, "stopped", "cancelled")
    work = failed_work(plans, None)
    # What waited for the training comes with it.
    assert work == {training.folder: [TRAIN, "language", "recall"], evaluation.folder: ["recall"]}
    again = only(plans, work)
    assert [(run.folder, run.missing) for run in again] == [
        (training.folder, [TRAIN, "language", "recall"]),
        (evaluation.folder, ["recall"]),
    ]
    start_again(plans, work, again=False)
    assert failed_work(plans, None) == {}
    assert RunFolder(cancelled.folder).read_status(TRAIN).state == "stopped"
    assert measured_work(plans, None, "recall") == {}  # nothing is trained yet


def test_a_trial_that_failed_brings_the_runs_that_its_choice_decides(tmp_path: Path, small_data: Path) -> None:
    plans = plan(load_experiment(tuned(tmp_path, small_data)), tmp_path / "runs")
    first, *others = plans[0].selection.trials
    write_status(first.folder, TRAIN, "failed", "no space left")
    alone = only(plans, failed_work(plans, None))  # other trials are missing: there is no choice yet
    assert [(run.folder, run.trial) for run in alone] == [(first.folder, True)]
    for trial in others:
        give_score(trial, 0.5)
    plans = plan(load_experiment(tmp_path / "tiny.yaml"), tmp_path / "runs")
    again = only(plans, failed_work(plans, None))
    assert [run.folder for run in again] == [run.folder for run in plans]
    assert [trial.missing for trial in again[0].selection.trials] == [first.missing, [], [], []]
