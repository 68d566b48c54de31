"""What a submission does and what it leaves to others."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.files import write_atomic
from harness.run_folder import RunFolder
from slurm.bench import synthetic_summary
from slurm.graph.work import LATER, Pending, Work, still_left, to_do
from slurm.plan import RunPlan, plan, selections, trials
from slurm.queue import Queue
from slurm.state import write_status
from slurm.trials import decide
from suites.units import TRAIN
from tests.slurm.experiments import experiment
from tests.slurm.test_trials import give_score, tuned

SUITES = {"recall": {"samples": 8}, "ruler": {"lengths": [256, 512], "haystack": "corpus"}}


@pytest.fixture
def plans(tmp_path: Path, small_data: Path) -> list[RunPlan]:
    path = experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2, 3, 4], suites=SUITES)
    return plan(load_experiment(path), tmp_path / "runs")


def test_units_that_somebody_does_or_whose_training_has_failed_are_left_out(plans: list[RunPlan]) -> None:
    training, failed, evaluation, lost, untouched = plans
    write_status(training.folder, TRAIN, "running", job="7_0", updated=time.time())
    write_status(failed.folder, TRAIN, "failed", "loss nan")
    write_status(evaluation.folder, evaluation.place("recall"), "failed", "no data")
    write_status(lost.folder, TRAIN, "queued", job="7_9")
    todo, held, left_out = to_do(plans, Queue({"7_0": ("RUNNING", "n1", "")}))
    assert held == ["7_0"]
    assert [(run.plan, run.units, run.after) for run in todo] == [
        (training, training.missing[1:], "7_0"),
        (evaluation, evaluation.missing, ""),
        (lost, lost.missing, ""),
        (untouched, untouched.missing, ""),
    ]
    assert [line.partition(": ")[2] for line in left_out] == [
        "running already, job 7_0",
        "failed: loss nan",
    ]


def test_what_waits_for_a_training_that_is_submitted_later_is_left_for_another_submission(plans: list[RunPlan]) -> None:
    later, running, *_ = plans
    write_status(later.folder, TRAIN, "queued", LATER, job="8")
    write_status(running.folder, TRAIN, "running", job="7_0", updated=time.time())
    todo, _, left_out = to_do([later, running], Queue({"7_0": ("RUNNING", "n1", ""), "8": ("PENDING", "", "")}))
    assert [(run.plan, run.units, run.after) for run in todo] == [(running, running.missing[1:], "7_0")]
    said = "job 8 submits its training in a later wave; submit again once it is in the queue"
    assert left_out[1:4] == [f"{later.config.run_id} {unit}: {said}" for unit in later.missing[1:]]


def test_units_go_to_a_job_each_or_the_evaluations_to_one(plans: list[RunPlan]) -> None:
    units = ["recall", "ruler@256"]
    for run, apart, packed in (
        (Pending(plans[0], [TRAIN, *units]), [[TRAIN], ["recall"], ["ruler@256"]], [[TRAIN], units]),
        (Pending(plans[0], units), [["recall"], ["ruler@256"]], [units]),
        (Pending(plans[0], [TRAIN]), [[TRAIN]], [[TRAIN]]),
    ):
        assert run.bundles(pack=False) == apart and run.bundles(pack=True) == packed


def test_of_work_planned_earlier_only_that_is_left_which_can_be_done(plans: list[RunPlan]) -> None:
    trained, failed, gone, waiting, held = plans
    units = ["recall", "ruler@256"]
    RunFolder(trained.folder).write_summary(synthetic_summary(trained), {})
    place, folder = trained.place("recall"), RunFolder(trained.folder)
    write_atomic(folder.records(place), b"{}\n")
    folder.write_done(place, trained.units["recall"].key("0"))
    write_status(failed.folder, TRAIN, "failed", "loss nan")
    for unit in (TRAIN, "recall"):
        write_status(waiting.folder, waiting.place(unit), "queued", job="9")  # by the job that asks, not in this queue
    todo = [Pending(run, units, after) for run, after in ((trained, ""), (failed, ""), (gone, "7_1"), (held, "7_0"))]
    work = Work([], [*todo, Pending(waiting, [TRAIN, "recall"])], [], ["7_0", "8"], [])
    left = still_left(work, Queue({"7_0": ("RUNNING", "n1", "")}))
    assert [(run.plan.folder, run.units, run.after) for run in left.runs] == [
        (trained.folder, ["ruler@256"], ""),
        (held.folder, units, "7_0"),
        (waiting.folder, [TRAIN, "recall"], ""),
    ]
    assert left.left_out == [f"{run.config.run_id}: its training did not finish" for run in (failed, gone)]
    assert left.held == ["7_0"]


def test_runs_whose_values_were_not_chosen_are_left_out_once_the_choice_was_due(
    tmp_path: Path, small_data: Path
) -> None:
    plans = plan(load_experiment(tuned(tmp_path, small_data)), tmp_path / "runs")
    work = Work([], [Pending(run, run.missing) for run in plans], selections(plans), [], [])
    assert still_left(work, Queue({})) == work
    after = still_left(replace(work, choices=[]), Queue({}))
    assert not after.runs and all(line.endswith("its values were not chosen") for line in after.left_out)
    for trial in trials(plans):
        give_score(trial, 0.5)
    decide(selections(plans)[0])
    assert still_left(work, Queue({})) == replace(work, choices=[])
    assert still_left(replace(work, choices=[]), Queue({})).runs == work.runs
