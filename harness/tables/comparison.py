"""The comparison: mixers as rows, metrics as columns, every number with its error and the paper's beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pandas as pd

from harness.experiments.schema import Expected
from harness.records import stats
from harness.records.metrics import METRICS
from harness.records.published import column_name, printed_values
from harness.records.record import SampleKey
from harness.records.units import suite_of
from harness.tables.cells import BASELINE, FAILED, MISSING, MODEL_COLUMNS, NOT_FINITE, UNREADABLE, Cell, Column, Row
from harness.tables.forms import Table
from harness.tables.marks import mark
from harness.tables.notes import provenance_notes, reading_notes, table_notes
from mixers import registry

LAYOUTS = ("recurrent", "hybrid", "attention")
SUITES = ("language", "ruler", "retrieval", "recall", "throughput")
ITEMS = ("settings", "limit", "stand_in")
"""What says which items were scored and how; beside it dtype and versions must agree."""
UNUSED = ["config_hash", "time", "command", "file"]
"""Fields of a record that no table shows."""

AT = " @ "
"""Between a label and its preset."""
ROUNDING = 1.01
"""Tokens seen may exceed those asked for by so much: phases are rounded up to whole steps."""

Samples = Mapping[SampleKey, Sequence[float]]
ColumnKey = tuple[str, str, str, int | None]
"""(suite, task, metric, length)."""
Records = list[dict[str, Any]]
Printed = Callable[[Row, Column], float | None]


@dataclass
class Measured:
    """What records say, before anything is marked: a table of every measured column, the records behind each cell by
    row and column, reasons of stand-ins by letter, disagreements that were allowed."""

    table: Table
    records: dict[tuple[Row, Column], Records]
    stand_ins: dict[str, str]
    mixed: list[str] = field(default_factory=list)

    @property
    def used(self) -> Records:
        return [record for records in self.records.values() for record in records]


def comparison(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    runs: pd.DataFrame | None = None,
    samples: Samples | None = None,
    allow_mixed: bool = False,
    expected: Expected | None = None,
) -> Table:
    """Compare the labels of a frame of records (`records.load`); where models have several presets, each in each.

    columns: names of those to show, in this order; all of them if None.
    runs: a row a run with label, mixer, layout, preset and, where known, run, seed, the keys of MODEL_COLUMNS,
        `failure`: the reason why a run has failed, and `unreadable`: by unit, why its records cannot be read. It adds
        the model table, and rows for labels without records. `trained_on` (machine, precision, code) and `mixture`
        (phases of training data) of a run are noted where given.
    samples: per-sample scores (`records.load_samples`), with which rows are compared item by item.
    expected: of the experiment (`Experiment.expectation`); rows that `runs` says were trained at its scale are held
        against the paper's numbers.
    Raises ValueError when there are no records, a column is not known, a label is not one model, a seed was run
    twice under one label, or records of a column were measured differently and allow_mixed is not set.
    """
    if frame.empty:
        raise ValueError("records: none to compare; evaluate a run first")
    frame, runs, presets = apart_by_preset(frame, runs)
    rows = [
        replace(row, group=f"{row.layout}, {row.preset}" if row.preset else row.layout)
        for row in table_rows(frame, runs, presets)
    ]
    found = measure(frame, rows, columns, runs, samples or {}, allow_mixed)
    return finish(found.table, found, runs, expected, printed)


def measure(
    frame: pd.DataFrame,
    rows: list[Row],
    columns: Sequence[str] | None,
    runs: pd.DataFrame | None,
    samples: Samples,
    allow_mixed: bool,
) -> Measured:
    """Cells of all columns that have records, and the models of the rows."""
    check_seeds(frame)
    groups = column_groups(frame, columns)
    letters = stand_in_letters(groups)
    found = Measured(Table(rows, []), {}, {letter: reason for reason, letter in letters.items()})
    own_runs = runs_by_row(runs)
    for (suite, task, metric, length), records in groups.items():
        reasons = {letters[r["stand_in"]] for r in records if r["stand_in"] is not None}
        column = Column(suite, task, metric, length, tuple(sorted(reasons)), length_unit(records))
        disagreements = differing(records, metric)
        if disagreements and not allow_mixed:
            raise ValueError(
                f"column {column.name}: {disagreements[0]}; evaluate again under one setting, or allow mixed records"
            )
        found.mixed += [f"{column.name}: {what}" for what in disagreements]
        found.table.columns.append(column)
        by_row: dict[tuple[str, str], Records] = {}
        for record in records:
            by_row.setdefault((record["layout"], record["label"]), []).append(record)
        for row in rows:
            own = found.records[row, column] = by_row.get((row.layout, row.label), [])
            missing = missing_text(own_runs.get((row.layout, row.label), []), suite)
            found.table.cells[row, column] = make_cell(own, samples) if own else Cell(text=missing)
    if runs is not None:
        found.table.model = {row: model_cells(runs, row) for row in rows}
    return found


def finish(
    table: Table, found: Measured, runs: pd.DataFrame | None, expected: Expected | None, paper: Printed
) -> Table:
    """Add the paper's numbers, marks and notes. paper: the printed number of a row and a column."""
    own_runs = runs_by_row(runs)
    at_scale = {row for row in table.rows if meets(own_runs.get((row.layout, row.label), []), expected)}
    for (row, column), cell in table.cells.items():
        cell.paper = None if column.stand_ins else paper(row, column)
        if cell.paper is not None and row in at_scale:
            cell.tolerance = expected.allowed(column.name)
    for column in table.columns:
        for group, rows in table.groups().items():
            if tested := mark({row: table.cells[row, column] for row in rows}, column):
                table.tested[group, column] = tested
    table.notes = [
        *reading_notes(table, found.used, at_scale),
        *table_notes(found.table, found.used, found.stand_ins, found.mixed, runs),
    ]
    table.provenance = provenance_notes(found.used)
    return table


