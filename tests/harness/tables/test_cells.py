"""Cells and headings: how names, numbers and lengths are written."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.records.stats import estimate
from harness.tables.cells import MODEL_COLUMNS, Cell, Column, cell_text, count, model_text, number, power_of_ten, within
from harness.tables.comparison import comparison
from tests.harness.tables.table_records import expectation, record, run_row, store


def test_lengths_that_are_not_tokens_say_what_they_count(tmp_path):
    settings = {"length_unit": "key-value pairs"}
    frame = store(
        tmp_path, [record("gdn2", "mqar", "acc", 0.5, 0.1, suite="recall", length=n, settings=settings) for n in (4, 8)]
    )
    table = comparison(frame)
    assert [(column.title, column.detail) for column in table.columns] == [
        ("mqar", "acc @4 pairs ↑"),
        ("mqar", "acc @8 pairs ↑"),
    ]
    assert [column.name for column in table.columns] == ["mqar_acc@4", "mqar_acc@8"]
    assert "samples a run: 100: mqar @4/8 pairs" in table.notes


def test_huge_perplexities_are_powers_of_ten_to_read_and_exact_in_csv(tmp_path):
    values = {"gdn2": (153934115.0, 67540947.0), "kda": (99999.0, 10.0), "mamba2": (9.97e8, 2e5)}
    table = comparison(store(tmp_path, [record(k, "novels", "word_perplexity", *v) for k, v in values.items()]))
    text = table.markdown()
    assert "1.5e8 ± 0.7e8" in text and "99999 ± 10" in text and "10.0e8" not in text
    assert "9.970e8 ± 0.002e8" in text and "153934115,67540947" in table.csv()
    assert power_of_ten(9.97e8, 6e7) == "1.00e9 ± 0.06e9"
    assert power_of_ten(2e5, None) == "2.0e5"


def test_names_and_headings_are_the_papers():
    needle = Column("ruler", "s_niah_2", "contains", 4096)
    assert (needle.title, needle.detail, needle.name) == ("S-NIAH-2", "@4096 ↑", "s_niah_2@4096")
    assert Column("language", "hellaswag", "acc_norm", None).name == "hellaswag_acc_norm"
    wikitext = Column("language", "wikitext", "word_perplexity", None)
    assert (wikitext.title, wikitext.detail) == ("Wiki.", "ppl ↓")


def test_a_stand_in_has_neither_the_papers_name_nor_its_number(tmp_path):
    runs = pd.DataFrame([run_row("gdn2", "gdn2", "recurrent", 0)])
    records = [record("gdn2", "wikitext", "word_perplexity", 20.0, 1.0, stand_in=why) for why in (None, "105 articles")]
    paper, other = (
        comparison(store(tmp_path / str(i), [r]), runs=runs, expected=expectation("table2", acc=1.0))
        for i, r in enumerate(records)
    )
    assert "Wiki. ppl ↓ |" in paper.markdown() and "paper 15.9 |" in paper.markdown()
    assert "Wiki. (stand-in) ppl ↓ [a] |" in other.markdown() and "paper 15.9" not in other.markdown()
    assert "[a] not the paper's measurement: Wiki. (stand-in): 105 articles" in other.notes


def test_a_cell_shows_the_printed_number_and_whether_ours_is_within_the_tolerance():
    column = Column("language", "piqa", "acc", None)
    cell = Cell(estimate([0.72], [0.01], [300]), paper=0.728, tolerance=0.8)
    # 72.0 is 0.8 points below 72.8: at the tolerance, which counts as within.
    assert within(cell, column) is True and cell_text(cell, column, 1).value == "72.0 ± 1.0"
    assert cell_text(cell, column, 1).paper == "72.8, −0.8 ≈"
    cell.tolerance = 0.7
    assert within(cell, column) is False and cell_text(cell, column, 1).paper == "72.8, −0.8 ≠"
    cell.tolerance = None
    assert within(cell, column) is None and cell_text(cell, column, 1).paper == "72.8"


def test_an_error_gets_its_own_digits_in_powers_of_ten():
    assert power_of_ten(1.5e8, 0.7e8) == "1.5e8 ± 0.7e8"
    assert power_of_ten(1.5e8, 0.7e6) == "1.500e8 ± 0.007e8"


def test_counts_are_short_to_read_and_csv_numbers_keep_six_digits():
    assert [count(x) for x in (4096, 999_999, 1_184_123, 7.5e9, 0.125)] == [
        "4,096",
        "999,999",
        "1.184M",
        "7.5G",
        "0.125",
    ]
    assert [number(x) for x in (4096.0, 0.12345678)] == ["4096", "0.123457"]
    assert model_text(None) == "–" and model_text(estimate([5000.0, 5200.0], [None] * 2, [1] * 2)) == "5,100 ± 100"


@pytest.mark.parametrize(("metric", "shown"), [("acc", 50.0), ("word_perplexity", 0.5)])
def test_fractions_alone_are_shown_in_percent(metric, shown):
    assert Column("language", "x", metric, None).shown(0.5) == shown


def test_the_speed_of_training_is_headed_as_its_metric():
    assert MODEL_COLUMNS["tokens_per_second"] == "training tokens/s ↑"
