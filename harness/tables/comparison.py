"""The comparison: mixers as rows, metrics as columns, every number with its error and the paper's next to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pandas as pd

from harness.experiments.schema import Expected
from harness.model.language_model import Layout
from harness.records import stats
from harness.records.metrics import METRICS, without_details
from harness.records.published import column_name, printed_values
from harness.records.record import BASELINE, SampleKey, length_unit, parse_settings
from harness.records.units import SUITES, suite_of
from harness.tables.cells import AT, FAILED, MISSING, MODEL_COLUMNS, UNREADABLE, Cell, Column, Row, unlabelled
from harness.tables.forms import Table
from harness.tables.marks import mark
from harness.tables.notes import provenance_notes, reading_notes, table_notes
from mixers import registry

LAYOUTS = get_args(Layout)
"""Order of rows; baselines come last."""
ITEMS = ("settings", "limit", "stand_in")
"""Fields that say which items were scored and how. Records of a column must agree on them, on dtype and versions."""
UNUSED = ["config_hash", "time", "command", "file"]
"""Fields of a record that no table shows."""

ROUNDING = 1.01
"""Largest ratio of tokens seen to tokens asked for: phases are rounded up to whole steps."""

Samples = Mapping[SampleKey, Sequence[float]]
ColumnKey = tuple[str, str, str, int | None]
"""(suite, task, metric, length)."""
Records = list[dict[str, Any]]
Printed = Callable[[Row, Column], float | None]


@dataclass
class Measured:
    """A table of every measured column before anything is marked, and what it was made from.

    records: the records behind each cell. stand_ins: reasons by letter. mixed: disagreements that were allowed.
    """

    table: Table
    records: dict[tuple[Row, Column], Records]
    stand_ins: dict[str, str]
    mixed: list[str] = field(default_factory=list)

    @property
    def used(self) -> Records:
        """All records behind the table."""
        return [record for records in self.records.values() for record in records]


def comparison(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    runs: pd.DataFrame | None = None,
    samples: Samples | None = None,
    allow_mixed: bool = False,
    expected: Expected | None = None,
) -> Table:
    """Compare the labels of a frame of records (`records.load`), within each preset if there are several.

    columns: names of the columns to show, in this order; None for all.
    runs: one row per run with label, mixer, layout, preset and, if known, run, seed, the keys of MODEL_COLUMNS,
        `failure` (why the run failed) and `unreadable` (by unit, why its records cannot be read). It adds the model
        table, and rows for labels without records. If given, `trained_on` (machine, precision, code) and `mixture`
        (phases of training data) become notes.
    samples: per-sample scores (`records.load_samples`); with them rows are compared item by item.
    allow_mixed: show a column although its records were measured differently, with a note.
    expected: the experiment's expectation (`Experiment.expectation`). Rows that were trained at its scale, according to
        `runs`, are compared with the paper's numbers.

    Raises ValueError if there are no records, a column is unknown, a label stands for several models, a seed was run
    twice under one label, or records of a column were measured differently and `allow_mixed` is not set.
    """
    frame = without_details(frame)
    if frame.empty:
        raise ValueError("records: none to compare; evaluate a run first")
    frame, runs, presets = apart_by_preset(frame, runs)
    rows = [
        replace(row, group=f"{row.layout}, {row.preset}" if row.preset else row.layout)
        for row in table_rows(frame, runs, presets)
    ]
    measured = measure(frame, rows, columns, runs, samples or {}, allow_mixed)
    return finish(measured.table, measured, runs, expected, printed)


def measure(
    frame: pd.DataFrame,
    rows: list[Row],
    columns: Sequence[str] | None,
    runs: pd.DataFrame | None,
    samples: Samples,
    allow_mixed: bool,
) -> Measured:
    """Fill in the cells of all columns that have records, and the models of the rows. Raises ValueError as `comparison`
    does."""
    check_seeds(frame)
    groups = column_groups(frame, columns)
    letters = stand_in_letters(groups)
    measured = Measured(Table(rows, []), {}, {letter: reason for reason, letter in letters.items()})
    own_runs = runs_by_row(runs)
    for (suite, task, metric, length), records in groups.items():
        reasons = {letters[r["stand_in"]] for r in records if r["stand_in"] is not None}
        column = Column(
            suite, task, metric, length, tuple(sorted(reasons)), length_unit(r["settings"] for r in records)
        )
        disagreements = differing(records, metric)
        if disagreements and not allow_mixed:
            raise ValueError(
                f"column {column.name}: {disagreements[0]}; evaluate again under one setting, or allow mixed records"
            )
        measured.mixed += [f"{column.name}: {what}" for what in disagreements]
        measured.table.columns.append(column)
        by_row: dict[tuple[str, str], Records] = {}
        for record in records:
            by_row.setdefault((record["layout"], record["label"]), []).append(record)
        for row in rows:
            records_of_row = measured.records[row, column] = by_row.get((row.layout, row.label), [])
            missing = missing_text(own_runs.get((row.layout, row.label), []), suite)
            measured.table.cells[row, column] = (
                make_cell(records_of_row, samples) if records_of_row else Cell(text=missing)
            )
    if runs is not None:
        measured.table.model = {row: model_cells(runs, row) for row in rows}
    return measured


def finish(
    table: Table, measured: Measured, runs: pd.DataFrame | None, expected: Expected | None, paper: Printed
) -> Table:
    """Add the paper's numbers, marks and notes. paper: gives the printed number of a row and column."""
    own_runs = runs_by_row(runs)
    at_scale = {row for row in table.rows if meets(own_runs.get((row.layout, row.label), []), expected)}
    for (row, column), cell in table.cells.items():
        if row in at_scale and not column.stand_ins and (value := paper(row, column)) is not None:
            cell.paper, cell.tolerance = value, expected.allowed(column.name)
    for column in table.columns:
        for group, rows in table.groups().items():
            if tested := mark({row: table.cells[row, column] for row in rows}, column):
                table.tested[group, column] = tested
    table.reading = reading_notes(table, measured.used)
    table.facts = table_notes(measured.table, measured.used, measured.stand_ins, measured.mixed, runs)
    table.provenance = provenance_notes(measured.used)
    return table