def runs_by_row(runs: pd.DataFrame | None) -> dict[tuple[str, str], Records]:
    """The runs of each layout and label, without the keys that are not known of them."""
    found: dict[tuple[str, str], Records] = {}
    for run in [] if runs is None else runs.to_dict("records"):
        stated = {key: value for key, value in run.items() if value is not None and value == value}
        found.setdefault((run["layout"], run["label"]), []).append(stated)
    return found


def missing_text(own_runs: Records, suite: str) -> str:
    """Why a row has no number in a suite's column."""
    if any(suite in {suite_of(unit) for unit in run.get("unreadable", ())} for run in own_runs):
        return UNREADABLE
    return FAILED if own_runs and all("failure" in run for run in own_runs) else MISSING


def meets(own_runs: Records, expected: Expected | None) -> bool:
    """Whether all runs of a row were trained at the scale of what is expected: its preset, and its tokens but for the
    last step of a phase."""
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


def column_groups(frame: pd.DataFrame, columns: Sequence[str] | None) -> dict[ColumnKey, Records]:
    """Records by (suite, task, metric, length), in the order of a table, by seed within.

    Suites in their fixed order, tasks as the suite wrote them, metrics as declared, lengths rising; or as `columns`.
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
        tasks = {key[:2]: place for place, key in reversed(list(enumerate(groups)))}
        metrics = list(METRICS)
        order = {
            key: (rank(SUITES, key[0]), key[0], tasks[key[:2]], metrics.index(key[2]), key[3] or 0) for key in groups
        }
    return {key: sorted(groups[key], key=lambda r: r["seed"]) for key in sorted(order, key=order.__getitem__)}


def plain(frame: pd.DataFrame) -> Records:
    """Rows as dictionaries, None where pandas has one of its missing values; a NaN measured stays NaN."""
    data = {name: frame[name].astype(object).tolist() for name in frame.columns}
    for name in frame.columns.drop("value"):
        data[name] = [None if null else v for v, null in zip(data[name], frame[name].isna(), strict=True)]
    return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]


def stand_in_letters(groups: Mapping[ColumnKey, Records]) -> dict[str, str]:
    """A letter for each reason why a measurement is not the paper's, in order of appearance."""
    reasons = dict.fromkeys(r["stand_in"] for records in groups.values() for r in records if r["stand_in"] is not None)
    return {reason: letter(i) for i, reason in enumerate(reasons)}


