"""Differences from a chosen row: found by label or mixer, over layouts, at each preset."""

from __future__ import annotations

import numpy as np
import pytest

from harness.records.stats import mean_stderr, paired
from harness.records.store import load_samples
from harness.tables.comparison import comparison
from harness.tables.differences.rows import base_rows, differences
from tests.harness.tables.table_records import record, store


def test_rows_of_all_layouts_are_compared_item_by_item_with_the_chosen_one(tmp_path):
    rng = np.random.default_rng(0)
    easy = rng.random(300) < 0.6
    scores = {"gdn2": easy, "kda": easy & (rng.random(300) < 0.95), "attention": easy | (rng.random(300) < 0.1)}
    records = [
        record(label, "piqa", "acc", *mean_stderr(s), 300, samples=tuple(s.astype(float)), layout=layout)
        for (label, s), layout in zip(scores.items(), ("recurrent", "recurrent", "attention"), strict=True)
    ]
    frame = store(tmp_path, records)
    made = differences(comparison(frame, samples=load_samples(tmp_path)), "gdn2")
    found = {row.label: each.found for (row, _), each in made.gaps.items()}
    for label in ("kda", "attention"):
        assert found[label] == paired(scores[label].astype(float), scores["gdn2"].astype(float))
    assert "| attention | attention | " in made.markdown()


def test_a_layout_tells_rows_of_one_name_apart_and_an_unknown_name_is_refused(tmp_path):
    rows = [("gdn2", "recurrent"), ("gdn2", "hybrid"), ("kda", "recurrent"), ("Gated DeltaNet-2, scalar", "recurrent")]
    records = [
        record(label, "piqa", "acc", 0.5 + i / 10, 0.01, layout=layout, mixer="kda" if label == "kda" else "gdn2")
        for i, (label, layout) in enumerate(rows)
    ]
    table = comparison(store(tmp_path, records))
    (row,) = base_rows(table, "gdn2/hybrid").values()  # not the variant, whose mixer is gdn2, too
    assert (row.label, row.layout) == ("gdn2", "hybrid")
    assert len(differences(table, "gdn2/hybrid").gaps) == 3
    with pytest.raises(ValueError, match="'gdn2' names several rows; give one of: gdn2/recurrent, gdn2/hybrid"):
        differences(table, "gdn2")
    with pytest.raises(ValueError, match="no row goes by 'mamba2'; give one of: gdn2, kda, Gated DeltaNet-2, scalar"):
        differences(table, "mamba2")


def test_each_preset_has_its_own_row_and_one_without_it_is_named(tmp_path):
    cases = [("gdn2", "a", 0.5), ("kda", "a", 0.6), ("gdn2", "b", 0.7), ("kda", "b", 0.6), ("gdn2", "c", 0.9)]
    records = [
        record(label, "piqa", "acc", value, 0.01, preset=preset, seed=i, mixer=label)
        for i, (label, preset, value) in enumerate(cases)
    ]
    made = differences(comparison(store(tmp_path, records)), "kda")
    found = {row.preset: each.found.difference for (row, _), each in made.gaps.items()}
    assert found == pytest.approx({"a": -0.1, "b": 0.1})
    assert made.reading == ["nothing to compare with at c: no such row there"]
