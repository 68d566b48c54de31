"""Differences between two collections: the rows and columns that both have, one collection less the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.code import code_text
from harness.records.metrics import METRICS, without_details
from harness.records.record import KEY, parse_settings
from harness.records.store import load, load_samples
from harness.run_folder import Collection
from harness.tables.cells import Column, Row
from harness.tables.comparison import ITEMS, Measured, Records, apart_by_preset, measure, table_rows
from harness.tables.differences.gaps import Differences, columns_with, gap
from harness.tables.notes import listed, samples_note, tasks_text

SIDE = "side"
MOST = 12
"""Fields of two experiments that a note names; the rest is counted."""


def compare_collections(
    a: Path | str, b: Path | str, columns: Sequence[str] | None = None, allow_mixed: bool = False
) -> Differences:
    """Collection b less collection a, in every row and column that both have.

    Rows are the same if layout, label and preset are. Columns whose items or protocol differ between the two are left
    out with a note, unless `allow_mixed`; machines, versions and code may differ, and the notes say where. columns:
    names of those to show; None for all. Raises ValueError as `comparison` does, and if the two have no column in
    common.
    """
    folders = [Path(a), Path(b)]
    for folder in folders:
        Collection(folder).require()
    frames = [without_details(load(folder)) for folder in folders]
    both, _, presets = apart_by_preset(pd.concat([f.assign(**{SIDE: i}) for i, f in enumerate(frames)]), None)
    rows = [
        replace(row, group=f"{row.layout}, {row.preset}" if row.preset else row.layout)
        for row in table_rows(both, None, presets)
    ]
    sides = [
        measure(both[both[SIDE] == i].drop(columns=SIDE), rows, columns, None, load_samples(folder), allow_mixed)
        for i, folder in enumerate(folders)
    ]
    found = Differences(rows, [], subtracted=f"{b} less {a}")
    theirs = {column.key: column for column in sides[0].table.columns}
    left_out, differing = {}, {}
    for column in sides[1].table.columns:
        if column.key not in theirs:
            continue
        records = [side.records for side in sides]
        items, others = apart(
            [r for row in rows for r in records[0][row, theirs[column.key]]],
            [r for row in rows for r in records[1][row, column]],
            column.metric,
        )
        differing |= dict.fromkeys(others)
        if items and not allow_mixed:
            left_out[column] = items
            continue
        for row in rows:
            cell, base = sides[1].table.cells[row, column], sides[0].table.cells[row, theirs[column.key]]
            if (each := gap(column, cell, base)) is not None:
                found.gaps[row, column] = each
    found.columns = columns_with(found.gaps, sides[1].table.columns)
    if not found.columns:
        why = f"; {next(iter(left_out.values()))[0]}; --allow-mixed compares all the same" if left_out else ""
        raise ValueError(f"compare: no row of {a} and {b} has a number in the same column{why}")
    found.correct()
    found.reading = [
        *(f"left out, measured differently: {c.name}: {'; '.join(why)}" for c, why in left_out.items()),
        *missing_notes(sides, rows, (str(a), str(b))),
        *same_runs(frames),
    ]
    stored = [Collection(folder).read_experiment() for folder in folders]
    found.facts = [*experiment_notes(*stored), *(f"differs: {text}" for text in differing)]
    used = [r for (row, c), own in sides[1].records.items() if (row, c) in found.gaps for r in own]
    found.facts.append(samples_note(found, used))
    codes = [listed(sorted({code_text(r) for r in side.used})) for side in sides]
    found.provenance = [f"code: {name}: {code}" for name, code in zip((a, b), codes, strict=True)]
    return found


def apart(ours: Records, theirs: Records, metric: str) -> tuple[list[str], list[str]]:
    """Disagreements between the records of two collections in one column: on the items, and on what ran them."""
    ran = ["dtype", *(name for name in ours[0] if name.startswith("version_"))] if ours else []
    ran += [*(("device", "threads") if METRICS[metric].of_device else ())]
    items = [text for name in ITEMS for text in phrases(name, ours, theirs)]
    return items, [text for name in ran for text in phrases(name, ours, theirs)]


def phrases(name: str, ours: Records, theirs: Records) -> Iterator[str]:
    """`name: a, and b in the other` if the values of a field differ; of settings, each key that does."""
    if name == "settings":
        sides = [[parse_settings(r[name]) for r in side] for side in (ours, theirs)]
        for key in sorted({key for side in sides for settings in side for key in settings}):
            yield from phrase(f"settings.{key}", *([s.get(key) for s in side] for side in sides))
    else:
        yield from phrase(name, *([r[name] for r in side] for side in (ours, theirs)))


def phrase(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> Iterator[str]:
    """`name: a in the one, b in the other`, if the two have different sets of values."""
    texts = [sorted({json_text(value) for value in side}) for side in (ours, theirs)]
    if texts[0] != texts[1]:
        yield f"{name}: {', '.join(texts[0])} in the one, {', '.join(texts[1])} in the other"


def json_text(value: Any) -> str:
    """A value of a field as text that does not depend on the order of keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def missing_notes(sides: Sequence[Measured], rows: Sequence[Row], names: tuple[str, str]) -> Iterator[str]:
    """Notes on rows and columns that only one of the two has."""
    there = [{row for (row, _), own in side.records.items() if own} for side in sides]
    keys = [{c.key for c in side.table.columns} for side in sides]
    for side, name in enumerate(names):
        only = [f"{row.label} ({row.layout})" for row in rows if row in there[side] - there[1 - side]]
        columns: list[Column] = [c for c in sides[side].table.columns if c.key not in keys[1 - side]]
        parts = ([f"rows {listed(only)}"] if only else []) + (
            [f"columns {tasks_text(sides[side].table, columns)}"] if columns else []
        )
        if parts:
            yield f"only in {name}: {'; '.join(parts)}"


def same_runs(frames: Sequence[pd.DataFrame]) -> Iterator[str]:
    """Note on runs that are in both collections: their differences are of measuring alone."""
    ids = [set(frame["run"]) for frame in frames]
    if shared := len(ids[0] & ids[1]):
        both = pd.concat(frames)
        again = int(both.groupby(KEY, dropna=False)["value"].nunique().gt(1).sum())
        yield f"the same in both: {shared} runs; {again} of their numbers differ"


def experiment_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Note on the fields in which two experiments differ."""
    one, other = flat(a), flat(b)
    fields = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    texts = [f"{name} {one.get(name, 'none')} → {other.get(name, 'none')}" for name in fields if name != "description"]
    if texts:
        rest = f"; {len(texts) - MOST} more" if len(texts) > MOST else ""
        yield f"the experiments differ in {'; '.join(texts[:MOST])}{rest}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted name, each as JSON."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: json_text(value)}
    return found
