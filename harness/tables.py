"""The comparison: mixers as rows, metrics as columns, every number with its error and the paper's beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness import stats
from harness.metrics import METRICS
from harness.published import column_name, printed_values
from harness.records import SampleKey
from harness.table_format import BASELINE, BOLD, MODEL_COLUMNS, NOT_FINITE, UNDERLINED, Cell, Column, Row, Table
from harness.table_notes import table_notes
from mixers import registry

LAYOUTS = ("recurrent", "hybrid", "attention")
SUITES = ("language", "ruler", "retrieval", "recall", "throughput")
ITEMS = ("settings", "limit", "stand_in")
"""What says which items were scored and how; beside it dtype and versions must agree."""
TIMED = ("tokens_per_second",)
"""Metrics that only the same device makes comparable."""

AT = " @ "
"""Between a label and its preset."""

Samples = Mapping[SampleKey, Sequence[float]]
ColumnKey = tuple[str, str, str, int | None]
"""(suite, task, metric, length)."""


def comparison(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    runs: pd.DataFrame | None = None,
    samples: Samples | None = None,
    allow_mixed: bool = False,
) -> Table:
    """Compare the labels of a frame of records (`records.load`); where models have several presets, each in each.

    columns: names of those to show, in this order; all of them if None.
    runs: a row a run with label, mixer, layout, preset and, where known, run, seed, the keys of MODEL_COLUMNS, and
        `failure`: the reason why a run has failed. It adds the model table, and rows for labels without records.
        `trained_on` (machine, precision, code) and `mixture` (phases of training data) of a run are noted where given.
    samples: per-sample scores (`records.load_samples`), with which rows are compared item by item.
    Raises ValueError when there are no records, a column is not known, a label is not one model, a seed was run
    twice under one label, or records of a column were measured differently and allow_mixed is not set.
    """
    if frame.empty:
        raise ValueError("records: none to compare; evaluate a run first")
    frame, runs, presets = apart_by_preset(frame, runs)
    failed = pd.DataFrame() if runs is None or "failure" not in runs else runs[runs["failure"].notna()]
    rows = table_rows(frame, runs, presets)
    check_seeds(frame)
    groups = column_groups(frame, columns)
    letters = stand_in_letters(groups)
    mixed: list[str] = []
    table = Table(rows, [], {}, {}, [])
    for (suite, task, metric, length), records in groups.items():
        reasons = {letters[r["stand_in"]] for r in records if r["stand_in"] is not None}
        column = Column(suite, task, metric, length, tuple(sorted(reasons)), length_unit(records))
        disagreements = differing(records, metric)
        if disagreements and not allow_mixed:
            raise ValueError(
                f"column {column.name}: {disagreements[0]}; evaluate again under one setting, or allow mixed records"
            )
        mixed += [f"{column.name}: {what}" for what in disagreements]
        table.columns.append(column)
        for row in rows:
            own = [r for r in records if (r["layout"], r["label"]) == (row.layout, row.label)]
            table.cells[row, column] = make_cell(own, samples or {})
        add_paper(table, column)
        for group in dict.fromkeys((row.layout, row.preset) for row in rows):
            mark([table.cells[row, column] for row in rows if (row.layout, row.preset) == group], column)
    if runs is not None:
        table.model = {row: model_cells(runs, row) for row in rows}
    used = [record for records in groups.values() for record in records]
    table.notes = table_notes(table, used, {letter: reason for reason, letter in letters.items()}, mixed, failed, runs)
    return table


def apart_by_preset(
    frame: pd.DataFrame, runs: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, str]]:
    """Records and runs, and the preset by label. Where the models have several, a label ends with its preset, so that
    its seeds are of one model; else labels stay and none has a preset."""
    models = [f[f["layout"] != BASELINE] for f in (frame, runs) if f is not None and "preset" in f]
    known = pd.concat([f[["label", "preset"]] for f in models]).drop_duplicates()
    if known["preset"].nunique() < 2:
        return frame, runs, {}

    def labelled(f: pd.DataFrame) -> pd.DataFrame:
        return f.assign(label=f["label"].where(f["layout"] == BASELINE, f["label"] + AT + f["preset"]))

    presets = {label + AT + name: name for label, name in known.itertuples(index=False)}
    return labelled(frame), None if runs is None else labelled(runs), presets


def table_rows(frame: pd.DataFrame, runs: pd.DataFrame | None, presets: Mapping[str, str]) -> list[Row]:
    """One row a label, by layout and then in the order of `runs` or of the records. presets: by label, where several
    are compared."""
    keys = ["layout", "label", "mixer"]
    known = pd.concat([f[keys] for f in (runs, frame) if f is not None]).drop_duplicates()
    repeated = known[known.duplicated(["layout", "label"])]
    if not repeated.empty:
        layout, label, _ = repeated.iloc[0]
        found = known[(known["layout"] == layout) & (known["label"] == label)]["mixer"]
        raise ValueError(f"label: {label!r} ({layout}) stands for {', '.join(found)}; give each mixer its own label")
    rows = [Row(*values, presets.get(values[1])) for values in known.itertuples(index=False)]
    return sorted(rows, key=lambda row: rank(LAYOUTS, row.layout))


def rank(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def check_seeds(frame: pd.DataFrame) -> None:
    """ValueError when a label has two runs of one seed: they are not two seeds."""
    runs = frame[["layout", "label", "seed", "run"]].drop_duplicates()
    repeated = runs[runs.duplicated(["layout", "label", "seed"])]
    if not repeated.empty:
        layout, label, seed, _ = repeated.iloc[0]
        same = runs[(runs["layout"] == layout) & (runs["label"] == label) & (runs["seed"] == seed)]
        raise ValueError(
            f"label: {label!r} ({layout}) has runs {', '.join(same['run'])} of seed {seed}; "
            "give each variant its own label in the experiment"
        )


def column_groups(frame: pd.DataFrame, columns: Sequence[str] | None) -> dict[ColumnKey, list[dict[str, Any]]]:
    """Records by (suite, task, metric, length), in the order of a table, by seed within.

    Suites in their fixed order, tasks as the suite wrote them, metrics as declared, lengths rising; or as `columns`.
    """
    groups: dict[ColumnKey, list[dict[str, Any]]] = {}
    for record in plain(frame):
        key = (record["suite"], record["task"], record["metric"], record["length"])
        groups.setdefault(key, []).append(record)
    names = {key: column_name(*key[1:]) for key in groups}
    if columns is not None:
        unknown = [name for name in columns if name not in names.values()]
        if unknown:
            raise ValueError(f"columns: no records of {', '.join(unknown)}; there are {', '.join(names.values())}")
        order = {key: columns.index(name) for key, name in names.items() if name in columns}
    else:
        tasks = {key[:2]: place for place, key in reversed(list(enumerate(groups)))}
        metrics = list(METRICS)
        order = {
            key: (rank(SUITES, key[0]), key[0], tasks[key[:2]], metrics.index(key[2]), key[3] or 0) for key in groups
        }
    return {key: sorted(groups[key], key=lambda r: r["seed"]) for key in sorted(order, key=order.__getitem__)}


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, None where pandas has one of its missing values; a NaN measured stays NaN."""
    data = {name: frame[name].astype(object).tolist() for name in frame.columns}
    for name in frame.columns.drop("value"):
        data[name] = [None if null else v for v, null in zip(data[name], frame[name].isna(), strict=True)]
    return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]


