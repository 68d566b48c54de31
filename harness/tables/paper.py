"""Tables 2 to 5 in the paper's layout, from our runs or from the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product

import pandas as pd

from harness.experiments.schema import Expected
from harness.records import stats
from harness.records.published import ABLATED, AVERAGE, PAPER, SCALE, VARIANTS, published, task_sizes
from harness.records.significance import printed_gap, proportion_stderr
from harness.records.stats import ALPHA
from harness.tables.cells import BOLD, MISSING, Cell, Column, Row
from harness.tables.comparison import (
    ColumnKey,
    Measured,
    Printed,
    Records,
    Samples,
    apart_by_preset,
    finish,
    make_cell,
    measure,
    printed,
    rank,
    sampling_error,
    table_rows,
)
from harness.tables.forms import Table
from harness.tables.marks import mark
from harness.tables.notes import listed
from mixers import registry

PAPER_TABLES = ("table2", "table3", "table4", "table5")
TITLES = {
    "table2": "Language modelling and zero-shot reasoning",
    "table3": "RULER: needles in a haystack, accuracy in %",
    "table4": "Real-world retrieval, contains the answer in %",
    "table5": "Gates and erase range of Gated DeltaNet-2",
}
HEADINGS = {"recurrent": "Recurrent", "attention": "Attention and hybrid", "hybrid": "Attention and hybrid"}
"""The paper's groups of rows by layout; attention comes first among the hybrids."""
GATES = ("erase_gate", "write_gate", "erase_range")
"""The options that tell the rows of table 5 apart."""
AVERAGED = {"language": "table2", "retrieval": "table4"}
"""The table whose accuracies a suite's average is over."""


def paper_table(
    which: str,
    frame: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    samples: Samples | None = None,
    allow_mixed: bool = False,
    expected: Expected | None = None,
) -> Table:
    """One of the paper's tables 2 to 5 from our records: the paper's columns and order of rows, our numbers.

    Arguments are those of `comparison`. Rows of table 5 are matched with the paper's by the `options` of their runs.
    Tasks that were not measured are columns without numbers, and an average over them says how many there are.
    Raises ValueError as `comparison` does, and if no record belongs to the table.
    """
    columns, in_table = printed_columns(which), belongs(which, frame)
    if not in_table.any():
        names = ", ".join(column.name for column in columns)
        raise ValueError(f"{which}: no records of its columns ({names}); submit and collect experiment {which} first")
    if runs is not None:
        runs = runs[
            [compares(which, mixer, layout) for mixer, layout in zip(runs["mixer"], runs["layout"], strict=True)]
        ]
    frame, runs, presets = apart_by_preset(frame[in_table], runs)
    rows = sorted(
        (replace(row, group=heading(row)) for row in table_rows(frame, runs, presets)),
        key=lambda row: (list(HEADINGS.values()).index(HEADINGS[row.layout]), rank(paper_order(), model_name(row))),
    )
    measured = measure(frame, rows, None, runs, samples or {}, allow_mixed)
    by_key = {column.key: column for column in measured.table.columns}
    table = Table(rows, [], model=measured.table.model, title=TITLES[which])
    for column in columns:
        parts = averaged(column)
        if parts is not None:
            tasks = [by_key[key] for key in parts if key in by_key]
            column = replace(column, stand_ins=tuple(sorted({s for c in tasks for s in c.stand_ins})))
        column = by_key.get(column.key, column)
        table.columns.append(column)
        for row in rows:
            if parts is not None:
                table.cells[row, column] = average_cell(measured, row, tasks, len(parts), samples or {})
            else:
                table.cells[row, column] = measured.table.cells.get((row, column), Cell())
    return finish(table, measured, runs, expected, printed_by(which, runs))


def belongs(which: str, frame: pd.DataFrame) -> pd.Series:
    """Whether each record belongs to one of the paper's tables.

    It does if its task is a column, or part of an average, and the table compares its model.
    """
    wanted = {key for column in printed_columns(which) for key in (averaged(column) or [column.key])}
    lengths = frame["length"].astype(object).where(frame["length"].notna(), None)
    keys = zip(frame["suite"], frame["task"], frame["metric"], lengths, frame["mixer"], frame["layout"], strict=True)
    return pd.Series([row[:4] in wanted and compares(which, *row[4:]) for row in keys], frame.index, dtype=bool)


def compares(which: str, mixer: str, layout: str) -> bool:
    """Whether a table compares a model: table 5 the recurrent Gated DeltaNet-2 and its variants, others all but
    baselines."""
    return {"mixer": mixer, "layout": layout} == ABLATED if which == "table5" else layout in HEADINGS


