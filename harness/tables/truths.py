"""Judges an experiment's truths by its records, and its paper's numbers by its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pandas as pd

from harness.experiments.expand import layouts_of
from harness.experiments.schema import Expected, Experiment, MixerSpec
from harness.experiments.truths import Chance, Threshold, Truth, row_label
from harness.records.metrics import METRICS, Metric
from harness.records.published import PAPER, column_name
from harness.records.record import parse_settings
from harness.records.stats import lies_within
from harness.tables.cells import Cell, Column, Row, deviation, number, within
from harness.tables.comparison import Printed, Records, Samples, differing, make_cell, plain
from harness.tables.forms import Table
from harness.tables.marks import compare_cells, paired
from harness.tables.verdicts import MET, NOT_MET, UNDECIDED, Outcome, Verdict

FEWEST_SEEDS = 3
"""Seeds that an interval needs: the spread of two says too little of a third's."""
CHANCE, QUESTIONS = "chance", "questions"
"""Settings of a record that state the value of guessing, in the metric's own unit, and how many questions it counts."""


@dataclass(frozen=True)
class Case:
    """A row at one preset and length.

    name: for sentences; it has the preset if the experiment has several, and the length if there is one. records: one
    per seed of the experiment that has one, by seed. missing: the seeds that have none.
    """

    name: str
    row: Row
    records: Records
    missing: list[int]

    @property
    def lack(self) -> str:
        """The seeds without records, in words; empty if there are none."""
        return f"no record of {_named_seeds(self.missing)}" if self.missing else ""

    @property
    def samples(self) -> str:
        """Number of samples behind each seed, in words."""
        return "n " + " or ".join(f"{n:,}" for n in sorted({r["n"] for r in self.records}))


@dataclass(frozen=True)
class Finding:
    """The outcome of one case, or one pair of them, and its numbers in words."""

    outcome: Outcome
    text: str


def judge(experiment: Experiment, frame: pd.DataFrame, samples: Samples) -> list[Verdict]:
    """Judge every truth of an experiment by its records.

    A truth is met if it holds in every row, preset and length that it names, and not met if it fails in one of them;
    else it is undecided. What a truth names and the records do not have is undecided, never an error: results may
    still be on their way. frame, samples: from `records.load` and `records.load_samples`.
    """
    if not experiment.truths:
        return []
    frame = frame[frame["seed"].isin(experiment.seeds)]
    names = pd.Series(map(column_name, frame["task"], frame["metric"]), frame.index, dtype=object)
    return [_verdict(truth, experiment, frame, frame[names == truth.column], samples) for truth in experiment.truths]


def _verdict(truth: Truth, experiment: Experiment, frame: pd.DataFrame, own: pd.DataFrame, samples: Samples) -> Verdict:
    """own: the records of the truth's column, at any length."""

    def undecided(reason: str) -> Verdict:
        return Verdict(UNDECIDED, truth.words, reason, truth.why)

    if own.empty:
        there = dict.fromkeys(map(column_name, frame["task"], frame["metric"]))
        return undecided(f"no record of a column {truth.column}; there are {', '.join(there) or 'none'}")
    suites = own["suite"].unique()
    if len(suites) > 1:
        return undecided(f"{truth.column} is a column of several suites, {', '.join(suites)}; measure it in one")
    cases = _cases(truth, experiment, frame, plain(own))
    metric = METRICS[own["metric"].iloc[0]]
    if isinstance(truth, Threshold):
        findings = [_threshold(truth, case, metric) for case in _each(cases["of"])]
    elif isinstance(truth, Chance):
        findings = [_chance(truth, case, metric, samples) for case in _each(cases["of"])]
    else:
        findings = [_order(pair, metric, samples) for pair in _pairs(cases["below"], cases["above"])]
    if not findings:
        return undecided("no two of the rows share a layout")
    outcomes = {finding.outcome for finding in findings}
    outcome = next((o for o in (NOT_MET, UNDECIDED) if o in outcomes), MET)
    texts = [*(finding.text for finding in findings), *_unmeasured(truth, own)]
    return Verdict(outcome, truth.words, "; ".join(texts), truth.why)


def _unmeasured(truth: Truth, own: pd.DataFrame) -> Iterator[str]:
    """Lengths of a truth that no row was measured at, in words."""
    there = [None if pd.isna(length) else int(length) for length in own["length"].drop_duplicates()]
    if unknown := [length for length in truth.at or [None] if length not in there]:
        asked = ", ".join(map(str, unknown)) if truth.at else "no length"
        yield f"at: no row was measured at {asked}; there are {', '.join(map(str, there))}"


