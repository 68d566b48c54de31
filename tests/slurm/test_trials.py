"""Trials and choices on real runs: outcomes, what counts as worst, and a choice that does not change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.experiments.run_config import read_config
from harness.files import write_atomic
from harness.run_folder import RunFolder
from run import app
from slurm.plan import RunPlan, plan, selections, trials
from slurm.state import ended, started, write_status
from slurm.trials import DIVERGED, Unfinished, chosen_config, decide, failure, outcome, settled
from suites.units import TRAIN
from tests.slurm.experiments import experiment

cli = CliRunner()
TUNING = {
    "grid": {"train.lr": [1e-3, 3e-3]},
    "seeds": [10, 11],
    "share": 0.5,
    "choose": {"suite": "recall", "task": "mqar", "metric": "acc", "lengths": [2]},
}


def tuned(folder: Path, shards: Path, **changes: object) -> Path:
    return experiment(folder, shards, **({"mixers": ["attention"], "seeds": [0, 1], "tuning": TUNING} | changes))


def give_score(trial: RunPlan, score: float, loss: float = 3.0) -> None:
    """Leave what a finished trial leaves: its summary, and a record with this score."""
    from slurm.bench import synthetic_summary

    folder = RunFolder(trial.folder)
    folder.write_summary(replace(synthetic_summary(trial), train_loss=loss, steps=100), {})
    row = {"suite": "recall", "task": "mqar", "metric": "acc", "length": 2, "value": score}
    write_atomic(folder.records(trial.place("recall")), (json.dumps(row) + "\n").encode())
    folder.write_done(trial.place("recall"), trial.units["recall"].key("0"))


def give_up(trial: RunPlan, kind: str, reason: str) -> None:
    started(trial.folder, TRAIN, "log")
    ended(trial.folder, TRAIN, "failed", reason, kind)
    write_status(trial.folder, TRAIN, "failed", reason)


def test_trials_are_run_first_then_the_values_are_chosen_and_reported_runs_use_them(
    tmp_path: Path, small_data: Path
) -> None:
    path, runs = tuned(tmp_path, small_data), tmp_path / "runs"
    arguments = [str(path), "--cluster", "debug", "--runs", str(runs)]
    dry = cli.invoke(app, ["submit", *arguments, "--dry-run"])
    assert dry.exit_code == 0 and dry.output.count("(trial)") == 4 and "training: 6 runs" in dry.output
    done = cli.invoke(app, ["submit", *arguments])
    assert done.exit_code == 0, done.output
    plans = plan(load_experiment(path), runs)
    (selection,) = selections(plans)
    made = selection.file.read()
    assert made is not None and len(made["trials"]) == 4
    for run in plans:
        assert not run.missing and run.config.train.lr == made["values"]["train.lr"]
        assert read_config(run.folder) == run.config
    assert "2 of 2 runs done, 4 of 4 trials over" in cli.invoke(app, ["status", str(path), "--runs", str(runs)]).output
    assert cli.invoke(app, ["collect", str(path), "--runs", str(runs)]).exit_code == 0
    rows = json.loads((runs / "collected" / "tiny" / "trials.json").read_text())
    assert sorted(row["seed"] for row in rows) == [10, 10, 11, 11] and {row["share"] for row in rows} == {0.5}
    (row, _) = json.loads((runs / "collected" / "tiny" / "runs.json").read_text())
    assert row["tuned"] == made["values"] and row["trials"] == 4
    # The choice is gone: the same trials make the same one, and what is done stays done.
    selection.file.path.unlink()
    assert decide(selection) == made["values"] and not any(run.missing for run in plan(load_experiment(path), runs))


def test_a_trial_that_diverged_is_the_worst_and_one_that_failed_otherwise_keeps_the_choice_open(
    tmp_path: Path, small_data: Path
) -> None:
    plans = plan(load_experiment(tuned(tmp_path, small_data)), tmp_path / "runs")
    (selection,) = selections(plans)
    first, second, third, fourth = selection.trials
    for trial, score in ((first, 0.9), (third, 0.1), (fourth, 0.2)):
        give_score(trial, score)
    assert outcome(first, selection.tuned.choose).score == 0.9 and not settled(second)
    with pytest.raises(Unfinished, match=f"trial {second.config.run_id}: lacks train, recall"):
        decide(selection)
    give_up(second, "OSError", "no space left")
    assert settled(second) and failure(second) == ("OSError", "train: no space left")
    with pytest.raises(Unfinished, match="failed: train: no space left; `retry --failed` tries it again"):
        decide(selection)
    give_up(second, DIVERGED, "step 7: loss nan")
    assert decide(selection) == {"train.lr": 3e-3}
    made = selection.file.read()
    assert made is not None
    assert [(t["score"], t["reason"]) for t in made["trials"]][1] == (None, "train: step 7: loss nan")
    give_score(second, 1.0)
    assert decide(selection) == {"train.lr": 3e-3}  # a choice does not change


def test_a_run_that_skipped_most_of_its_steps_has_diverged(tmp_path: Path, small_data: Path) -> None:
    plans = plan(load_experiment(tuned(tmp_path, small_data)), tmp_path / "runs")
    trial, other, *_ = trials(plans)
    for each, skipped in ((trial, 51), (other, 49)):
        give_score(each, 0.5)
        summary = RunFolder(each.folder).read_summary()
        assert summary is not None
        RunFolder(each.folder).write_summary(replace(summary, skipped=skipped), {})
    by = selections(plans)[0].tuned.choose
    assert outcome(trial, by).score is None and "51 of 100 steps were skipped" in outcome(trial, by).reason
    assert outcome(other, by).score == 0.5


def test_a_score_that_the_suite_does_not_give_is_named_with_what_there_is(tmp_path: Path, small_data: Path) -> None:
    choose = TUNING["choose"] | {"lengths": [3]}  # type: ignore[operator]
    path = tuned(tmp_path, small_data, tuning=TUNING | {"choose": choose})
    (selection,) = selections(plan(load_experiment(path), tmp_path / "runs"))
    give_score(selection.trials[0], 0.5)
    with pytest.raises(ValueError, match=r"tuning.choose: trial .* has no acc of recall mqar at 3; it has \[2\]"):
        outcome(selection.trials[0], selection.tuned.choose)


def test_a_run_does_not_start_before_its_values_are_chosen_nor_go_on_with_others(
    tmp_path: Path, small_data: Path
) -> None:
    run, *_ = plan(load_experiment(tuned(tmp_path, small_data)), tmp_path / "runs")
    assert run.selection is not None
    with pytest.raises(Unfinished, match="its values are not chosen yet"):
        chosen_config(run.config, run.folder)
    for trial in run.selection.trials:
        give_score(trial, 0.5)
    values = decide(run.selection)
    config = chosen_config(run.config, run.folder)
    assert config.train.lr == values["train.lr"] and config.run_id == run.config.run_id
    RunFolder(run.folder).write_config(config.model_dump(mode="json"))
    run.selection.file.write({"values": {"train.lr": 3e-3}, "trials": []})
    with pytest.raises(ValueError, match="the run began with .*0.001.*, and its trials now choose .*0.003"):
        chosen_config(run.config, run.folder)


def test_a_suite_without_a_validation_split_cannot_choose(tmp_path: Path, small_data: Path) -> None:
    choose = {"suite": "language", "task": "heldout", "metric": "word_perplexity"}
    suites = {"language": {"tasks": ["heldout"], "limit": 2}}
    path = tuned(tmp_path, small_data, suites=suites, tuning=TUNING | {"choose": choose})
    with pytest.raises(ValueError, match="suites.language: has no validation split"):
        plan(load_experiment(path), tmp_path / "runs")
    assert yaml.safe_load(path.read_text())["tuning"]["choose"] == choose
