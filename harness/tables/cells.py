"""Rows, columns and cells of a comparison, and how its numbers are written. `table_forms.py` has the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from harness.records.metrics import METRICS, Metric
from harness.records.published import TASK_NAMES, column_name
from harness.records.stats import Estimate, Scores

BASELINE = "baseline"
"""Layout of rows that no model made, such as token frequencies: nothing of theirs is said of the models."""

PERPLEXITIES, HUGE = ("word_perplexity", "perplexity"), 1e5
"""From HUGE on, a perplexity is shown in powers of ten: those of models that have hardly learnt are that large."""

MISSING, NOT_FINITE, FAILED, UNREADABLE = "–", "not finite", "failed", "unreadable"
BOLD, UNDERLINED = "bold", "underlined"
WITHIN, BEYOND = "≈", "≠"

MODEL_COLUMNS = {
    "non_embedding_params": "non-embedding parameters",
    "state_floats_per_layer": "state floats/layer",
    "flops_per_token": "training FLOPs/token",
    "tokens_seen": "tokens seen",
    "tokens_per_second": "training tokens/s ↑",
}
"""What the model table shows of a run, and its headings."""


@dataclass(frozen=True)
class Row:
    """preset: where several are compared, else None; the label then ends with it. group: the rows that it is marked
    among; a table of the paper shows it as a heading."""

    layout: str
    label: str
    mixer: str
    preset: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Column:
    """A metric of a task.

    stand_ins: letters of the notes that say why it is not the paper's measurement. length_unit: what `length` counts,
    tokens if None.
    """

    suite: str
    task: str
    metric: str
    length: int | None
    stand_ins: tuple[str, ...] = ()
    length_unit: str | None = None

    @property
    def key(self) -> tuple[str, str, str, int | None]:
        return self.suite, self.task, self.metric, self.length

    @property
    def name(self) -> str:
        """As in CSV files, the paper's among them: `piqa_acc`, `s_niah_2@4096`."""
        return column_name(self.task, self.metric, self.length)

    @property
    def unit(self) -> Metric:
        return METRICS[self.metric]

    @property
    def short_unit(self) -> str:
        """What a length is followed by: ` pairs` of `key-value pairs`, nothing for tokens."""
        return f" {self.length_unit.split()[-1]}" if self.length_unit else ""

    @property
    def title(self) -> str:
        """The paper's name of the task, or the task's own where the measurement is not the paper's."""
        return self.task if self.stand_ins else TASK_NAMES.get(self.task, self.task)

    @property
    def detail(self) -> str:
        """What stands behind the title: metric, length, direction, stand-ins."""
        parts = [] if self.title != self.task and self.metric == "contains" else [self.unit.display]
        if self.length is not None:
            parts.append(f"@{self.length}{self.short_unit}")
        parts.append("↑" if self.unit.higher_is_better else "↓")
        return " ".join([*parts, *(f"[{letter}]" for letter in self.stand_ins)])

    def shown(self, value: float) -> float:
        """A value in the table's unit: fractions in percent."""
        return value * 100 if self.unit.percent else value


@dataclass(eq=False)
class Cell:
    """One row's number in one column.

    estimate: None where there is no record or one of them is not a number; `text` then says which.
    paper: the printed value in the metric's own unit. tolerance: how near it should be met, in the unit that tables
    print; None where it was measured at another scale. agreed: all samples of a run scored the same, and its sampling
    error is `stats.proportion_floor`. scores: per-sample scores of all seeds, where every seed has them. settings: of
    the records, one text a setting. parts: of an average, the cells of its tasks.
    """

    estimate: Estimate | None = None
    text: str = MISSING
    paper: float | None = None
    tolerance: float | None = None
    mark: str | None = None
    agreed: bool = False
    scores: Scores | None = field(default=None, repr=False)
    settings: frozenset[str] = frozenset()
    parts: list[Cell] = field(default_factory=list, repr=False)


@dataclass
class Tested:
    """The rows of a group that a column compares, their p-values by pair as `significance.pairwise` gives them, and the
    tests that gave them."""

    rows: list[Row]
    adjusted: np.ndarray
    tests: list[str]


@dataclass(frozen=True)
class Text:
    """A cell as it is written. paper: the printed number, and ours less it where that is an expectation. near: whether
    the two lie within the tolerance; None where none is stated."""

    value: str
    mark: str | None = None
    paper: str | None = None
    near: bool | None = None


def cell_text(cell: Cell, column: Column, decimals: int) -> Text:
    """mean ± standard error, of an average its interval, and the paper's number."""
    value = cell.text
    if cell.estimate is not None:
        number_, stderr = cell.estimate.value, cell.estimate.stderr
        if column.metric in PERPLEXITIES and number_ >= HUGE:
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
        paper += f", {deviation(cell, column):+.{decimals}f} {WITHIN if near else BEYOND}".replace("-", "−")
    return Text(value, cell.mark, paper, near)


def deviation(cell: Cell, column: Column) -> float:
    """Ours less the paper's, in the table's unit."""
    return column.shown(cell.estimate.value) - column.shown(cell.paper)


def within(cell: Cell, column: Column) -> bool | None:
    """Whether ours lies within the tolerance of the paper's; None where there is none or nothing to compare."""
    if cell.estimate is None or cell.paper is None or cell.tolerance is None:
        return None
    # A difference equal to the tolerance, but for rounding in the sixteenth figure, is within it.
    return abs(deviation(cell, column)) <= cell.tolerance * (1 + 1e-9)


def power_of_ten(value: float, stderr: float | None) -> str:
    """1.5e8 ± 0.7e8: both with the power of the value, and as many figures as the error needs to be seen."""
    least = math.floor(math.log10(value))
    # Rounding may carry, 9.97 to 10.0, and the power then is the next.
    for power in (least, least + 1):
        decimals = max(1, power - math.floor(math.log10(stderr))) if stderr else 1
        texts = [f"{x / 10**power:.{decimals}f}" for x in (value, stderr) if x is not None]
        if float(texts[0]) < 10:
            break
    return " ± ".join(f"{text}e{power}" for text in texts)


def number(value: float) -> str:
    """Six figures, whole numbers in full."""
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def model_text(e: Estimate | None) -> str:
    """A count to read: 4,096; 1.18M; 45.8k ± 0.3k over seeds."""
    if e is None:
        return MISSING
    text = count(e.value)
    return text if e.stderr is None or e.stderr == 0 else f"{text} ± {count(e.stderr)}"


def count(value: float) -> str:
    """A count in at most four figures, exact up to a million where it is whole."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
