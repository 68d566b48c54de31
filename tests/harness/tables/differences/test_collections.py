"""Differences between two collections: in the rows and columns that both have, and the reasons why others have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from harness.files import CHECKOUT
from harness.records.record import KEY
from harness.records.stats import mean_stderr, paired
from harness.run_folder import Collection
from harness.tables.differences.collections import compare_collections, flat
from run import app
from tests.harness.tables.table_records import record, store

DEMO = str(CHECKOUT / "results" / "demo")
rng = np.random.default_rng(0)
EASY = (rng.random(200) < 0.5).astype(float)
HARD = EASY * (rng.random(200) < 0.8)


def scored(label: str, scores: np.ndarray, **changes):
    changes = {"settings": {"items": "x"}} | changes
    return record(label, "piqa", "acc", *mean_stderr(scores), 200, samples=tuple(scores), **changes)


def collection(folder: Path, records: list, **experiment: object) -> Path:
    """A collection of hand-made records, whose experiment has some fields."""
    folder.mkdir()
    frame = store(folder / "runs", records).drop(columns="file")
    frame.to_parquet(Collection(folder).records)
    samples = [[list(r.key), list(r.samples)] for r in records if r.samples]
    Collection(folder).samples.write_text(json.dumps(samples))
    Collection(folder).runs.write_text(frame[["run", "label", "mixer", "layout", "preset"]].to_json(orient="records"))
    Collection(folder).experiment.write_text(yaml.safe_dump(experiment))
    return folder


def test_rows_that_both_have_are_compared_item_by_item_and_others_named(tmp_path):
    a = collection(tmp_path / "a", [scored("gdn2", EASY), scored("kda", EASY)], train={"lr": 0.1}, seeds=[0])
    own = [scored("gdn2", HARD, seed=1), scored("mamba2", HARD), record("gdn2", "boolq", "acc", 0.5, 0.1, seed=1)]
    b = collection(tmp_path / "b", own, train={"lr": 0.2}, seeds=[0])
    made = compare_collections(a, b)
    ((row, column),) = made.gaps
    assert (row.label, column.name) == ("gdn2", "piqa_acc") and made.gaps[row, column].found == paired(HARD, EASY)
    text = made.markdown()
    assert f"only in {a}: rows kda (recurrent)" in text
    assert f"only in {b}: rows mamba2 (recurrent); columns BoolQ" in text
    assert "the experiments differ in train.lr 0.1 → 0.2" in text and "seeds" not in text
    assert list(made.frame()[KEY[1:]].iloc[0])[:3] == ["language", "piqa", "acc"]


def test_what_was_measured_differently_is_left_out_unless_it_is_asked_for(tmp_path):
    a = collection(tmp_path / "a", [scored("gdn2", EASY)])
    b = collection(tmp_path / "b", [scored("gdn2", EASY, settings={"items": "y"})])
    why = 'settings.items: "x" in the one, "y" in the other; --allow-mixed compares all the same'
    with pytest.raises(ValueError, match=why):
        compare_collections(a, b)
    ((each),) = compare_collections(a, b, allow_mixed=True).gaps.values()
    assert each.found.test == "Welch's t"  # other items are no pairs


def test_a_collection_does_not_differ_from_itself(tmp_path):
    made = compare_collections(DEMO, DEMO, ["mqar_acc@4", "piqa_acc"])
    assert {each.found.difference for each in made.gaps.values()} == {0.0}
    assert not any("only in" in note or "differ in" in note for note in made.notes)
    assert any(note.startswith("the same in both: 8 runs; 0 of") for note in made.notes)


def test_the_command_takes_folders_and_names_and_prints_every_form(tmp_path):
    cli = CliRunner()
    shown = cli.invoke(app, ["compare", DEMO, DEMO, "--columns", "piqa_acc", "--format", "csv"])
    assert shown.exit_code == 0 and shown.output.startswith("layout,label,mixer,piqa_acc,piqa_acc_low"), shown.output
    lost = cli.invoke(app, ["compare", DEMO, "nothing", "--runs", str(tmp_path)])
    assert lost.exit_code == 2 and "nothing collected there; run collect first" in lost.output
    assert list(tmp_path.iterdir()) == []


def test_nested_fields_are_compared_by_dotted_name():
    assert flat({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": "1", "a.c": "[2]", "d": "null"}