def stand_in_letters(groups: Mapping[ColumnKey, list[dict[str, Any]]]) -> dict[str, str]:
    """A letter for each reason why a measurement is not the paper's, in order of appearance."""
    reasons = dict.fromkeys(r["stand_in"] for records in groups.values() for r in records if r["stand_in"] is not None)
    return {reason: letter(i) for i, reason in enumerate(reasons)}


def length_unit(records: list[dict[str, Any]]) -> str | None:
    """What the length of a column's records counts, None where it counts tokens."""
    return next((unit for r in records if (unit := json.loads(r["settings"]).get("length_unit"))), None)


def letter(index: int) -> str:
    """a … z, aa, ab …"""
    head, tail = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + tail)


def differing(records: list[dict[str, Any]], metric: str) -> list[str]:
    """What the records of one column disagree on, that makes them incomparable; one phrase each.

    Of a baseline the items count, as its settings where it has them, limit and stand_in say, and not what ran it.
    """
    ran = ["dtype", *(name for name in records[0] if name.startswith("version_"))]
    models = [r for r in records if r["layout"] != BASELINE]
    found = []
    for name in [*ITEMS, *ran, *(("device", "threads") if metric in TIMED else ())]:
        if name == "settings":
            parsed = [(json.loads(r[name]), r) for r in records]
            keys = sorted({key for settings, _ in parsed for key in settings})
            for key in keys:
                stated = [(s.get(key), r) for s, r in parsed if key in s or r["layout"] != BASELINE]
                found += phrase(f"settings.{key}", stated)
        else:
            found += phrase(name, [(r[name], r) for r in (records if name in ITEMS else models)])
    return found