def runs_by_row(runs: pd.DataFrame | None) -> dict[tuple[str, str], Records]:
    """Runs by (layout, label), without the keys that have no value."""
    found: dict[tuple[str, str], Records] = {}
    for run in [] if runs is None else runs.to_dict("records"):
        stated = {key: value for key, value in run.items() if value is not None and value == value}
        found.setdefault((run["layout"], run["label"]), []).append(stated)
    return found


def missing_text(own_runs: Records, suite: str) -> str:
    """Text of a cell without records: why the row has no number in a suite's column."""
    if any(suite in {suite_of(unit) for unit in run.get("unreadable", ())} for run in own_runs):
        return UNREADABLE
    return FAILED if own_runs and all("failure" in run for run in own_runs) else MISSING


def meets(own_runs: Records, expected: Expected | None) -> bool:
    """Whether all runs of a row were trained at the expected scale: its preset, and its tokens up to ROUNDING."""
    if expected is None or not own_runs:
        return False
    return all(
        run.get("preset") == expected.preset
        and expected.tokens <= run.get("tokens_seen", 0) <= ROUNDING * expected.tokens
        for run in own_runs
    )


def apart_by_preset(
    frame: pd.DataFrame, runs: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, str]]:
    """Append the preset to labels if models have several, so that all seeds of a label are of one model.

    Returns records, runs and the preset by label; with a single preset, labels are unchanged and none has a preset.
    """
    models = [f[f["layout"] != BASELINE] for f in (frame, runs) if f is not None and "preset" in f]
    known = pd.concat([f[["label", "preset"]] for f in models]).drop_duplicates()
    if known["preset"].nunique() < 2:
        return frame, runs, {}

    def labelled(f: pd.DataFrame) -> pd.DataFrame:
        return f.assign(label=f["label"].where(f["layout"] == BASELINE, f["label"] + AT + f["preset"]))

    presets = {label + AT + name: name for label, name in known.itertuples(index=False)}
    return labelled(frame), None if runs is None else labelled(runs), presets


