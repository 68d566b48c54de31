"""Tables in LaTeX: a float with caption and label for each suite, whose columns stand below one another if need be."""

from __future__ import annotations

import re

from harness.tables.comparison import comparison
from harness.tables.latex_form import CHARACTERS, slug
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


def test_a_label_has_letters_digits_and_hyphens_alone():
    assert slug("ruler: needle gain, nats/token (1 of 2)") == "ruler-needle-gain-nats-token-1-of-2"
    assert slug("\\input{x}_é$") == "input-x"
