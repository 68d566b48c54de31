"""Rows, columns and cells of a table, and how numbers are written in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from harness.records.metrics import METRICS, Metric
from harness.records.published import TASK_NAMES, column_name
from harness.records.stats import Comparison, Estimate, Scores

HUGE = 1e5
"""From here on, logarithmic metrics are written in powers of ten. Perplexities of barely trained models reach it."""

MISSING, FAILED, UNREADABLE = "–", "failed", "unreadable"
AT = " @ "
"""Separates a label from its preset."""
MINUS = "−"
STAND_IN = "(stand-in)"
"""Follows the paper's name of a task in the heading of a measurement that is not the paper's."""
BOLD, UNDERLINED = "bold", "underlined"
WITHIN, BEYOND = "≈", "≠"

SPEED = METRICS["train_tokens_per_second"]
MODEL_COLUMNS = {
    "non_embedding_params": "non-embedding parameters",
    "state_floats_per_layer": "state floats/layer",
    "flops_per_token": "training FLOPs/token",
    "tokens_seen": "tokens seen",
    "tokens_per_second": f"{SPEED.display} {SPEED.arrow}",
}
"""Columns of the model table: keys of runs.json, with their headings."""


@dataclass(frozen=True)
class Row:
    """A row of a table: one model, over all its seeds.

    preset: set if several are compared; the label then ends with it. group: rows of a group are compared with each
    other; tables in the paper's layout show it as a heading.
    """

    layout: str
    label: str
    mixer: str
    preset: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: one metric of one task, at one length.

    stand_ins: letters of the notes that say why it is not the paper's measurement. length_unit: what `length` counts;
    None for tokens.
    """

    suite: str
    task: str
    metric: str
    length: int | None
    stand_ins: tuple[str, ...] = ()
    length_unit: str | None = None

    @property
    def key(self) -> tuple[str, str, str, int | None]:
        """(suite, task, metric, length)."""
        return self.suite, self.task, self.metric, self.length

    @property
    def name(self) -> str:
        """Name in CSV files, ours and the paper's: `piqa_acc`, `s_niah_2@4096`."""
        return column_name(self.task, self.metric, self.length)

    @property
    def unit(self) -> Metric:
        """Direction, unit and printed name of the metric."""
        return METRICS[self.metric]

    @property
    def short_unit(self) -> str:
        """Suffix of a length: ` pairs` for `key-value pairs`, empty for tokens."""
        return f" {self.length_unit.split()[-1]}" if self.length_unit else ""

    @property
    def title(self) -> str:
        """The paper's name of the task, and that it is a stand-in where the measurement is not the paper's."""
        name = TASK_NAMES.get(self.task, self.task)
        return f"{name} {STAND_IN}" if self.stand_ins and self.task in TASK_NAMES else name

    @property
    def what(self) -> str:
        """Metric and length: `acc @16 pairs`."""
        parts = [] if self.task in TASK_NAMES and self.metric == "contains" else [self.unit.display]
        return " ".join([*parts, *([f"@{self.length}{self.short_unit}"] if self.length is not None else [])])

    @property
    def words(self) -> str:
        """Name in running text: `mqar acc @16 pairs`."""
        return f"{self.title} {self.what}".strip()

    @property
    def detail(self) -> str:
        """The second part of the heading: metric, length, direction, stand-ins."""
        parts = [self.what, self.unit.arrow, *(f"[{letter}]" for letter in self.stand_ins)]
        return " ".join(filter(None, parts))

    def shown(self, value: float) -> float:
        """A value in the table's unit: fractions in percent."""
        return value * self.unit.scale


@dataclass(eq=False)
class Cell:
    """One row's number in one column.

    estimate: None if there is no record; `text` then gives the reason.
    paper: the printed value in the metric's own unit. tolerance: largest difference from it that counts as equal, in
    the table's unit; None if the row was trained at another scale. mark: BOLD, UNDERLINED or None. agreed: whether all
    samples of some run scored the same, so that its sampling error is `stats.proportion_floor`. scores: per-sample
    scores of all seeds, if every seed has them. settings: the distinct settings of the records, as JSON text. runs: ids
    of the records' runs, by seed. parts: for an average, the cells of its tasks.
    """

    estimate: Estimate | None = None
    text: str = MISSING
    paper: float | None = None
    tolerance: float | None = None
    mark: str | None = None
    agreed: bool = False
    scores: Scores | None = field(default=None, repr=False)
    settings: frozenset[str] = frozenset()
    runs: tuple[str, ...] = ()
    parts: list[Cell] = field(default_factory=list, repr=False)


