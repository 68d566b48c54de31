"""A gap says what a difference is worth, and the table of them corrects, marks and counts."""

from __future__ import annotations

import csv
import io

import pytest

from harness.records.significance import holm
from harness.tables.comparison import comparison
from harness.tables.differences.gaps import BETTER, FRAME, OPEN, WORSE, gap
from harness.tables.differences.rows import differences
from tests.harness.tables.table_records import record, store


def table(folder):
    values = {"gdn2": (0.70, 40.0), "kda": (0.60, 50.0), "mamba2": (0.62, 40.5), "mamba3_siso": (0.40, 41.0)}
    records = [record(label, "piqa", "acc", acc, 0.02, 500) for label, (acc, _) in values.items()]
    records += [record(label, "lambada", "perplexity", ppl, 0.5, 500) for label, (_, ppl) in values.items()]
    return comparison(store(folder, records))


def test_p_values_are_corrected_over_the_differences_of_a_column_and_named_by_the_direction_of_its_metric(tmp_path):
    found = differences(table(tmp_path), "kda").frame()
    assert list(found) == FRAME
    for _, own in found.groupby("column"):
        assert own["holm"].tolist() == pytest.approx(holm(own["p"].tolist()))
    outcomes = found.set_index(["label", "column"])["outcome"].to_dict()
    assert outcomes["gdn2", "piqa_acc"] == outcomes["gdn2", "lambada_ppl"] == BETTER  # a lower perplexity is
    assert outcomes["mamba3_siso", "piqa_acc"] == WORSE and outcomes["mamba2", "piqa_acc"] == OPEN
    row = found.set_index(["label", "column"]).loc["gdn2", "piqa_acc"]
    assert (row["value"], row["base"], row["unit"]) == (70.0, 60.0, "points")
    assert row["difference"] == pytest.approx(10.0) and row["low"] < 10.0 < row["high"]


def test_every_form_has_the_differences_and_the_number_that_they_are_from(tmp_path):
    made = differences(table(tmp_path), "kda")
    text = made.markdown()
    assert "language: difference from kda (recurrent), with 95% interval" in text
    assert "| recurrent | kda | 60.0 | 50 |" in text and "**+10.0 [" in text and "<u>−20.0 [" in text
    assert "- mamba3_siso: better in 1, worse in 1 of 2 columns" in text
    assert "Holm's correction over the differences of a column" in text
    assert "+10.0 [" in made.html() and "\\textbf{+10.0 {[}" in made.latex("x") and "+10.0 [" in made.terminal(120)
    header, *lines = csv.reader(io.StringIO(made.csv()))
    assert header[3:7] == ["piqa_acc", "piqa_acc_low", "piqa_acc_high", "piqa_acc_p"]
    by_label = {line[1]: dict(zip(header, line, strict=True)) for line in lines}
    assert float(by_label["gdn2"]["piqa_acc"]) == pytest.approx(10.0) and by_label["kda"]["piqa_acc"] == ""


def test_a_missing_number_has_no_difference_and_an_unknown_error_no_interval(tmp_path):
    records = [record("gdn2", "piqa", "acc", 0.5, None), record("kda", "piqa", "acc", 0.25, 0.01)]
    records.append(record("kda", "boolq", "acc", 0.5, 0.01))
    made = differences(comparison(store(tmp_path, records)), "kda")
    (each,) = made.gaps.values()
    assert each.outcome == OPEN and each.text.value == "+25" and each.holm is None
    row, column = next(iter(made.gaps))
    assert gap(column, made.bases[made.rows[1], column], made.bases[made.rows[1], column]).found.difference == 0
    assert [c.name for c in made.columns] == ["piqa_acc"] and made.marks_note("b", "u") == []
    assert made.text(row, made.columns[0]).mark is None