Cases = dict[tuple[str, int | None], list[Case]]
"""The cases of named rows, by preset and length."""


def _cases(truth: Truth, experiment: Experiment, frame: pd.DataFrame, own: Records) -> dict[str, Cases]:
    """Cases of a truth, by the field that names their rows."""
    by_case: dict[tuple, Records] = {}
    for record in sorted(own, key=lambda r: r["seed"]):
        key = (record["layout"], record["label"], record["preset"], record["length"])
        by_case.setdefault(key, []).append(record)
    presets, lengths = truth.presets or experiment.preset_names, truth.at or [None]
    several = len(experiment.preset_names) > 1

    def case(row: Row, preset: str, length: int | None) -> Case:
        records = by_case.get((row.layout, row.label, preset, length), [])
        found = {r["seed"] for r in records}
        at = f"{' ' + preset if several else ''}{'' if length is None else f' @{length}'}"
        missing = [seed for seed in experiment.seeds if seed not in found]
        return Case(f"{row.label} ({row.layout}){at}", row, records, missing)

    found: dict[str, Cases] = {}
    for field, names in truth.rows.items():
        rows = dict.fromkeys(row for name in names for row in _rows(experiment, frame, name))
        found[field] = {at: [case(row, *at) for row in rows] for at in product(presets, lengths)}
    return found


def _rows(experiment: Experiment, frame: pd.DataFrame, name: str) -> Iterator[Row]:
    """Rows that go by a name: those of a mixer, or the one with that label in each layout."""
    for spec in experiment.mixers:
        label = _label(experiment, spec, frame)
        labels = [label, *(f"{label}, {a.label}" for a in experiment.ablations)]
        named = [label] if name == spec.mixer else [own for own in labels if own == name]
        yield from (Row(layout, own, spec.mixer) for layout in layouts_of(experiment, spec) for own in named)


def _label(experiment: Experiment, spec: MixerSpec, frame: pd.DataFrame) -> str:
    """Label of a model's row; that of its records if a file defines the mixer, which no table needs to load."""
    if (stated := row_label(spec)) is not None:
        return stated
    others = {other.label for other in experiment.mixers}
    endings = tuple(f", {ablation.label}" for ablation in experiment.ablations)
    labels = frame.loc[frame["mixer"] == spec.mixer, "label"].unique()
    return next((own for own in labels if own not in others and not own.endswith(endings)), spec.mixer)


def _each(cases: Cases) -> Iterator[Case]:
    return (case for own in cases.values() for case in own)


def _pairs(below: Cases, above: Cases) -> Iterator[tuple[Case, Case]]:
    """Pairs of rows at the same preset and length, in the same layout unless one is attention."""
    for at in below:
        for a, b in product(below[at], above[at]):
            if a.row.layout == b.row.layout or "attention" in (a.row.layout, b.row.layout):
                yield a, b


def _threshold(truth: Threshold, case: Case, metric: Metric) -> Finding:
    values = [record["value"] * metric.scale for record in case.records]
    held = [truth.holds(value) for value in values]
    counts = [parse_settings(r["settings"]).get(QUESTIONS, r["n"]) for r in case.records]
    reasons = [case.lack] if case.missing else []
    if counts and min(counts) < truth.questions:
        reasons.append("fewer questions than the truth asks for")
    outcome = NOT_MET if not all(held) else UNDECIDED if reasons else MET
    shown = [f"{value:.5g}{'' if ok else ' misses'}" for value, ok in zip(values, held, strict=True)]
    parts = [", ".join(shown)] if shown else []
    if counts:
        seeds = _named_seeds([record["seed"] for record in case.records])
        asked = " or ".join(f"{count:,}" for count in sorted(set(counts)))
        parts[0] += f" ({seeds}; {asked} questions)"
    return Finding(outcome, f"{case.name}: " + ", ".join([*parts, *reasons]))


