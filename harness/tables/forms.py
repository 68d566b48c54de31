"""A table and its forms: markdown, HTML and the terminal to read, LaTeX for a paper, CSV to work with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.records.stats import ALPHA, Estimate
from harness.tables.blocks import Block, divided, folded
from harness.tables.cells import (
    BOLD,
    MISSING,
    MODEL_COLUMNS,
    UNDERLINED,
    Cell,
    Column,
    Row,
    Tested,
    Text,
    cell_text,
    model_text,
    number,
)
from harness.tables.escaping import csv_cell, in_markdown
from harness.tables.html_form import html
from harness.tables.latex_form import latex
from harness.tables.terminal_form import terminal
from harness.tables.verdicts import MET, Verdict, tally, truth_text


@dataclass
class Table:
    """A comparison: rows, columns, cells and notes.

    cells: by row and column, every pair present. model: the model table, by row and key of MODEL_COLUMNS; empty without
    runs. reading: notes on how to read the numbers. facts: notes on what was measured. provenance: records, code and
    machine; LaTeX has them as comments. tested: the tests by group and column, if there were any. title: set for a
    table in the paper's layout. percent_digits: decimals of numbers in percent. summary: the answer in a few lines.
    truths: verdicts on what the results must meet. CSV has neither of them, and no notes.
    """

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[Row, Column], Cell] = field(default_factory=dict)
    model: dict[Row, dict[str, Estimate | None]] = field(default_factory=dict)
    reading: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    provenance: list[str] = field(default_factory=list)
    tested: dict[tuple[str, Column], Tested] = field(default_factory=dict)
    title: str | None = None
    percent_digits: int = 1
    summary: list[str] = field(default_factory=list)
    truths: list[Verdict] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Everything that a reader must know."""
        return [*self.reading, *self.facts]

    @property
    def marked(self) -> bool:
        """Whether any cell is marked."""
        return any(cell.mark for cell in self.cells.values())

    def is_empty(self, row: Row) -> bool:
        """Whether a row has no number, neither of its model nor measured, and no reason for that."""
        measured = any(self.cells[row, c].estimate or self.cells[row, c].text != MISSING for c in self.columns)
        return not measured and not any(self.model.get(row, {}).values())

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in their order."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    def sections(self) -> dict[str, list[Column]]:
        """Columns by suite. A table in the paper's layout is one section."""
        if self.title is not None:
            return {self.title: self.columns}
        return {suite: [c for c in self.columns if c.suite == suite] for suite in {c.suite: 0 for c in self.columns}}

    def decimals(self, column: Column) -> int:
        """Decimals of a column: about four significant digits of its smallest number."""
        if column.unit.percent:
            return self.percent_digits
        values = [abs(e.value) for row in self.rows if (e := self.cells[row, column].estimate)]
        smallest = min(values, default=1.0)
        return 3 if smallest < 1 else 2 if smallest < 100 else 1 if smallest < 1000 else 0

    def blocks(self) -> list[Block]:
        """The model table, then the sections, in blocks of a readable width without what does not differ.

        A table in the paper's layout is one block with all of the paper's columns, and has no model table.
        """
        found = []
        of_groups = {g: [row for row in rows if not self.is_empty(row)] for g, rows in self.groups().items()}
        of_groups = {g: rows for g, rows in of_groups.items() if rows}
        if self.model and self.title is None:
            shown = [key for key in MODEL_COLUMNS if any(self.model[row][key] for row in self.rows)]
            groups = {
                group: [(row, [Text(model_text(self.model[row][key])) for key in shown]) for row in rows]
                for group, rows in of_groups.items()
            }
            found.append(folded(Block("model", [("", MODEL_COLUMNS[key]) for key in shown], groups)))
        for title, columns in self.sections().items():
            decimals = {c: self.decimals(c) for c in columns}
            groups = {
                group: [(row, [cell_text(self.cells[row, c], c, decimals[c]) for c in columns]) for row in rows]
                for group, rows in of_groups.items()
            }
            block = Block(title, headings(columns), groups, [c.unit.display for c in columns])
            found += [block] if self.title is not None else divided(folded(block))
        return found

    def marks_note(self, bold: str, underlined: str) -> list[str]:
        """Note on the meaning of the marks, if there are any."""
        if not self.marked:
            return []
        among = "layout and preset" if any(row.preset for row in self.rows) else "layout"
        among = "group" if self.title else among
        tests = ", ".join(dict.fromkeys(test for found in self.tested.values() for test in found.tests))
        return [
            f"within a {among}, {bold}: the best and what is not significantly worse than it; {underlined}: the same "
            f"among the others; no mark where nothing is significantly worse (two-sided "
            f"{ALPHA:.0%}, Holm's correction over all pairs of a group in a column; {tests})"
        ]

    def markdown(self) -> str:
        """The summary, all blocks, then truths and notes. A comparison shows the layout in a column, a table in the
        paper's layout shows groups as rows."""
        parts = ["### In short\n\n" + bullets(map(in_markdown, self.summary))] if self.summary else []
        for block in self.blocks():
            shown = [f"### {in_markdown(block.caption)}"]
            shown += [markdown_block(block, self.title is None)] if block.headings else []
            parts += [*shown, *map(in_markdown, block.remarks)]
        parts += [markdown_truths(self.truths)] if self.truths else []
        notes = map(in_markdown, [*self.notes, *self.provenance])
        return "\n\n".join([*parts, bullets([*self.marks_note("**bold**", "<u>underlined</u>"), *notes])]) + "\n"

    def terminal(self, width: int) -> str:
        """For a terminal that is `width` characters wide: what `markdown` has but provenance and verdicts' numbers."""
        notes = [*self.marks_note("bold", "underlined"), *self.notes]
        return terminal(self.blocks(), self.summary, self.truths, notes, width)

    def html(self) -> str:
        """A fragment with its own style."""
        marks = self.marks_note("<b>bold</b>", "<u>underlined</u>")
        return html(self.blocks(), self.summary, self.truths, marks, [*self.notes, *self.provenance])

    def latex(self, label: str) -> str:
        """One float for each block, notes below the last one, provenance as comments."""
        beside = any(cell.paper is not None for cell in self.cells.values())
        notes = [*self.marks_note("bold", "underlined"), *["in italics: the paper's number"] * beside, *self.notes]
        notes += [f"{v.outcome}: {truth_text(v)}: {v.numbers}" for v in self.truths]
        return latex(self.blocks(), label, notes, self.provenance)

    def csv(self) -> str:
        """One line per row below one header, nothing else. Columns have the paper's names; fractions are in percent, as
        in its tables. A cell without a number is empty.

        Text that a spreadsheet would compute has an apostrophe in front.

        Each column is followed by its standard error `_se` and, if any row has them, the interval of an average `_low`
        and `_high`, `_paper` and `_tolerance`.
        """
        out = io.StringIO()
        model_keys = list(MODEL_COLUMNS) if self.model and self.title is None else []
        header = ["layout", "label", "mixer", *model_keys]
        fields: dict[Column, list[str]] = {}
        for c in self.columns:
            own = [self.cells[row, c] for row in self.rows]
            there = {"": True, "_se": True, "_low": any(x.parts for x in own), "_high": any(x.parts for x in own)}
            there |= {"_paper": any(x.paper is not None for x in own)}
            there |= {"_tolerance": any(x.tolerance is not None for x in own)}
            fields[c] = [name for name, shown in there.items() if shown]
            header += [csv_cell(c.name + name) for name in fields[c]]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        for row in self.rows:
            line = [csv_cell(text) for text in (row.layout, row.label, row.mixer)]
            line += [number(e.value) if (e := self.model[row][key]) else "" for key in model_keys]
            for c, names in fields.items():
                values = csv_values(self.cells[row, c], c)
                line += [values.get(name, "") for name in names]
            writer.writerow(line)
        return out.getvalue()