@lru_cache(maxsize=4096)
def parsed(settings: str) -> dict[str, Any]:
    """The settings of a record; many records share a text. Not to be changed."""
    return json.loads(settings)


def length_unit(records: Records) -> str | None:
    """What the length of a column's records counts, None where it counts tokens."""
    return next((unit for r in records if (unit := parsed(r["settings"]).get("length_unit"))), None)


def letter(index: int) -> str:
    """a … z, aa, ab …"""
    head, tail = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + tail)


def differing(records: Records, metric: str) -> list[str]:
    """What the records of one column disagree on, that makes them incomparable; one phrase each.

    Of a baseline the items count, as its settings where it has them, limit and stand_in say, and not what ran it.
    """
    ran = ["dtype", *(name for name in records[0] if name.startswith("version_"))]
    models = [r for r in records if r["layout"] != BASELINE]
    found = []
    for name in [*ITEMS, *ran, *(("device", "threads") if METRICS[metric].of_device else ())]:
        of = records if name in ITEMS else models
        if len({r[name] for r in of}) < 2:
            continue
        if name == "settings":
            keys = sorted({key for r in records for key in parsed(r[name])})
            for key in keys:
                stated = [(parsed(r[name]).get(key), r) for r in records]
                stated = [(v, r) for v, r in stated if key in parsed(r[name]) or r["layout"] != BASELINE]
                found += phrase(f"settings.{key}", stated)
        else:
            found += phrase(name, [(r[name], r) for r in of])
    return found


def phrase(name: str, values: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    """[`name differs: a (labels), b (labels)`], or nothing where all agree."""
    labels: dict[str, dict[str, None]] = {}
    for value, record in values:
        labels.setdefault(json.dumps(value, sort_keys=True), {})[record["label"]] = None
    if len(labels) < 2:
        return []
    return [f"{name} differs: " + ", ".join(f"{value} ({', '.join(who)})" for value, who in labels.items())]


def make_cell(records: Records, samples: Samples) -> Cell:
    """The number of one row in one column, from its records, one a seed."""
    broken = [str(r["seed"]) for r in records if not math.isfinite(r["value"])]
    if broken:
        return Cell(text=f"{NOT_FINITE} (seed {', '.join(broken)})")
    keys = [(r["run"], r["suite"], r["task"], r["metric"], r["length"]) for r in records]
    scores = [samples[key] for key in keys if key in samples]
    whole = len(scores) == len(records) and len({len(s) for s in scores}) == 1
    stderrs, counts = [sampling_error(r) for r in records], [r["n"] for r in records]
    return Cell(
        estimate=stats.estimate([r["value"] for r in records], stderrs, counts),
        agreed=any(agreed(r) for r in records),
        scores=scores if whole else None,
        settings=frozenset(r["settings"] for r in records),
    )


def agreed(record: dict[str, Any]) -> bool:
    """Whether all samples of a proportion scored the same, so that the usual error is 0."""
    return METRICS[record["metric"]].percent and record["stderr"] == 0 and record["value"] in (0.0, 1.0)


def sampling_error(record: dict[str, Any]) -> float | None:
    return stats.proportion_floor(record["n"]) if agreed(record) else known(record["stderr"])


def known(stderr: float | None) -> float | None:
    """A standard error that is no number is none."""
    return stderr if stderr is not None and math.isfinite(stderr) else None


def printed(row: Row, column: Column) -> float | None:
    """The number of the paper's tables 2 to 4 for a row and a column, None where they have none.

    A row with a label of its own is a variant of its mixer, which the paper has not measured; its display name or its
    registered name is what the paper measured.
    """
    mixers = registry.entries()
    label = row.label.removesuffix(f"{AT}{row.preset}")
    if row.mixer not in mixers or label not in (row.mixer, mixers[row.mixer].display):
        return None
    return printed_values().get((row.mixer, row.layout, *column.key))


def model_cells(runs: pd.DataFrame, row: Row) -> dict[str, stats.Estimate | None]:
    """What the row's model is and cost, over its runs that have not failed, or all of them if none succeeded."""
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
