"""The comparison: mixers as rows, metrics as columns, every number with its error and the paper's beside it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.metrics import METRICS, Metric
from harness.published import TASK_NAMES, column_name, printed_values
from harness.records import SampleKey
from harness.stats import Estimate, Scores, estimate, proportion_floor, significantly_better
from harness.table_notes import notes

LAYOUTS = ("recurrent", "hybrid", "attention")
SUITES = ("language", "ruler", "retrieval", "recall", "throughput")
WIDEST = 12
"""A suite with more columns than this is shown as one table per metric."""

MISSING, NOT_FINITE = "–", "not finite"
BOLD, UNDERLINED = "bold", "underlined"

MODEL_COLUMNS = {
    "non_embedding_params": "non-embedding parameters",
    "state_floats_per_layer": "state floats/layer",
    "flops_per_token": "training FLOPs/token",
    "tokens_seen": "tokens seen",
    "tokens_per_second": "training tokens/s",
}
"""Columns of `runs_df` that the model table shows, and their headings."""

Samples = Mapping[SampleKey, Sequence[float]]


@dataclass(frozen=True)
class Row:
    layout: str
    label: str
    mixer: str


@dataclass(frozen=True)
class Column:
    """A metric of a task. stand_ins: why it is not the paper's, letters in `Table.stand_ins`."""

    suite: str
    task: str
    metric: str
    length: int | None
    stand_ins: tuple[str, ...] = ()
    decimals: int = 1

    @property
    def name(self) -> str:
        """As in CSV files and in the paper's: `piqa_acc`, `s_niah_2@4096`."""
        return column_name(self.task, self.metric, self.length)

    @property
    def unit(self) -> Metric:
        return METRICS[self.metric]

    @property
    def heading(self) -> str:
        """The paper's name of the task, or the task's own where the measurement is not the paper's."""
        paper = None if self.stand_ins else TASK_NAMES.get(self.task)
        parts = [paper or self.task]
        if not (paper and self.metric == "contains"):
            parts.append(self.unit.display)
        if self.length is not None:
            parts.append(f"@{self.length}")
        parts.append("↑" if self.unit.higher_is_better else "↓")
        return " ".join([*parts, *(f"[{letter}]" for letter in self.stand_ins)])

    def shown(self, value: float) -> float:
        """A value in the table's unit: fractions in percent."""
        return value * 100 if self.unit.percent else value


@dataclass
class Cell:
    """estimate: None where there is no record or one of them is not a number; `text` then says which.

    paper: the printed value in the metric's own unit. mark: BOLD, UNDERLINED or none. agreed: all samples scored
    the same, and the error is `stats.proportion_floor`.
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
    """A comparison. cells: by row and column, every pair present. model: by row, what a model is and cost."""

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[Row, Column], Cell]
    model: dict[Row, dict[str, str]]
    notes: list[str]

    def markdown(self) -> str:
        """One table a suite, the models first, notes below."""
        blocks = [] if not self.model else [self._block("model", [*MODEL_COLUMNS.values()], self._model_cells)]
        for title, columns in self._sections():
            blocks.append(
                self._block(
                    title,
                    [c.heading for c in columns],
                    lambda row, columns=columns: [markdown_cell(self.cells[row, c], c) for c in columns],
                )
            )
        blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks) + "\n"

    def csv(self) -> str:
        """One line a row, columns named as the paper's, `_se` and `_paper` beside them; the notes as # lines first.

        Fractions are in percent, as in the paper's tables. A cell is empty where there is no record.
        """
        out = io.StringIO()
        for note in self.notes:
            out.write(f"# {note}\n")
        printed = [c for c in self.columns if any(self.cells[row, c].paper is not None for row in self.rows)]
        head = ["layout", "label", "mixer", *(MODEL_COLUMNS if self.model else ())]
        for column in self.columns:
            head += [column.name, f"{column.name}_se", *([f"{column.name}_paper"] if column in printed else [])]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            model = self.model.get(row, {})
            line = [row.layout, row.label, row.mixer, *(model.get(key, "") for key in (MODEL_COLUMNS if self.model else ()))]
            for column in self.columns:
                line += csv_cell(self.cells[row, column], column, column in printed)
            writer.writerow(line)
        return out.getvalue()
