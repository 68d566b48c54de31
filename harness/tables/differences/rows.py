"""Differences from a chosen row of a table, over all layouts."""

from __future__ import annotations

from harness.records.record import BASELINE
from harness.tables.cells import Row, unlabelled
from harness.tables.differences.gaps import Differences, columns_with, gap
from harness.tables.forms import Table
from mixers import registry


def differences(table: Table, base: str) -> Differences:
    """Every row of a comparison less the row `base`, over all layouts, at each preset that has this row.

    base: a label or a mixer, with the layout behind a slash where it has several: `gated_deltanet/hybrid`. Rows are
    compared item by item where both were scored on the same items. Raises ValueError if no row goes by that name, or
    several of a preset do.
    """
    chosen = base_rows(table, base)
    names = dict.fromkeys(f"{unlabelled(row)} ({row.layout})" for row in chosen.values())
    found = Differences(table.rows, [], subtracted=f"difference from {' or '.join(names)}")
    for row in table.rows:
        theirs = chosen.get(row.preset)
        for column in table.columns if theirs is not None else ():
            cell = table.cells[theirs, column]
            if row == theirs:
                found.bases[row, column] = cell
            elif (each := gap(column, table.cells[row, column], cell)) is not None:
                found.gaps[row, column] = each
    found.columns = columns_with(found.gaps, table.columns)
    found.correct()
    lacking = [p for p in dict.fromkeys(r.preset for r in table.rows if r.layout != BASELINE) if p not in chosen]
    if lacking:
        found.reading = [f"nothing to compare with at {', '.join(map(str, lacking))}: no such row there"]
    found.facts, found.provenance = table.facts, table.provenance
    return found


def base_rows(table: Table, base: str) -> dict[str | None, Row]:
    """The rows that go by a name, by preset: those with the label or, of a mixer's rows, those with its own name.

    Raises ValueError as `differences` does.
    """
    name, slash, layout = base.rpartition("/")
    if not slash or layout not in {row.layout for row in table.rows}:
        name, layout = base, ""
    rows = [row for row in table.rows if layout in ("", row.layout)]
    known = registry.entries()
    labels = [row for row in rows if name in (row.label, unlabelled(row))]
    mixers = [row for row in rows if row.mixer == name]
    plain = [row for row in mixers if name in known and unlabelled(row) in (name, known[name].display)]
    chosen: dict[str | None, Row] = {}
    for row in labels or plain or mixers:
        if row.preset in chosen:
            found = ", ".join(f"{unlabelled(r)}/{r.layout}" for r in labels or plain or mixers)
            raise ValueError(f"--baseline: {base!r} names several rows; give one of: {found}")
        chosen[row.preset] = row
    if not chosen:
        there = ", ".join(dict.fromkeys(name for row in table.rows for name in (row.mixer, unlabelled(row))))
        raise ValueError(f"--baseline: no row goes by {base!r}; give one of: {there}")
    return chosen
