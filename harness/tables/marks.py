"""Marks of the best rows of a column, and the data that would settle undecided pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from harness.records import stats
from harness.records.significance import (
    POWER,
    items_to_settle,
    items_to_settle_paired,
    pairwise,
    seeds_to_settle,
    tiers,
)
from harness.records.stats import ALPHA
from harness.tables.cells import BOLD, UNDERLINED, Cell, Column, Row, Tested, unlabelled
from harness.tables.forms import Table

SHOWN_PAIRS = 6
"""Number of undecided pairs that the note on power names; the rest is counted."""


def mark(
    cells: Mapping[Row, Cell], column: Column, compare: Callable[[Cell, Cell], stats.Comparison] | None = None
) -> Tested | None:
    """Mark the first two tiers of a group's cells (`significance.tiers`): bold, then underlined.

    Returns the tests, or None if there are fewer than two numbers or an error is unknown; then nothing is marked.
    compare: tests two cells; `compare_cells` if None.
    """
    rows = [row for row, cell in cells.items() if cell.estimate is not None]
    if len(rows) < 2 or any(cells[row].estimate.stderr is None for row in rows):
        return None
    found: dict[tuple[int, int], stats.Comparison] = {}

    def test(i: int, j: int) -> stats.Comparison:
        found[i, j] = (compare or compare_cells)(cells[rows[i]], cells[rows[j]])
        return found[i, j]

    adjusted = pairwise(range(len(rows)), test)
    values = [cells[row].estimate.value for row in rows]
    for row, tier in zip(rows, tiers(values, adjusted, column.unit.higher_is_better), strict=True):
        cells[row].mark = None if tier is None else (BOLD, UNDERLINED)[tier]
    tests = dict.fromkeys(comparison.test for comparison in found.values() if comparison.p is not None)
    return Tested(rows, adjusted, found, list(tests))


def compare_cells(a: Cell, b: Cell) -> stats.Comparison:
    """Compare two cells, item by item if both were scored on the same items; averages task by task."""
    if a.parts and b.parts and all(paired(x, y) for x, y in zip(a.parts, b.parts, strict=True)):
        result = stats.average_difference([x.scores for x in a.parts], [y.scores for y in b.parts])
        if result.p is not None:
            return result
    return stats.difference(a.estimate, b.estimate, (a.scores, b.scores) if paired(a, b) else None)


def paired(a: Cell, b: Cell) -> bool:
    """Whether two cells have per-sample scores on the same items."""
    same = a.settings == b.settings and len(a.settings) == 1
    return same and a.scores is not None and b.scores is not None and len(a.scores[0]) == len(b.scores[0])


def power_notes(table: Table) -> Iterable[str]:
    """Note on how many samples or seeds would separate a best row from the next, for the pairs that need the fewest.

    The numbers are those that the marks would need: at the level that Holm's correction leaves to a pair.
    """
    pairs = sorted(undecided(table), key=lambda pair: pair[0])
    if pairs:
        rest = f"; {len(pairs) - SHOWN_PAIRS} more need more" if len(pairs) > SHOWN_PAIRS else ""
        yield (
            f"undecided pairs, and the samples or seeds for {POWER:.0%} power at their difference ({ALPHA:.0%}, by "
            "Holm's correction divided by the undecided pairs of the group in the column): "
            + "; ".join(text for _, text in pairs[:SHOWN_PAIRS])
            + rest
        )


def undecided(table: Table) -> Iterator[tuple[float, str]]:
    """Pairs of best and next row that are not significantly different, by group and column.

    Yields the factor by which the data would have to grow, and the same as text.
    """
    several = len({group for group, _ in table.tested}) > 1
    for (group, column), tested in table.tested.items():
        sign = -1 if column.unit.higher_is_better else 1
        cells = [table.cells[row, column] for row in tested.rows]
        best, second = np.argsort([sign * c.estimate.value for c in cells], kind="stable")[:2]
        if tested.adjusted[best, second] < ALPHA:
            continue
        level = ALPHA / open_pairs(tested)
        needed, have, unit = needed_to_settle(cells[best], cells[second], column, level)
        if math.isfinite(needed):
            # What settles it in most cases may have failed in this one.
            what = f"{needed:,} {unit}, now {have:,}" if needed > have else f"the {have:,} {unit} there are"
            where = f" ({group})" if several else ""
            pair = f"{unlabelled(tested.rows[best])} − {unlabelled(tested.rows[second])}"
            gap = column.shown(abs(cells[best].estimate.value - cells[second].estimate.value))
            yield needed / have, f"{column.words}{where} {pair} ({gap:.2g}): {what}"


def open_pairs(tested: Tested) -> int:
    """Number of pairs that Holm's correction has left to reject, at least 1: by it the level of the next is divided."""
    pairs = [pair for pair, found in tested.comparisons.items() if found.p is not None]
    return max(1, sum(tested.adjusted[pair] >= ALPHA for pair in pairs))


def needed_to_settle(a: Cell, b: Cell, column: Column, level: float) -> tuple[int | float, int, str]:
    """(number needed to settle the difference of a and b at a two-sided level, number there is, unit).

    The unit is seeds per row if both have several, else samples. The number needed is infinite if it is unknown.
    """
    x, y = a.estimate, b.estimate
    gap = x.value - y.value
    if x.sd is not None and y.sd is not None:
        seeds = seeds_to_settle(gap, math.sqrt((x.sd**2 + y.sd**2) / 2), level=level)
        return seeds, min(x.seeds, y.seeds), "seeds a row"
    have = min(x.items, y.items)
    if a.parts or x.samples_part is None or y.samples_part is None:
        return math.inf, have, "samples"
    if paired(a, b):
        d = np.mean(a.scores, axis=0) - np.mean(b.scores, axis=0)
        if set(np.unique(d)) <= {-1.0, 0.0, 1.0} and column.unit.percent:
            share = max(float(np.mean(d != 0)), abs(float(d.mean())))
            return items_to_settle_paired(float(d.mean()), share, level), have, "samples"
        return seeds_to_settle(float(d.mean()), float(d.std(ddof=1)), True, level), have, "samples"
    if column.unit.percent:
        return items_to_settle(x.value, y.value, level), have, "samples"
    sds = [e.samples_part.variance * e.items for e in (x, y)]
    return seeds_to_settle(gap, math.sqrt(sum(sds) / 2), level=level), have, "samples"
