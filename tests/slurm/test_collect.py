"""Collecting: what of an experiment's records and runs is kept, and the files of its tables."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.records.store import load, write_records
from harness.run_folder import TRAIN, Collection, RunFolder, collection_of
from harness.tables.collection import write_table
from run import app
from slurm.collect import collect, runs_frame
from slurm.jobs import CollectJob
from slurm.plan import RunPlan, plan
from slurm.snapshot import open_submission
from suites.units import Evaluation
from tests.harness.tables.table_records import record
from tests.slurm.experiments import call


@pytest.fixture
def plans(tmp_path: Path) -> list[RunPlan]:
    """The runs of table 5, evaluated on one task each."""
    found = []
    for i, config in enumerate(expand(load_experiment("table5"), 32000, "0" * 64).runs):
        run = RunPlan(config, tmp_path / "runs" / config.run_id, {"language": Evaluation({"tasks": ["piqa"]})}, [])
        measured = record(config.label, "lambada", "perplexity", 11.0 + i, 0.1, mixer="gdn2", preset=config.preset)
        write_records(run.folder, run.place("language"), [replace(measured, run=config.run_id)])
        RunFolder(run.folder).write_done(run.place("language"), run.units["language"].key(None))
        found.append(run)
    return found


def gather(plans: list[RunPlan], out: Path, *overrides: str) -> tuple[pd.DataFrame, list[str]]:
    with Collection(out).replacing():
        return collect(plans, load_experiment("table5", list(overrides)), out, "test")


def test_a_run_is_collected_with_the_options_of_its_mixer(plans, tmp_path):
    gather(plans, tmp_path / "out")
    runs = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert [(r["options"]["erase_gate"], r["options"]["write_gate"], r["options"]["erase_range"]) for r in runs] == [
        ("channel", "channel", 1),
        ("scalar", "channel", 1),
        ("channel", "scalar", 1),
        ("channel", "channel", 2),
    ]
    shown = write_table(tmp_path / "out", None, False, load_experiment("table5")).markdown()
    for label, value in (("scalar erase gate", "12.00"), ("scalar write gate", "13.00"), ("erase range 2", "14.00")):
        (line,) = [line for line in shown.splitlines() if f"{label} |" in line]
        assert value in line and "paper" not in line  # these runs have seen no tokens, the paper's 100B
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{table}.{form}" for table in ("table", "table5") for form in ("md", "tex", "csv", "html")} <= names
    assert load(tmp_path / "out")["value"].tolist() == [11.0, 12.0, 13.0, 14.0]


def test_a_run_whose_records_cannot_be_read_is_said_and_does_not_stop_the_others(plans, tmp_path):
    broken = RunFolder(plans[1].folder).records(plans[1].place("language"))
    broken.write_text(broken.read_text().replace('"schema": 1', '"schema": 2'))
    frame, lacking = gather(plans, tmp_path / "out")
    assert len(frame) == 3 and lacking == [plans[1].config.run_id]
    assert set(pd.read_parquet(tmp_path / "out" / "records.parquet")["run"]) == set(frame["run"])
    shown = write_table(tmp_path / "out", None, False).markdown()
    assert "| recurrent | Gated DeltaNet-2, scalar erase gate | unreadable |" in shown
    assert "UNREADABLE: Gated DeltaNet-2, scalar erase gate" in shown and "schema 2 is newer" in shown
    for run in plans:
        path = RunFolder(run.folder).records(run.place("language"))
        path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ValueError, match="line 1: schema 2 is newer than this version reads, 1; update the project"):
        gather(plans, tmp_path / "out")


def test_table_figure_and_report_take_the_experiment_from_the_collection_by_name_and_by_path(plans, tmp_path):
    named = ("name=mine", "description=as it was", "train.lr=0.0123")
    gather(plans, collection_of(tmp_path / "runs", "mine").path, *named)
    path = tmp_path / "edited.yaml"
    path.write_text("name: mine\ndescription: as it is\ntrain: {lr: fast}\n")  # edited since, and now wrong
    for experiment in ("mine", str(path)):
        assert "scalar erase gate" in call(tmp_path, "table", name=experiment)
    call(tmp_path, "report", name=str(path))
    page = collection_of(tmp_path / "runs", "mine").report.read_text()
    assert "lr: 0.0123" in page and "as it was" in page and "as it is" not in page
    assert "scores.svg" in call(tmp_path, "figure", "--what", "scores", "--column", "lambada_ppl", name=str(path))
    Collection(tmp_path / "runs" / "collected" / "mine").experiment.unlink()
    wrong = CliRunner().invoke(app, ["table", "mine", "--runs", str(tmp_path / "runs")])
    assert wrong.exit_code == 2 and "experiment.yaml: missing" in wrong.output and "run collect again" in wrong.output


def test_an_experiment_given_by_path_is_collected_and_shown_by_its_name_as_it_was_submitted(folder: Path) -> None:
    call(folder, "submit", "--set", "description=as submitted", "--cluster", "debug")  # everything is done
    loaded = load_experiment(folder / "tiny.yaml", ["description=as submitted"])
    open_submission(loaded, plan(loaded, folder / "runs"), folder / "runs", "slurm")
    for command in ("status", "collect", "table"):
        assert call(folder, command, name="tiny")
    assert collection_of(folder / "runs", "tiny").read_experiment()["description"] == "as submitted"


def test_an_older_submission_collects_what_the_newest_asks_for(folder: Path) -> None:
    runs, submitted = folder / "runs", []
    for label in ("old", "new"):
        loaded = load_experiment(folder / "tiny.yaml", [f"mixers=[{{mixer: attention, label: {label}}}]"])
        submitted.append(open_submission(loaded, plan(loaded, runs), runs, "slurm"))
    out = collection_of(runs, "tiny").path
    for submission in reversed(submitted):  # the older one ends last
        CollectJob(submission, "collect", out, runs, "test")()
        assert set(load(out)["label"]) == {"new"} and "| new |" in Collection(out).table("table", "md").read_text()


def test_rows_tell_every_start_that_their_results_rest_on(folder: Path) -> None:
    loaded = load_experiment(folder / "tiny.yaml")
    (run,) = plan(loaded, folder / "runs")
    kept = RunFolder(run.folder)
    (start,) = kept.read_history(TRAIN)
    assert (start["reached"], start["processes"], start["backend"]) == (0, 1, "torch")
    kept.append_history(TRAIN, start | {"reached": 2, "device": "Another CPU", "code_sha256": "f" * 64})
    call(folder, "collect")
    (row,) = json.loads(collection_of(folder / "runs", "tiny").runs.read_text())
    assert [len(row["history"][unit]) for unit in (TRAIN, "recall")] == [2, 1]
    before, after = row["trained_on"].split(", then ")
    assert before.startswith(start["device"]) and after.startswith("Another CPU") and "content ffffffffff" in after
    assert "then Another CPU" in call(folder, "table")


def test_fields_of_the_recipe_that_the_experiment_sets_differently_are_collected_for_every_run(tmp_path: Path) -> None:
    def recipes(*changes: str) -> list[dict | None]:
        configs = expand(load_experiment("table5", [*changes, "ablations=[]"]), 32000, "0" * 64).runs
        return list(runs_frame([RunPlan(config, tmp_path, {}, []) for config in configs], {})["recipe"])

    assert recipes("mixers=[gdn2, {mixer: kda, train: {lr: 0.03}}]") == [
        {"lr": load_experiment("table5").train.lr},
        {"lr": 0.03},
    ]
    assert recipes("mixers=[gdn2, kda]") == [None, None]
