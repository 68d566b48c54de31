"""The plan of an experiment: its runs, and what each of them still lacks."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from harness.experiments.load import load_experiment
from harness.files import write_atomic
from harness.run_folder import RunFolder
from slurm.bench import synthetic_summary
from slurm.plan import RunPlan, asked_for, check, part_of, plan
from slurm.snapshot import open_submission
from suites.units import TRAIN
from tests.slurm.experiments import experiment

SUITES = {"recall": {"pairs": [2], "samples": 12}, "ruler": {"lengths": [256, 512], "haystack": "corpus"}}


def finish_training(run: RunPlan, weights_sha256: str) -> None:
    """Leave the summary of a finished training in a run's folder."""
    summary = replace(synthetic_summary(run), weights_sha256=weights_sha256)
    RunFolder(run.folder).write_summary(summary, {})


def leave_records(run: RunPlan, unit: str, weights_sha256: str) -> None:
    """Leave the records of a unit, measured with these weights, in a run's folder."""
    folder, place = RunFolder(run.folder), run.place(unit)
    write_atomic(folder.records(place), b"{}\n")
    folder.write_done(place, run.units[unit].key(weights_sha256))


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
    leave_records(run, "recall", "a" * 64)
    leave_records(run, "ruler@256", "b" * 64)  # of other weights
    (again,) = plan(load_experiment(path), runs)
    assert again.missing == ["ruler@256", "ruler@512"]
    (other,) = plan(load_experiment(path, ["suites.recall.samples=13"]), runs)
    assert other.folder == run.folder and other.missing == ["recall", "ruler@256", "ruler@512"]


def test_a_mark_without_its_records_or_with_others_counts_for_nothing(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data, mixers=["attention"]), tmp_path / "runs"
    (run,) = plan(load_experiment(path), runs)
    finish_training(run, "a" * 64)
    records = RunFolder(run.folder).records(run.place("recall"))

    def left() -> list[str]:
        return plan(load_experiment(path), runs)[0].missing

    for damaged in (b"", b"{", None):
        leave_records(run, "recall", "a" * 64)
        assert left() == []
        records.unlink() if damaged is None else records.write_bytes(damaged)
        assert left() == ["recall"]


def test_records_of_an_earlier_version_are_found_under_the_name_of_their_unit(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data, mixers=["attention"]), tmp_path / "runs"
    (run,) = plan(load_experiment(path), runs)
    finish_training(run, "a" * 64)
    folder = RunFolder(run.folder)
    write_atomic(folder.records("recall"), b"{}\n")
    folder.done("recall").write_text(run.units["recall"].key("a" * 64))  # the mark was the key alone
    assert plan(load_experiment(path), runs)[0].missing == [] and run.results("recall") == "recall"
    (other,) = plan(load_experiment(path, ["suites.recall.samples=13"]), runs)
    assert other.missing == ["recall"]


def test_a_name_is_that_of_a_shipped_experiment_or_else_of_the_newest_submission(
    tmp_path: Path, small_data: Path
) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    assert asked_for("demo", None, None, runs).name == "demo"
    with pytest.raises(ValueError, match="experiment: no file tiny; give a path, or one of"):
        asked_for("tiny", None, None, runs)
    for lr in (0.01, 0.02):
        changed = load_experiment(path, [f"train.lr={lr}"])
        open_submission(changed, plan(changed, runs), runs, "local")
    assert asked_for("tiny", None, None, runs) == changed
    assert asked_for("tiny", ["train.lr=0.5"], None, runs).train.lr == 0.5
    assert asked_for(str(path), None, None, runs) == load_experiment(path)


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
    for seq_len, task in ((10_000_000, "text"), (10_000_000, "s_niah_2"), (100, "s_niah_1")):
        phase = {"tokens": 9, "seq_len": seq_len, "rows": {task: 1}}
        path = experiment(tmp_path, small_data, data={"source": str(small_data), "phases": [phase]})
        loaded = load_experiment(path)
        with pytest.raises(ValueError, match=f"seq_len: {seq_len} "):
            check(loaded, plan(loaded, tmp_path / "runs"), tmp_path / "runs")


def test_a_part_of_an_experiment_is_named_by_fields_of_its_runs_and_by_a_number(
    tmp_path: Path, small_data: Path
) -> None:
    plans = plan(load_experiment(experiment(tmp_path, small_data, seeds=[0, 1], suites={})), tmp_path / "runs")
    assert part_of(plans, None, None) == plans
    assert part_of(plans, "mixer=attention,seed=1", None) == [plans[3]]
    assert part_of(plans, "seed=0", 1) == [plans[0]]
    assert part_of([replace(plans[0], missing=[]), *plans[1:]], None, 2) == plans[1:3]
    with pytest.raises(ValueError, match="--only: no run has all of seed=0,seed=1"):
        part_of(plans, "seed=0,seed=1", None)