def phrase(name: str, values: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    """[`name differs: a (labels), b (labels)`], or nothing where all agree."""
    labels: dict[str, dict[str, None]] = {}
    for value, record in values:
        labels.setdefault(json.dumps(value, sort_keys=True), {})[record["label"]] = None
    if len(labels) < 2:
        return []
    return [f"{name} differs: " + ", ".join(f"{value} ({', '.join(who)})" for value, who in labels.items())]


def make_cell(records: list[dict[str, Any]], samples: Samples) -> Cell:
    """The number of one row in one column, from its records, one a seed."""
    if not records:
        return Cell()
    broken = [str(r["seed"]) for r in records if not math.isfinite(r["value"])]
    if broken:
        return Cell(text=f"{NOT_FINITE} (seed {', '.join(broken)})")
    agreed = [METRICS[r["metric"]].percent and r["stderr"] == 0 and r["value"] in (0.0, 1.0) for r in records]
    stderrs = [known(r["stderr"]) for r in records]
    stderrs = [stats.proportion_floor(r["n"]) if a else e for r, e, a in zip(records, stderrs, agreed, strict=True)]
    keys = [(r["run"], r["suite"], r["task"], r["metric"], r["length"]) for r in records]
    scores = [samples[key] for key in keys if key in samples]
    whole = len(scores) == len(records) and len({len(s) for s in scores}) == 1
    return Cell(
        estimate=stats.estimate([r["value"] for r in records], stderrs, [r["n"] for r in records]),
        agreed=any(agreed),
        scores=scores if whole else None,
        settings=frozenset(r["settings"] for r in records),
    )


def known(stderr: float | None) -> float | None:
    """A standard error that is no number is none."""
    return stderr if stderr is not None and math.isfinite(stderr) else None


def add_paper(table: Table, column: Column) -> None:
    """Put the printed number into each cell whose row and column the paper has.

    Not where the measurement is a stand-in. A row with a label of its own is a variant of its mixer, which the paper
    has not measured; its display name or its registered name is what the paper measured.
    """
    if column.stand_ins:
        return
    mixers = registry.entries()
    for row in table.rows:
        label = row.label.removesuffix(f"{AT}{row.preset}")
        if row.mixer in mixers and label in (row.mixer, mixers[row.mixer].display):
            key = (row.mixer, row.layout, column.suite, column.task, column.metric, column.length)
            table.cells[row, column].paper = printed_values().get(key)


def mark(cells: list[Cell], column: Column) -> None:
    """Mark the best of the cells, and the second, each with those not significantly worse than it.

    Nothing is marked that nothing in the group is significantly worse than, nor where an error is not known.
    """
    with_value = [cell for cell in cells if cell.estimate is not None]
    if any(cell.estimate.stderr is None for cell in with_value):
        return
    rest = sorted(with_value, key=lambda cell: cell.estimate.value, reverse=column.unit.higher_is_better)
    for kind in (BOLD, UNDERLINED):
        worse = [cell for cell in rest[1:] if better(rest[0], cell, column)]
        if not worse:
            return
        for cell in rest:
            cell.mark = kind if cell not in worse else None
        rest = worse


def better(a: Cell, b: Cell, column: Column) -> bool:
    """Whether a is significantly better than b, item by item where both were scored on the same items."""
    same = a.settings == b.settings and len(a.settings) == 1
    paired = same and a.scores is not None and b.scores is not None and len(a.scores[0]) == len(b.scores[0])
    scores = (a.scores, b.scores) if paired else None
    return stats.significantly_better(a.estimate, b.estimate, column.unit.higher_is_better, scores)


def model_cells(runs: pd.DataFrame, row: Row) -> dict[str, stats.Estimate | None]:
    """What the row's model is and cost, over its runs that have not failed, or all of them if none succeeded."""
    own = runs[(runs["layout"] == row.layout) & (runs["label"] == row.label)]
    if "failure" in own and own["failure"].isna().any():
        own = own[own["failure"].isna()]
    cells: dict[str, stats.Estimate | None] = {}
    for key in MODEL_COLUMNS:
        values = own[key].dropna().astype(float).tolist() if key in own else []
        if key not in TIMED and len(set(values)) > 1:
            raise ValueError(f"{key}: runs of {row.label!r} ({row.layout}) differ, {values}; give each its own label")
        cells[key] = stats.estimate(values, [None] * len(values), [1] * len(values)) if values else None
    return cells