def table_rows(frame: pd.DataFrame, runs: pd.DataFrame | None, presets: Mapping[str, str]) -> list[Row]:
    """One row per label, by layout, then in the order of `runs` and of the records.

    presets: by label, if several are compared. Raises ValueError if a label stands for several mixers.
    """
    keys = ["layout", "label", "mixer"]
    known = pd.concat([f[keys] for f in (runs, frame) if f is not None]).drop_duplicates()
    repeated = known[known.duplicated(["layout", "label"])]
    if not repeated.empty:
        layout, label, _ = repeated.iloc[0]
        mixers = known[(known["layout"] == layout) & (known["label"] == label)]["mixer"]
        raise ValueError(f"label: {label!r} ({layout}) stands for {', '.join(mixers)}; give each mixer its own label")
    rows = [Row(*values, presets.get(values[1])) for values in known.itertuples(index=False)]
    return sorted(rows, key=lambda row: rank(LAYOUTS, row.layout))


def rank(order: Sequence[str], name: str) -> int:
    """Position of a name in an order; unknown names come last."""
    return order.index(name) if name in order else len(order)


def check_seeds(frame: pd.DataFrame) -> None:
    """Raises ValueError if a label has two runs with the same seed; they must not count as two seeds."""
    runs = frame[["layout", "label", "seed", "run"]].drop_duplicates()
    repeated = runs[runs.duplicated(["layout", "label", "seed"])]
    if not repeated.empty:
        layout, label, seed, _ = repeated.iloc[0]
        same = runs[(runs["layout"] == layout) & (runs["label"] == label) & (runs["seed"] == seed)]
        raise ValueError(
            f"label: {label!r} ({layout}) has runs {', '.join(same['run'])} of seed {seed}; "
            "give each variant its own label in the experiment"
        )


def column_groups(frame: pd.DataFrame, columns: Sequence[str] | None) -> dict[ColumnKey, Records]:
    """Records by (suite, task, metric, length) in the order of a table; within a column by seed.

    The order is SUITES, then tasks as the suite wrote them, metrics as declared, and increasing lengths; or `columns`.
    Raises ValueError for a column without records.
    """
    groups: dict[ColumnKey, Records] = {}
    for record in plain(frame.drop(columns=UNUSED, errors="ignore")):
        key = (record["suite"], record["task"], record["metric"], record["length"])
        groups.setdefault(key, []).append(record)
    names = {key: column_name(*key[1:]) for key in groups}
    if columns is not None:
        unknown = [name for name in columns if name not in names.values()]
        if unknown:
            raise ValueError(f"columns: no records of {', '.join(unknown)}; there are {', '.join(names.values())}")
        order = {key: columns.index(name) for key, name in names.items() if name in columns}
    else:
        tasks = {key[:2]: position for position, key in reversed(list(enumerate(groups)))}
        metrics = list(METRICS)
        order = {
            key: (rank(SUITES, key[0]), key[0], tasks[key[:2]], metrics.index(key[2]), key[3] or 0) for key in groups
        }
    return {key: sorted(groups[key], key=lambda r: r["seed"]) for key in sorted(order, key=order.__getitem__)}


def plain(frame: pd.DataFrame) -> Records:
    """Rows as dictionaries, with None for pandas' missing values. A measured NaN stays NaN."""
    data = {name: frame[name].astype(object).tolist() for name in frame.columns}
    for name in frame.columns.drop("value"):
        data[name] = [None if null else v for v, null in zip(data[name], frame[name].isna(), strict=True)]
    return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]


def stand_in_letters(groups: Mapping[ColumnKey, Records]) -> dict[str, str]:
    """A letter for each reason why a measurement is not the paper's, in order of appearance."""
    reasons = dict.fromkeys(r["stand_in"] for records in groups.values() for r in records if r["stand_in"] is not None)
    return {reason: letter(i) for i, reason in enumerate(reasons)}


