"""The plan of an experiment: its runs, and what each of them still lacks."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from harness.experiments.load import load_experiment
from harness.run_folder import RunFolder
from slurm.bench import synthetic_summary
from slurm.plan import RunPlan, check, plan
from suites.units import TRAIN
from tests.slurm.experiments import experiment

SUITES = {"recall": {"pairs": [2], "samples": 12}, "ruler": {"lengths": [256, 512], "haystack": "corpus"}}


def finish_training(run: RunPlan, weights_sha256: str) -> None:
    """Leave the summary of a finished training in a run's folder."""
    summary = replace(synthetic_summary(run), weights_sha256=weights_sha256)
    RunFolder(run.folder).write_summary(summary, {})


def test_a_new_experiment_lacks_everything_in_the_order_in_which_it_is_done(tmp_path: Path, small_data: Path) -> None:
    loaded = load_experiment(experiment(tmp_path, small_data, seeds=[0, 1], suites=SUITES))
    plans = plan(loaded, tmp_path / "runs")
    assert [(run.config.mixer, run.config.seed) for run in plans] == [
        ("gated_deltanet", 0),
        ("gated_deltanet", 1),
        ("attention", 0),
        ("attention", 1),
    ]
    for run in plans:
        assert run.folder == tmp_path / "runs" / run.config.run_id
        assert run.missing == [TRAIN, "recall", "ruler@256", "ruler@512"]
    assert not (tmp_path / "runs").exists()  # planning writes nothing


def test_what_has_results_of_these_weights_and_options_is_not_missing(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data, mixers=["attention"], suites=SUITES), tmp_path / "runs"
    (run,) = plan(load_experiment(path), runs)
    finish_training(run, "a" * 64)
    RunFolder(run.folder).write_done("recall", run.units["recall"].key("a" * 64))
    RunFolder(run.folder).write_done("ruler@256", run.units["ruler@256"].key("b" * 64))  # of other weights
    (again,) = plan(load_experiment(path), runs)
    assert again.missing == ["ruler@256", "ruler@512"]
    (other,) = plan(load_experiment(path, ["suites.recall.samples=13"]), runs)
    assert other.folder == run.folder and other.missing == ["recall", "ruler@256", "ruler@512"]


def test_suites_of_trained_models_need_training_data(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data)
    content = yaml.safe_load(path.read_text())
    del content["data"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="data.phases: none, and recall needs trained models"):
        plan(load_experiment(path), tmp_path / "runs")


def test_an_experiment_of_fresh_models_is_planned_without_data(tmp_path: Path) -> None:
    path = tmp_path / "speed.yaml"
    content = {"name": "speed", "preset": "cpu-600k", "mixers": ["attention"], "train": {"dtype": "fp32"}}
    path.write_text(yaml.safe_dump(content | {"suites": {"throughput": {"shapes": [{"batch": 1, "length": 32}]}}}))
    loaded = load_experiment(path)
    (run,) = plan(loaded, tmp_path / "runs")
    assert run.missing == ["throughput"]
    check(loaded, [run], tmp_path / "runs")  # there is nothing to check


def test_data_that_are_too_short_for_a_phase_are_found_before_work_starts(tmp_path: Path, small_data: Path) -> None:
    phase = {"tokens": 9, "seq_len": 10_000_000, "rows": {"text": 1}}
    path = experiment(tmp_path, small_data, data={"source": str(small_data), "phases": [phase]})
    loaded = load_experiment(path)
    with pytest.raises(ValueError, match="seq_len"):
        check(loaded, plan(loaded, tmp_path / "runs"), tmp_path / "runs")
