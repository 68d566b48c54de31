"""The paper's numbers as data: every printed number is there, in the metrics' own units, under its column's name."""

from __future__ import annotations

import pytest

from harness.records.published import (
    ABLATED,
    AVERAGE,
    TABLES,
    column_name,
    parse_column,
    printed_values,
    published,
    task_sizes,
)


@pytest.mark.parametrize(
    ("table", "rows"), [("table2", 13 * 12), ("table3", 13 * 14), ("table4", 13 * 7), ("table5", 28), ("figure2", 28)]
)
def test_every_printed_number_is_a_row_with_its_source(table, rows):
    frame = published(table)
    assert len(frame) == rows
    assert frame["value"].notna().all() and frame["source"].str.startswith("arXiv 2605.22791v1").all()


def test_printed_numbers_are_found_by_what_they_measure():
    values = printed_values()
    assert values["gdn2", "recurrent", "language", "wikitext", "word_perplexity", None] == 15.90
    assert values["gdn2", "hybrid", "language", "hellaswag", "acc_norm", None] == pytest.approx(0.5846)
    assert values["kda", "recurrent", "ruler", "s_niah_3", "contains", 2048] == pytest.approx(0.632)
    assert values["attention", "attention", "retrieval", "fda", "contains", None] == pytest.approx(0.5478)
    speed = published("figure2").query("mixer == 'gdn2' and length == 16384")
    assert speed["value"].tolist() == [36100.0] and speed["batch"].tolist() == [1]
    with pytest.raises(ValueError, match="'table9' is not published"):
        published("table9")


def test_every_accuracy_that_the_paper_prints_has_a_size():
    sizes = task_sizes()
    for table in ("table2", "table3", "table4"):
        frame = published(table)
        rates = frame[frame["metric"].isin(["acc", "acc_norm", "contains"]) & (frame["task"] != "avg")]
        assert set(rates["task"]) <= set(sizes)
    assert sizes["lambada"] == 5153 and sizes["s_niah_2"] == 500


@pytest.mark.parametrize(
    "task, whole", [("swde", 1111), ("fda", 1102), ("triviaqa", 1689), ("drop", 2088), ("nq", 3158)]
)
def test_retrievals_sizes_are_those_that_its_printed_percentages_are_shares_of(task, whole):
    frame = published("table4")
    values = frame.loc[frame["task"] == task, "value"]

    def shares(size):
        """Count the printed values that some number of correct answers gives."""
        return sum(round(100 * round(value * size) / size, 2) == round(100 * value, 2) for value in values)

    assert len(values) == 13 and shares(task_sizes()[task]) >= 8 > 5 >= shares(whole)


def test_columns_are_named_and_parsed_both_ways():
    assert column_name("wikitext", "word_perplexity") == "wikitext_ppl"
    assert column_name("s_niah_2", "contains", 4096) == "s_niah_2@4096"
    for _, _, suite, *column in printed_values():
        if suite != "throughput":
            assert parse_column(column_name(*column)) == tuple(column)


def test_table_5_varies_one_model_and_averages_over_retrieval():
    frame = published("table5")
    assert {(row.mixer, row.layout) for row in frame.itertuples()} == {tuple(ABLATED.values())}
    assert set(frame.loc[frame["task"] == AVERAGE, "suite"]) == {"language", "retrieval"}


def test_every_table_has_its_file():
    assert all(len(published(table)) for table in TABLES)