def letter(index: int) -> str:
    """a … z, aa, ab …"""
    head, tail = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + tail)


def differing(records: Records, metric: str) -> list[str]:
    """Disagreements that make the records of one column incomparable, one phrase each.

    A baseline must agree on the items (limit, stand_in, and the settings that it states), not on what ran it.
    """
    ran = ["dtype", *(name for name in records[0] if name.startswith("version_"))]
    models = [r for r in records if r["layout"] != BASELINE]
    disagreements = []
    for name in [*ITEMS, *ran, *(("device", "threads") if METRICS[metric].of_device else ())]:
        of = records if name in ITEMS else models
        if len({r[name] for r in of}) < 2:
            continue
        if name == "settings":
            keys = sorted({key for r in records for key in parse_settings(r[name])})
            for key in keys:
                stated = [(parse_settings(r[name]).get(key), r) for r in records]
                stated = [(v, r) for v, r in stated if key in parse_settings(r[name]) or r["layout"] != BASELINE]
                disagreements += phrase(f"settings.{key}", stated)
        else:
            disagreements += phrase(name, [(r[name], r) for r in of])
    return disagreements


def phrase(name: str, values: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    """[`name differs: a (labels), b (labels)`], or an empty list if all agree."""
    labels: dict[str, dict[str, None]] = {}
    for value, record in values:
        labels.setdefault(json.dumps(value, sort_keys=True), {})[record["label"]] = None
    if len(labels) < 2:
        return []
    return [f"{name} differs: " + ", ".join(f"{value} ({', '.join(who)})" for value, who in labels.items())]


def make_cell(records: Records, samples: Samples) -> Cell:
    """The cell of one row in one column, from its records, one per seed."""
    keys = [(r["run"], r["suite"], r["task"], r["metric"], r["length"]) for r in records]
    scores = [samples[key] for key in keys if key in samples]
    whole = len(scores) == len(records) and len({len(s) for s in scores}) == 1
    stderrs, counts = [sampling_error(r) for r in records], [r["n"] for r in records]
    return Cell(
        estimate=stats.estimate([r["value"] for r in records], stderrs, counts),
        agreed=any(stats.agreed(r["metric"], r["value"], r["stderr"]) for r in records),
        scores=scores if whole else None,
        settings=frozenset(r["settings"] for r in records),
        runs=tuple(r["run"] for r in records),
    )


def sampling_error(record: dict[str, Any]) -> float | None:
    """Standard error of a record over its samples (`stats.sampling_error`)."""
    return stats.sampling_error(record["metric"], record["value"], record["stderr"], record["n"])


def printed(row: Row, column: Column) -> float | None:
    """The number in the paper's tables 2 to 4 for a row and column; None if there is none.

    Only rows labelled with the mixer's display name or registered name have one. Another label marks a variant, which
    the paper has not measured.
    """
    mixers = registry.entries()
    if row.mixer not in mixers or unlabelled(row) not in (row.mixer, mixers[row.mixer].display):
        return None
    return printed_values().get((row.mixer, row.layout, *column.key))


def model_cells(runs: pd.DataFrame, row: Row) -> dict[str, stats.Estimate | None]:
    """Cells of the model table for a row, over the runs that have not failed, or all runs if none succeeded.

    Raises ValueError if runs of the row differ in anything but speed.
    """
    own = runs[(runs["layout"] == row.layout) & (runs["label"] == row.label)]
    if "failure" in own and own["failure"].isna().any():
        own = own[own["failure"].isna()]
    cells: dict[str, stats.Estimate | None] = {}
    for key in MODEL_COLUMNS:
        values = own[key].dropna().astype(float).tolist() if key in own else []
        if key != "tokens_per_second" and len(set(values)) > 1:
            raise ValueError(f"{key}: runs of {row.label!r} ({row.layout}) differ, {values}; give each its own label")
        cells[key] = stats.estimate(values, [None] * len(values), [1] * len(values)) if values else None
    return cells
