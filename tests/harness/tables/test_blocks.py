"""Blocks: what is folded into a line, and how wide suites are divided and cut."""

from __future__ import annotations

from harness.tables.blocks import WIDEST, Block, divided, folded, without_numbers
from harness.tables.cells import FAILED, MISSING, Row, Text
from harness.tables.comparison import comparison
from tests.harness.tables.table_records import record, store


def block(rows: dict[str, list[str]], layout: str = "recurrent", **fields) -> Block:
    width = len(next(iter(rows.values())))
    own = [(Row(layout, label, label), [Text(text) for text in texts]) for label, texts in rows.items()]
    return Block("suite", [(f"t{i}", "acc ↑") for i in range(width)], {layout: own}, **fields)


def test_a_column_in_which_nothing_differs_becomes_a_line():
    found = folded(block({"a": ["0.0 ± 0.5", "1.0"], "b": ["0.0 ± 0.5", "2.0"]}))
    assert found.headings == [("t1", "acc ↑")] and [text.value for _, (text,) in found.rows] == ["1.0", "2.0"]
    assert found.remarks == ["the same in every row: t0 acc ↑ 0.0 ± 0.5"]


def test_a_row_that_failed_differs_and_one_row_alone_is_not_compared():
    failed = {"a": ["0.0", "1.0"], "b": [FAILED, FAILED]}
    assert folded(block(failed)) == block(failed)
    assert folded(block({"a": ["0.0"]})) == block({"a": ["0.0"]})


def test_rows_without_numbers_are_left_out_and_a_baseline_silently():
    found = folded(block({"a": ["1.0"], "b": ["2.0"], "c": [MISSING]}))
    assert [row.label for row, _ in found.rows] == ["a", "b"] and found.remarks == ["no numbers yet: c (recurrent)"]
    assert folded(block({"unigram": [MISSING]}, layout="baseline")).remarks == []


def test_rows_without_numbers_are_named_by_preset_and_a_whole_preset_at_once():
    rows = [Row("recurrent", f"{label} @ {preset}", label, preset) for preset in ("s", "l") for label in ("a", "b")]
    assert list(without_numbers(rows[1:], rows)) == ["no numbers yet: s: b (recurrent); l: all"]
    assert list(without_numbers([])) == []


def test_wide_suites_are_divided_by_metric_and_then_evenly():
    metrics = ["acc"] * 10 + ["ppl"] * 3
    parts = list(divided(block({"a": [str(i) for i in range(13)]}, metrics=metrics, remarks=["x"])))
    assert [(part.title, len(part.headings)) for part in parts] == [
        ("suite: acc (1 of 2)", 5),
        ("suite: acc (2 of 2)", 5),
        ("suite: ppl", 3),
    ]
    assert [part.remarks for part in parts] == [[], [], ["x"]]
    assert [text.value for part in parts for text in part.rows[0][1]] == [str(i) for i in range(13)]
    narrow = block({"a": ["1"] * WIDEST}, metrics=["acc"] * WIDEST)
    assert list(divided(narrow)) == [narrow]


def test_a_block_is_cut_to_a_width_and_every_column_is_in_one_part():
    whole = block({"a label": ["10.0 ± 1.0"] * 5}, remarks=["x"])
    parts = whole.cut(40, 2)
    # 7 characters of the label, then 12 a column.
    assert [len(part.headings) for part in parts] == [2, 2, 1]
    assert [heading for part in parts for heading in part.headings] == whole.headings
    assert [part.remarks for part in parts] == [[], [], ["x"]]
    assert [len(part.headings) for part in whole.cut(1, 2)] == [1] * 5


def test_the_frame_says_what_follows_the_plus_minus():
    assert block({"a": ["1.0 ± 0.1"]}).caption == "suite: mean ± standard error"
    assert block({"a": ["1.0"]}).caption == "suite"


def test_a_suite_of_many_lengths_is_divided_in_a_table(tmp_path):
    records = [
        record(label, "s_niah_1", metric, value, 0.1, suite="ruler", length=length)
        for metric in ("contains", "needle_gain")
        for length in range(100, 800, 100)
        for label, value in (("gdn2", 0.5), ("kda", 0.25))
    ]
    titles = [found.title for found in comparison(store(tmp_path, records)).blocks()]
    assert titles == ["ruler: contains", "ruler: needle gain, nats/token"]