def heading(row: Row) -> str:
    """The group of a row."""
    return HEADINGS[row.layout] + (f", {row.preset}" if row.preset else "")


def model_name(row: Row) -> str:
    """A row's mixer and layout, as in `paper_order`."""
    return f"{row.mixer} {row.layout}"


@cache
def paper_order() -> list[str]:
    """`mixer layout` in the order of the paper's rows."""
    return [f"{mixer} {layout}" for mixer, layout in published("table2")[["mixer", "layout"]].drop_duplicates().values]


@cache
def printed_columns(which: str) -> list[Column]:
    """Columns of one of the paper's tables 2 to 5, in its order. Raises ValueError for another table."""
    if which not in PAPER_TABLES:
        raise ValueError(f"table: {which!r} is not laid out as a table; choose from {', '.join(PAPER_TABLES)}")
    keys = published(which)[["suite", "task", "metric", "length"]].drop_duplicates()
    return [Column(*key[:3], None if pd.isna(key[3]) else int(key[3])) for key in keys.itertuples(index=False)]


def averaged(column: Column) -> list[ColumnKey] | None:
    """The columns that an average is over: all accuracies of table 2 or 4. None if the column is not an average."""
    if column.task != AVERAGE:
        return None
    columns = printed_columns(AVERAGED[column.suite])
    return [c.key for c in columns if c.unit.percent and c.task != AVERAGE]


def average_cell(measured: Measured, row: Row, columns: list[Column], tasks: int, samples: Samples) -> Cell:
    """The average of a row over its tasks (`stats.average`), over the seeds that all tasks have.

    columns: the tasks that were measured. tasks: number of tasks in the average. If a task or a common seed is missing,
    the cell's text says so.
    """
    cells = [measured.table.cells[row, column] for column in columns]
    scored = sum(cell.estimate is not None for cell in cells)
    if scored < tasks:
        reasons = [cell.text for cell in cells if cell.text != MISSING and cell.estimate is None]
        return Cell(text=f"{scored} of {tasks} tasks" if scored else (reasons or [MISSING])[0])
    seeds = set.intersection(*({r["seed"] for r in measured.records[row, c]} for c in columns))
    if not seeds:
        return Cell(text="no seed has all tasks")
    records: list[Records] = [[r for r in measured.records[row, c] if r["seed"] in seeds] for c in columns]
    estimate = stats.average(
        [[r["value"] for r in task] for task in records],
        [[sampling_error(r) for r in task] for task in records],
        [[r["n"] for r in task] for task in records],
    )
    parts = [make_cell(task, samples) for task in records]
    return Cell(estimate=estimate, agreed=any(part.agreed for part in parts), parts=parts)


def printed_by(which: str, runs: pd.DataFrame | None) -> Printed:
    """Function that gives the number that a table or figure of the paper prints for a row and column."""
    return printed_variant(runs) if which == "table5" else printed


def printed_variant(runs: pd.DataFrame | None) -> Printed:
    """Function that gives the printed number of table 5 for a row and column.

    It is that of the variant with the gates and erase range of the row's runs; None if `runs` does not tell.
    """
    frame = published("table5")
    variants = {tuple(v[:3]): v[3] for v in frame[[*GATES, "variant"]].drop_duplicates().itertuples(index=False)}
    values = frame.set_index(["variant", "suite", "task", "metric", "length"])["value"]
    values = {tuple(None if pd.isna(k) else k for k in key): value for key, value in values.items()}
    of: dict[str, set[str | None]] = {}
    for run in [] if runs is None or "options" not in runs else runs.to_dict("records"):
        options = run["options"] if isinstance(run["options"], dict) else {}
        of.setdefault(run["label"], set()).add(variants.get(tuple(options.get(gate) for gate in GATES)))

    def value(row: Row, column: Column) -> float | None:
        (variant,) = found if len(found := of.get(row.label, set())) == 1 else (None,)
        return values.get((variant, *column.key))

    return value


