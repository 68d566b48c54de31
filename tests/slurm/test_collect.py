"""Collecting: what of an experiment's records and runs is kept, and the files of its tables."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.records.store import load, write_records
from harness.run_folder import Collection, RunFolder
from harness.tables.collection import write_table
from slurm.collect import collect
from slurm.plan import RunPlan
from suites.units import Evaluation
from tests.harness.tables.table_records import record


@pytest.fixture
def plans(tmp_path: Path) -> list[RunPlan]:
    """The runs of table 5, evaluated on one task each."""
    found = []
    for i, config in enumerate(expand(load_experiment("table5"), 32000, "0" * 64).runs):
        run = RunPlan(config, tmp_path / "runs" / config.run_id, {"language": Evaluation({})}, [])
        measured = record(config.label, "lambada", "perplexity", 11.0 + i, 0.1, mixer="gdn2", preset=config.preset)
        write_records(run.folder, run.place("language"), [replace(measured, run=config.run_id)])
        RunFolder(run.folder).write_done(run.place("language"), run.units["language"].key(None))
        found.append(run)
    return found


def gather(plans: list[RunPlan], out: Path) -> tuple[pd.DataFrame, list[str]]:
    with Collection(out).replacing():
        return collect(plans, load_experiment("table5"), out, "test")


def test_a_run_is_collected_with_the_options_of_its_mixer(plans, tmp_path):
    gather(plans, tmp_path / "out")
    runs = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert [(r["options"]["erase_gate"], r["options"]["write_gate"], r["options"]["erase_range"]) for r in runs] == [
        ("channel", "channel", 1),
        ("scalar", "channel", 1),
        ("channel", "scalar", 1),
        ("channel", "channel", 2),
    ]
    shown, _ = write_table(tmp_path / "out", None, False, load_experiment("table5"))
    for label, printed in (("scalar erase gate", 11.62), ("scalar write gate", 11.5), ("erase range 2", 11.44)):
        (line,) = [line for line in shown.splitlines() if f"{label} |" in line]
        assert f"paper {printed}" in line
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{table}.{form}" for table in ("table", "table5") for form in ("md", "tex", "csv", "html")} <= names
    assert load(tmp_path / "out")["value"].tolist() == [11.0, 12.0, 13.0, 14.0]


def test_a_run_whose_records_cannot_be_read_is_said_and_does_not_stop_the_others(plans, tmp_path):
    broken = RunFolder(plans[1].folder).records(plans[1].place("language"))
    broken.write_text(broken.read_text().replace('"schema": 1', '"schema": 2'))
    frame, lacking = gather(plans, tmp_path / "out")
    assert len(frame) == 3 and lacking == [plans[1].config.run_id]
    assert set(pd.read_parquet(tmp_path / "out" / "records.parquet")["run"]) == set(frame["run"])
    shown, _ = write_table(tmp_path / "out", None, False)
    assert "| recurrent | Gated DeltaNet-2, scalar erase gate | unreadable |" in shown
    assert "UNREADABLE: Gated DeltaNet-2, scalar erase gate" in shown and "schema 2 is newer" in shown
    for run in plans:
        path = RunFolder(run.folder).records(run.place("language"))
        path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ValueError, match="line 1: schema 2 is newer than this version reads, 1; update the project"):
        gather(plans, tmp_path / "out")