@dataclass
class Tested:
    """The tests behind the marks of one group in one column.

    adjusted: p-values of all pairs of `rows`, from `significance.pairwise`. comparisons: of the pairs (i, j), j < i, as
    the value of rows[i] minus that of rows[j]. tests: names of the tests that gave the p-values.
    """

    rows: list[Row]
    adjusted: np.ndarray
    comparisons: dict[tuple[int, int], Comparison]
    tests: list[str]


@dataclass(frozen=True)
class Text:
    """A cell as it is written.

    paper: the printed number and, if it is an expectation, our difference from it. near: whether the difference is
    within the tolerance; None if none is stated.
    """

    value: str
    mark: str | None = None
    paper: str | None = None
    near: bool | None = None

    @property
    def width(self) -> int:
        """Characters of its widest line."""
        return max(len(self.value), len(self.paper or ""))


def cell_text(cell: Cell, column: Column, decimals: int) -> Text:
    """Write a cell: mean ± standard error, the interval for an average, and the paper's number."""
    value = cell.text
    if cell.estimate is not None:
        number_, stderr = cell.estimate.value, cell.estimate.stderr
        if column.unit.logarithmic and number_ >= HUGE:
            value = power_of_ten(number_, stderr)
        else:
            value = f"{column.shown(number_):.{decimals}f}"
            if stderr is not None:
                value += f" ± {column.shown(stderr):.{decimals}f}"
        if cell.parts and (interval := cell.estimate.interval):
            value += " [{}]".format(", ".join(f"{column.shown(x):.{decimals}f}" for x in interval))
    if cell.paper is None:
        return Text(value, cell.mark)
    paper, near = number(column.shown(cell.paper)), within(cell, column)
    if near is not None:
        paper += f", {deviation(cell, column):+.{decimals}f} {WITHIN if near else BEYOND}".replace("-", MINUS)
    return Text(value, cell.mark, paper, near)


def deviation(cell: Cell, column: Column) -> float:
    """Our number minus the paper's, in the table's unit."""
    return column.shown(cell.estimate.value) - column.shown(cell.paper)


def within(cell: Cell, column: Column) -> bool | None:
    """Whether our number is within the tolerance of the paper's; None without a tolerance or one of the numbers."""
    if cell.estimate is None or cell.paper is None or cell.tolerance is None:
        return None
    # A difference that equals the tolerance except for rounding in the sixteenth digit is within it.
    return abs(deviation(cell, column)) <= cell.tolerance * (1 + 1e-9)


def power_of_ten(value: float, stderr: float | None) -> str:
    """`1.5e8 ± 0.7e8`: both with the value's power of ten, and enough digits to show the error."""
    least = math.floor(math.log10(value))
    # Rounding may carry (9.97 to 10.0), which needs the next power.
    for power in (least, least + 1):
        decimals = max(1, power - math.floor(math.log10(stderr))) if stderr else 1
        texts = [f"{x / 10**power:.{decimals}f}" for x in (value, stderr) if x is not None]
        if float(texts[0]) < 10:
            break
    return " ± ".join(f"{text}e{power}" for text in texts)


def number(value: float) -> str:
    """Six significant digits; whole numbers in full."""
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def model_text(e: Estimate | None) -> str:
    """A number of the model table: `4,096`, `1.18M`, `45,800 ± 300` over seeds."""
    if e is None:
        return MISSING
    text = count(e.value)
    return text if e.stderr is None or e.stderr == 0 else f"{text} ± {count(e.stderr)}"


def count(value: float) -> str:
    """A count in at most four significant digits; whole numbers up to a million in full."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def unlabelled(row: Row) -> str:
    """A row's label without its preset."""
    return row.label.removesuffix(f"{AT}{row.preset}") if row.preset else row.label


def gap_text(found: Comparison, sign: int, column: Column, in_nats: bool, points: str = " points") -> str:
    """A difference times `sign` (1 or -1) with its interval: `+27.2 points [23.3, 31.1]`.

    in_nats: the scores that were compared are logarithms of the column's metric. points: the unit of a difference of
    percentages, empty where a heading says it.
    """
    gap = sign * column.shown(found.difference) or 0.0  # not -0.0
    unit = " nats" if in_nats else points if column.unit.percent else ""
    if found.low is None:
        return f"{gap:+.3g}{unit}".replace("-", MINUS)
    bounds = sorted(sign * column.shown(x) for x in (found.low, found.high))
    half = (bounds[1] - bounds[0]) / 2
    decimals = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3
    low, high = (f"{x:.{decimals}f}" for x in bounds)
    return f"{gap:+.{decimals}f}{unit} [{low}, {high}]".replace("-", MINUS)