def _chance(truth: Chance, case: Case, metric: Metric, samples: Samples) -> Finding:
    levels = {_level(truth, record["settings"], metric) for record in case.records}
    cell = make_cell(case.records, samples) if case.records else Cell()
    if reason := _unsettled(case, cell):
        return Finding(UNDECIDED, f"{case.name}: {reason}")
    if None in levels or len(levels) > 1:
        return Finding(UNDECIDED, f"{case.name}: the records do not state one chance; give the truth a level")
    interval = cell.estimate.interval
    low, high = (x * metric.scale for x in interval)
    (level,) = levels
    inside = lies_within(low, high, level - truth.within, level + truth.within)
    mean = f"mean {cell.estimate.value * metric.scale:.5g} [{low:.5g}, {high:.5g}]"
    stated = "" if truth.level is not None else f", chance {level:.5g}"
    return Finding(_outcome(inside), f"{case.name}: {mean}{stated} ({_seeds(cell)}, {case.samples})")


def _level(truth: Chance, settings: str, metric: Metric) -> float | None:
    """Chance in the unit that tables print, as the truth or else a record states it."""
    if truth.level is not None:
        return truth.level
    stated = parse_settings(settings).get(CHANCE)
    return None if stated is None else stated * metric.scale


def _order(pair: tuple[Case, Case], metric: Metric, samples: Samples) -> Finding:
    below, above = pair
    name = f"{above.name} − {below.name}"
    cells = [make_cell(case.records, samples) if case.records else Cell() for case in pair]
    both = zip(pair, cells, strict=True)
    reasons = [f"{case.name}: {reason}" for case, cell in both if (reason := _unsettled(case, cell))]
    reasons = reasons or differing([*below.records, *above.records], below.records[0]["metric"])
    if reasons:
        return Finding(UNDECIDED, f"{name}: {', '.join(reasons)}")
    result = compare_cells(cells[1], cells[0])
    if result.low is None:
        return Finding(UNDECIDED, f"{name}: {result.test}")
    low, high = result.low * metric.scale, result.high * metric.scale
    # Per-sample scores of a perplexity are logarithms, and so is a difference of them.
    unit = " nats" if metric.logarithmic and paired(*cells) else ""
    interval = f"{result.difference * metric.scale:+.5g} [{low:+.5g}, {high:+.5g}]".replace("-", "−")
    return Finding(
        _outcome(lies_within(low, high, 0, math.inf)),
        f"{name}: {interval}{unit} ({result.test}; {_seeds(cells[0])}, {above.samples})",
    )


def _unsettled(case: Case, cell: Cell) -> str:
    """Reason why an interval over seeds cannot be had; empty if it can."""
    if case.missing:
        return case.lack
    if cell.estimate is None:
        return cell.text
    if cell.estimate.seeds < FEWEST_SEEDS:
        return f"{_seeds(cell)}; an interval over seeds needs {FEWEST_SEEDS}"
    return ""


def _outcome(inside: bool | None) -> Outcome:
    return {True: MET, False: NOT_MET, None: UNDECIDED}[inside]


def _named_seeds(seeds: list[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _seeds(cell: Cell) -> str:
    return f"{cell.estimate.seeds} seed{'s' * (cell.estimate.seeds > 1)}"


def judge_paper(table: Table, expected: Expected, printed: Printed) -> list[Verdict]:
    """Judge every number of the paper that the experiment states a tolerance for.

    table: of the paper, or the comparison, with all of its columns, built with `expected`. printed: gives the paper's
    number for a row and column.
    """
    columns = {column.name: column for column in table.columns}
    found: list[Verdict] = []
    for name, tolerance in expected.columns.items():
        if name not in columns:
            truth = f"{name} is within {tolerance:g} of the paper's ({PAPER}, {expected.table})"
            found.append(Verdict(UNDECIDED, truth, "not measured"))
            continue
        column = columns[name]
        for row in table.rows:
            if (value := printed(row, column)) is not None:
                paper = number(column.shown(value))
                words = f"{name} of {row.label} ({row.layout}) is within {tolerance:g} of the paper's {paper}"
                outcome, numbers = _against_paper(table.cells[row, column], column)
                found.append(Verdict(outcome, words, numbers, f"{PAPER}, {expected.table}"))
    return found


def _against_paper(cell: Cell, column: Column) -> tuple[Outcome, str]:
    if column.stand_ins:
        return UNDECIDED, "measured on a stand-in"
    if cell.estimate is None:
        return UNDECIDED, {"–": "not measured"}.get(cell.text, cell.text)
    if cell.tolerance is None:
        return UNDECIDED, "not trained at the paper's scale"
    ours = column.shown(cell.estimate.value)
    text = f"{ours:.5g}, {deviation(cell, column):+.3g} ({_seeds(cell)}, n {cell.estimate.items:,})"
    return MET if within(cell, column) else NOT_MET, text.replace("-", "−")
