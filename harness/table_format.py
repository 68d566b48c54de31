"""A comparison as rows, columns and cells, and its two forms: markdown to read, CSV to work with."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.metrics import METRICS, Metric
from harness.published import TASK_NAMES, column_name
from harness.stats import Estimate, Scores

WIDEST = 12
"""A suite with more columns than this is shown as one table per metric."""

BASELINE = "baseline"
"""Layout of rows that no model made, such as token frequencies: nothing of theirs is said of the models."""

PERPLEXITIES, HUGE = ("word_perplexity", "perplexity"), 1e5
"""From HUGE on, a perplexity is shown in powers of ten: those of models that have hardly learnt are that large."""

MISSING, NOT_FINITE = "–", "not finite"
BOLD, UNDERLINED = "bold", "underlined"

MARKS = (
    "**bold**: the best and what is not significantly worse than it; <u>underlined</u>: the same "
    "among the others; no mark where nothing is significantly worse (t-test, two-sided 5%, no correction for the "
    "number of comparisons; item by item where per-sample scores on the same items are kept)"
)

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
    """preset: where several are compared, else None; the label then ends with it."""

    layout: str
    label: str
    mixer: str
    preset: str | None = None


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
    def heading(self) -> str:
        """The paper's name of the task, or the task's own where the measurement is not the paper's."""
        paper = None if self.stand_ins else TASK_NAMES.get(self.task)
        parts = [paper or self.task]
        if not (paper and self.metric == "contains"):
            parts.append(self.unit.display)
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
    paper: the printed value in the metric's own unit. agreed: all samples of a run scored the same, and its
    sampling error is `stats.proportion_floor`. scores: per-sample scores of all seeds, where every seed has them.
    settings: of the records, one text a setting.
    """

    estimate: Estimate | None = None
    text: str = MISSING
    paper: float | None = None
    mark: str | None = None
    agreed: bool = False
    scores: Scores | None = field(default=None, repr=False)
    settings: frozenset[str] = frozenset()


@dataclass
class Table:
    """cells: by row and column, every pair present. model: by row and key of MODEL_COLUMNS; empty without runs."""

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[Row, Column], Cell]
    model: dict[Row, dict[str, Estimate | None]]
    notes: list[str]

    def markdown(self) -> str:
        """The models, then one table a suite, then the notes."""
        blocks = []
        if self.model:
            shown = [key for key in MODEL_COLUMNS if any(self.model[row][key] for row in self.rows)]
            cells = [[model_text(self.model[row][key]) for key in shown] for row in self.rows]
            blocks.append(self._block("model", [MODEL_COLUMNS[key] for key in shown], cells))
        for title, columns in self.sections():
            decimals = {c: self.decimals(c) for c in columns}
            cells = [[cell_text(self.cells[row, c], c, decimals[c]) for c in columns] for row in self.rows]
            blocks.append(self._block(title, [c.heading for c in columns], cells))
        marked = any(cell.mark for cell in self.cells.values())
        group = "layout and preset" if any(row.preset for row in self.rows) else "layout"
        marks = [f"within a {group}, {MARKS}"] if marked else []
        blocks.append("\n".join(f"- {escape(note)}" for note in [*marks, *self.notes]))
        return "\n\n".join(blocks) + "\n"

    def csv(self) -> str:
        """One line a row; columns named as the paper's, with `_se` and `_paper` beside them; notes first, after #.

        Fractions are in percent, as in the paper's tables. A cell without a record is empty.
        """
        out = io.StringIO()
        for note in self.notes:
            out.write(f"# {note}\n")
        printed = {c for c in self.columns if any(self.cells[row, c].paper is not None for row in self.rows)}
        model_keys = list(MODEL_COLUMNS) if self.model else []
        header = ["layout", "label", "mixer", *model_keys]
        for c in self.columns:
            header += [c.name, f"{c.name}_se"] + ([f"{c.name}_paper"] if c in printed else [])
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        for row in self.rows:
            line = [row.layout, row.label, row.mixer]
            line += [number(e.value) if (e := self.model[row][key]) else "" for key in model_keys]
            for c in self.columns:
                line += csv_cells(self.cells[row, c], c)[: 3 if c in printed else 2]
            writer.writerow(line)
        return out.getvalue()

    def sections(self) -> list[tuple[str, list[Column]]]:
        """Columns by suite, wide suites by metric as well, with their titles."""
        sections: dict[str, list[Column]] = {}
        for suite in dict.fromkeys(c.suite for c in self.columns):
            columns = [c for c in self.columns if c.suite == suite]
            for c in columns:
                title = suite if len(columns) <= WIDEST else f"{suite}: {c.unit.display}"
                sections.setdefault(title, []).append(c)
        return list(sections.items())

    def decimals(self, column: Column) -> int:
        """Digits after the point, the same down a column: about four figures of its smallest number."""
        if column.unit.percent:
            return 1
        values = [abs(e.value) for row in self.rows if (e := self.cells[row, column].estimate)]
        smallest = min(values, default=1.0)
        return 3 if smallest < 1 else 2 if smallest < 100 else 1 if smallest < 1000 else 0

    def _block(self, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
        lines = [
            ["layout", "mixer", *headings],
            ["---", "---", *["---:"] * len(headings)],
            *([row.layout, row.label, *texts] for row, texts in zip(self.rows, cells, strict=True)),
        ]
        return f"### {title}\n\n" + "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines)


def escape(text: str) -> str:
    return text.replace("|", "\\|")


def cell_text(cell: Cell, column: Column, decimals: int) -> str:
    """mean ± standard error, marked, and the paper's number on a second line."""
    text = cell.text
    if cell.estimate is not None:
        value, stderr = cell.estimate.value, cell.estimate.stderr
        if column.metric in PERPLEXITIES and value >= HUGE:
            text = power_of_ten(value, stderr)
        else:
            text = f"{column.shown(value):.{decimals}f}"
            if stderr is not None:
                text += f" ± {column.shown(stderr):.{decimals}f}"
        if cell.mark == BOLD:
            text = f"**{text}**"
        elif cell.mark == UNDERLINED:
            text = f"<u>{text}</u>"
    return text if cell.paper is None else f"{text}<br>paper {number(column.shown(cell.paper))}"


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


def csv_cells(cell: Cell, column: Column) -> list[str]:
    """Value, standard error and the paper's value, in the table's unit; empty where there is none."""
    paper = "" if cell.paper is None else number(column.shown(cell.paper))
    if cell.estimate is None:
        return ["" if cell.text == MISSING else cell.text, "", paper]
    stderr = cell.estimate.stderr
    return [number(column.shown(cell.estimate.value)), "" if stderr is None else number(column.shown(stderr)), paper]


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