def printed_table(which: str) -> Table:
    """One of the paper's tables 2 to 5 as printed, with lower bounds of its errors and the marks that they allow.

    Errors are binomial, for the sample sizes in published/sizes.csv. Rows are compared by `significance.printed_gap`
    with Holm's correction. Nothing printed gives the error of a perplexity. The tasks of table 5's averages are not
    printed; their spread is taken from the unablated model in tables 2 and 4. Raises ValueError for another table.
    """
    columns, mixers = printed_columns(which), registry.entries()
    frame = published(which)
    name = "variant" if which == "table5" else "mixer"
    rows = [
        Row(layout, VARIANTS[key] if which == "table5" else mixers[key].display, mixer, group=HEADINGS[layout])
        for key, mixer, layout in frame[[name, "mixer", "layout"]].drop_duplicates().values
    ]
    values = frame["value"].tolist()
    table = Table(rows, list(columns), title=f"{TITLES[which]}, as printed")
    table.percent_digits = 1 if which == "table3" else 2
    shares: dict[Cell, list[float]] = {}
    for i, row in enumerate(rows):
        printed_row = dict(zip((c.key for c in columns), values[i * len(columns) :], strict=False))
        for column in columns:
            cell = table.cells[row, column] = Cell()
            shares[cell] = task_shares(printed_row, column) if column.unit.percent else []
            cell.estimate = printed_estimate(printed_row[column.key], shares[cell], column)
    for column, (group, own) in product(columns, table.groups().items()):

        def compare(a: Cell, b: Cell, column: Column = column) -> stats.Comparison:
            return printed_gap(shares[a], shares[b], sizes(column))

        if tested := mark({row: table.cells[row, column] for row in own}, column, compare):
            table.tested[group, column] = tested
    table.reading = [*printed_notes(which, table), *gap_notes(table)]
    table.provenance = [f"{PAPER}, {which}, at {SCALE}"]
    return table


def sizes(column: Column) -> list[int]:
    """Number of samples behind a printed number, by task."""
    return [task_sizes()[key[1]] for key in averaged(column) or [column.key]]


def task_shares(row: Mapping[ColumnKey, float], column: Column) -> list[float]:
    """The accuracies behind a printed number: itself, or those of the tasks of an average.

    If the row does not print the tasks, those of the unablated model, shifted to the printed average.
    """
    parts = averaged(column)
    if parts is None:
        return [row[column.key]]
    if parts[0] in row and parts[1] in row:
        return [row[key] for key in parts]
    tasks = published(AVERAGED[column.suite])
    tasks = tasks[(tasks["mixer"] == ABLATED["mixer"]) & (tasks["layout"] == ABLATED["layout"])]
    whole = dict(zip(tasks["task"] + tasks["metric"], tasks["value"], strict=True))
    own = [whole[key[1] + key[2]] for key in parts]
    shift = row[column.key] - sum(own) / len(own)
    return [value + shift for value in own]


def printed_estimate(value: float, shares: list[float], column: Column) -> stats.Estimate:
    """A printed number with its binomial error, for an average by `stats.average`; no error without shares."""
    if not shares:
        return stats.estimate([value], [None], [1])
    counts = sizes(column)
    errors = [[proportion_stderr(p, n)] for p, n in zip(shares, counts, strict=True)]
    estimate = stats.average([[p] for p in shares], errors, [[n] for n in counts])
    return replace(estimate, value=value)


def printed_notes(which: str, table: Table) -> list[str]:
    """Notes on the errors of a printed table."""
    notes = [
        "± is the binomial standard error of one run on as many samples as the task's set has; what another seed would "
        "give was not printed and is not in it",
        "scores by item were not published, so what two rows share of the items does not cancel, and the test is "
        "cautious where they tend to solve the same",
    ]
    if any(not column.unit.percent for column in table.columns):
        notes.append("a perplexity was printed without anything that gives its error: no ±, no marks")
    if which == "table5":
        notes.append(
            "the tasks of the averages were not printed for the ablations; their spread is taken to be that of the "
            "whole model's in tables 2 and 4"
        )
    return notes


def gap_notes(table: Table) -> list[str]:
    """Notes by group: how many pairs of each column differ significantly, and columns with a single best row."""
    notes = []
    for group, rows in table.groups().items():
        own = [(column, found) for (name, column), found in table.tested.items() if name == group]
        apart = {column: int((found.adjusted < ALPHA).sum()) // 2 for column, found in own}
        pairs = len(rows) * (len(rows) - 1) // 2
        first = [c.name for c, _ in own if sum(table.cells[row, c].mark == BOLD for row in rows) == 1]
        notes.append(
            f"{group}: gaps beyond sampling noise (Holm, {ALPHA:.0%}), of {pairs} pairs a column: "
            + ", ".join(f"{column.name} {n}" for column, n in apart.items())
            + f"; one row alone is best in {listed(first) or 'no column'}"
        )
    return notes
