"""Tables in a terminal fit its width, and foreign texts neither colour nor move anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.records.store import load
from harness.run_folder import Collection
from harness.tables.comparison import comparison
from harness.tables.verdicts import MET, NOT_MET, Verdict
from tests.harness.tables.table_records import RUNS, golden_records, hostile_collection, store

STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("width", [60, 100, 160])
def test_no_line_is_wider_than_the_terminal_and_every_number_is_there(tmp_path: Path, width: int) -> None:
    table = comparison(store(tmp_path, golden_records()), runs=RUNS)
    table.summary = [
        "scale: a line that is so long that it has to be broken in every terminal of an ordinary width " * 2
    ]
    table.truths = [Verdict(MET, "a", "1"), Verdict(NOT_MET, "b", "2")]
    text = STYLE.sub("", table.terminal(width))
    assert max(map(len, text.splitlines())) <= width
    for part in ("64.0 ± 1.0", "0.250 ± 0.125", "failed", "- scale: a line", "not met: b", "1 met"):
        assert part in text
    assert text.index("- scale") < text.index("language: mean ± standard error") < text.index("not met: b")


def test_the_best_is_bold(tmp_path: Path) -> None:
    shown = comparison(store(tmp_path, golden_records()), runs=RUNS).terminal(100)
    assert re.search(r"\x1b\[1m *64\.0 ± 1\.0\x1b\[0m", shown) and not re.search(r"\x1b\[1m *58\.0", shown)


def test_foreign_texts_are_data(tmp_path: Path) -> None:
    folder = hostile_collection(tmp_path / "hostile")
    shown = comparison(load(folder), None, Collection(folder).read_runs(), {}, True, None).terminal(100)
    assert "\x1b[31m" not in shown and "[31mred" in shown  # the text of a label, whose escape is gone
    assert not re.search(r"[\x00-\x09\x0b-\x1a\x7f\u2028\u202e]", shown)
