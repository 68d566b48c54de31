"""A table of differences: every cell is a number less another one, with the interval of the difference."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd

from harness.records.significance import holm
from harness.records.stats import ALPHA, Comparison
from harness.tables.blocks import Block, divided, folded
from harness.tables.cells import BOLD, MISSING, UNDERLINED, Cell, Column, Row, Text, count, gap_text, number, unlabelled
from harness.tables.escaping import csv_cell
from harness.tables.forms import Table, headings
from harness.tables.marks import compare_cells, paired

BETTER, WORSE, OPEN = "better", "worse", "not told apart"
FRAME = [
    *("layout", "label", "mixer", "preset", "suite", "task", "metric", "length", "column", "value", "base"),
    *("difference", "low", "high", "unit", "p", "holm", "outcome", "test", "n"),
]
MOST = 10
"""Rows that a summary speaks of."""


@dataclass
class Gap:
    """The difference of two cells of a column.

    value, base: the numbers, in the metric's own unit; the difference is the first less the second. in_nats: the scores
    that were compared are logarithms of the metric. holm: p-value after Holm's correction over the differences of the
    column; None if no test is possible.
    """

    column: Column
    value: float
    base: float
    found: Comparison
    in_nats: bool
    holm: float | None = None

    @property
    def outcome(self) -> str:
        """BETTER or WORSE if the difference is significant, else OPEN."""
        if self.holm is None or self.holm >= ALPHA:
            return OPEN
        return BETTER if (self.found.difference > 0) == self.column.unit.higher_is_better else WORSE

    @property
    def text(self) -> Text:
        """The difference with its interval; better ones are bold, worse ones underlined."""
        shown = gap_text(self.found, 1, self.column, self.in_nats, points="")
        return Text(shown, {BETTER: BOLD, WORSE: UNDERLINED}.get(self.outcome))


def gap(column: Column, cell: Cell, base: Cell) -> Gap | None:
    """The difference of two cells by the test that the data allow; None if one of them has no number."""
    if cell.estimate is None or base.estimate is None:
        return None
    in_nats = column.unit.logarithmic and paired(cell, base)
    return Gap(column, cell.estimate.value, base.estimate.value, compare_cells(cell, base), in_nats)


@dataclass
class Differences(Table):
    """A table of differences, by row and column.

    subtracted: what was subtracted from what, in words. bases: the rows that others are compared with, which show their
    numbers. gaps: by row and column; a pair that is not there has no difference.
    """

    subtracted: str = ""
    bases: dict[tuple[Row, Column], Cell] = field(default_factory=dict)
    gaps: dict[tuple[Row, Column], Gap] = field(default_factory=dict)

    def correct(self) -> None:
        """Correct the p-values by Holm over the differences of each column, and sum up."""
        for column in self.columns:
            own = [g for (_, c), g in self.gaps.items() if c == column and g.found.p is not None]
            for each, p in zip(own, holm([g.found.p for g in own]), strict=True):
                each.holm = float(p)
        self.summary = list(summary_lines(self))

    def blocks(self) -> list[Block]:
        """One block for each suite, wide ones divided by metric; rows and columns without differences are folded."""
        found = []
        for title, columns in self.sections().items():
            groups = {
                group: [(row, [self.text(row, c) for c in columns]) for row in rows]
                for group, rows in self.groups().items()
            }
            name = f"{title}: {self.subtracted}, with {1 - ALPHA:.0%} interval"
            block = Block(name, headings(columns), groups, [c.unit.display for c in columns])
            found += divided(folded(block))
        return found

    def text(self, row: Row, column: Column) -> Text:
        """A cell as it is written: a difference, or the number of a row that others are compared with."""
        if (row, column) in self.gaps:
            return self.gaps[row, column].text
        base = self.bases.get((row, column))
        if base is None or base.estimate is None:
            return Text(MISSING)
        value = column.shown(base.estimate.value)
        return Text(f"{value:.{self.percent_digits}f}" if column.unit.percent else count(value))

    def marks_note(self, bold: str, underlined: str) -> list[str]:
        """Note on the meaning of the marks, and on the tests."""
        tests = dict.fromkeys(g.found.test for g in self.gaps.values() if g.holm is not None)
        if not tests:
            return []
        return [
            f"{bold}: significantly better; {underlined}: significantly worse (two-sided {ALPHA:.0%}, Holm's "
            f"correction over the differences of a column; {', '.join(tests)}); in brackets the {1 - ALPHA:.0%} "
            "interval of each difference alone; percentages differ in points"
        ]

    def csv(self) -> str:
        """One line per row below one header: each column's difference in the table's unit, with the bounds of its
        interval `_low` and `_high` and its p-value `_p` after Holm's correction. A cell without one is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [csv_cell(c.name + end) for c in self.columns for end in ("", "_low", "_high", "_p")]
        writer.writerow(["layout", "label", "mixer", *names])
        for row in self.rows:
            line = [csv_cell(text) for text in (row.layout, row.label, row.mixer)]
            for column in self.columns:
                g = self.gaps.get((row, column))
                values = [] if g is None else [*map(column.shown, known(g)), g.holm]
                line += ["" if x is None or x != x else number(x) for x in values] or [""] * 4
            writer.writerow(line)
        return out.getvalue()

    def frame(self) -> pd.DataFrame:
        """One row per difference: FRAME. `value`, `base`, `difference`, `low` and `high` are in the unit that tables
        print (`unit`: points, nats, or empty for the metric's own); `low` and `high` are NaN if unknown."""
        lines = []
        for (row, c), g in self.gaps.items():
            unit = "nats" if g.in_nats else "points" if c.unit.percent else ""
            values = [c.shown(x) for x in (g.value, g.base, *known(g))]
            line = [row.layout, unlabelled(row), row.mixer, row.preset, *c.key, c.name, *values]
            lines.append([*line, unit, g.found.p, g.holm, g.outcome, g.found.test, g.found.n])
        return pd.DataFrame(lines, columns=FRAME).astype({"length": "Int64"})


def known(g: Gap) -> list[float]:
    """Difference and bounds of a gap; NaN where they are unknown."""
    found = g.found
    return [float("nan") if x is None else x for x in (found.difference, found.low, found.high)]


def summary_lines(table: Differences) -> Iterator[str]:
    """A line for each row: in how many columns it is better, worse or not told apart."""
    by_row: dict[Row, Counter[str]] = {}
    for (row, _), g in table.gaps.items():
        by_row.setdefault(row, Counter())[g.outcome] += 1
    if not by_row:
        yield "nothing is compared: no row has a number in a column where its counterpart has one"
    several = len({row.group for row in by_row}) > 1
    for row, counts in list(by_row.items())[:MOST]:
        where = f" ({row.group})" if several else ""
        outcomes = ", ".join(f"{outcome} in {n}" for outcome in (BETTER, WORSE, OPEN) if (n := counts[outcome]))
        yield f"{unlabelled(row)}{where}: {outcomes} of {counts.total()} column{'s' * (counts.total() > 1)}"
    if len(by_row) > MOST:
        yield f"and {len(by_row) - MOST} more rows below"


def columns_with(gaps: Iterable[tuple[Row, Column]], columns: Sequence[Column]) -> list[Column]:
    """The columns that have a difference, in their order."""
    there = {column for _, column in gaps}
    return [column for column in columns if column in there]
