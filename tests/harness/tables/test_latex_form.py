"""Tables in LaTeX: a float with caption and label for each suite, whose columns stand below one another if need be."""

from __future__ import annotations

import re

from harness.tables.comparison import comparison
from harness.tables.latex_form import CHARACTERS, LINES, slug
from tests.harness.tables.table_records import RUNS, golden_records, record, store


def test_each_suite_is_a_float_with_its_own_caption_and_label(tmp_path):
    text = comparison(store(tmp_path, golden_records()), runs=RUNS).latex("t")
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert captions == ["model", "language: mean $\\pm$ standard error", "ruler: mean $\\pm$ standard error"]
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:t-model", "tab:t-language", "tab:t-ruler"]
    assert "resizebox" not in text and "\\tiny" not in text  # nothing is smaller than \scriptsize


def test_columns_that_do_not_fit_side_by_side_stand_below_one_another_in_one_float(tmp_path):
    records = [
        record(label, "mqar", "acc", value, 0.01, suite="recall", length=length)
        for length in range(1, 9)
        for label, value in (("Gated DeltaNet-2", 0.5), ("Gated DeltaNet", 0.25))
    ]
    text = comparison(store(tmp_path, records)).latex("t")
    assert text.count("\\begin{table}") == 1 and text.count("\\begin{tabular}") == 2
    assert text.count("Gated DeltaNet-2 &") == 2 and text.count("50.0 $\\pm$ 1.0") == 8
    assert CHARACTERS < 345 / 4.25  # digits of \footnotesize are 4.25 points wide, and bold ones wider


def test_what_does_not_fit_on_a_page_goes_on_in_further_floats(tmp_path):
    records = [
        record(f"m{i}", "mqar", "acc", 0.5 + i / 100, 0.01, suite="recall", length=length)
        for length in range(1, 9)
        for i in range(30)
    ]
    text = comparison(store(tmp_path, records)).latex("t")
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert len(captions) >= 2 and all(caption == f"{captions[0]}, continued" for caption in captions[1:])
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:t", *(f"tab:t-{n + 2}" for n in range(len(captions) - 1))]
    floats = text.split("\\begin{table}")[1:]
    assert max(f.count(" \\\\\n") for f in floats) <= LINES and text.count("m29 &") == text.count("\\begin{tabular}")


def test_notes_of_more_than_a_page_are_no_part_of_a_float(tmp_path):
    table = comparison(store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.01) for label in ("a", "b")]))
    assert "Notes on table" not in table.latex("t")
    table.facts = ["a long note " * 600]
    text = table.latex("t")
    assert text.index("\\end{table}") < text.index("Notes on table~\\ref{tab:t}") < text.index("a long note")


def test_a_label_has_letters_digits_and_hyphens_alone():
    assert slug("ruler: needle gain, nats/token (1 of 2)") == "ruler-needle-gain-nats-token-1-of-2"
    assert slug("\\input{x}_é$") == "input-x"