def headings(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """Headings of columns in two parts; a task that several suites have is named with its suite."""
    suites = {c.title: {other.suite for other in columns if other.title == c.title} for c in columns}
    return [(f"{c.suite} {c.title}" if len(suites[c.title]) > 1 else c.title, c.detail) for c in columns]


def bullets(lines: Iterable[str]) -> str:
    """Lines as a list in markdown."""
    return "\n".join(f"- {line}" for line in lines)


def markdown_block(block: Block, layouts: bool) -> str:
    """A block as a markdown table. layouts: show the layout in a column instead of groups as rows."""
    width = len(block.headings)
    headings = (in_markdown(f"{top} {detail}".strip()) for top, detail in block.headings)
    lines = [[*["layout"] * layouts, "mixer", *headings]]
    lines.append([*["---"] * (1 + layouts), *["---:"] * width])
    for group, rows in block.groups.items():
        if not layouts:
            lines.append([f"*{in_markdown(group)}*", *[""] * width])
        for row, texts in rows:
            lines.append([*[in_markdown(row.layout)] * layouts, in_markdown(row.label), *map(markdown_text, texts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_truths(truths: Sequence[Verdict]) -> str:
    """The section of verdicts in markdown."""
    lines = [["verdict", "truth", "numbers"], ["---"] * 3]
    for v in truths:
        lines.append(
            [f"**{v.outcome}**" if v.outcome != MET else MET, in_markdown(truth_text(v)), in_markdown(v.numbers)]
        )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### Truths\n\n{tally(truths)}\n\n{rows}"


def markdown_text(text: Text) -> str:
    """A cell in markdown."""
    value = in_markdown(text.value)
    value = {BOLD: f"**{value}**", UNDERLINED: f"<u>{value}</u>"}.get(text.mark, value)
    return value if text.paper is None else f"{value}<br>paper {in_markdown(text.paper)}"


def csv_values(cell: Cell, column: Column) -> dict[str, str]:
    """Values of a cell by suffix, in the table's unit; missing ones are left out."""
    values = {} if cell.paper is None else {"_paper": number(column.shown(cell.paper))}
    if cell.tolerance is not None:
        values["_tolerance"] = number(cell.tolerance)
    if cell.estimate is None:
        return values
    values[""] = number(column.shown(cell.estimate.value))
    if cell.estimate.stderr is not None:
        values["_se"] = number(column.shown(cell.estimate.stderr))
    if cell.parts and (interval := cell.estimate.interval):
        values |= dict(zip(("_low", "_high"), (number(column.shown(x)) for x in interval), strict=True))
    return values
