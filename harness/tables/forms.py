"""A table and its four forms: markdown and HTML to read, LaTeX for a paper, CSV to work with."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from harness.records.stats import ALPHA, Estimate
from harness.tables.cells import (
    BOLD,
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
from harness.tables.escaping import csv_cell, csv_note, in_html, in_latex, in_markdown, plain
from harness.tables.verdicts import MET, NOT_MET, Verdict, tally

WIDEST = 12
"""A suite with more columns than this is split into one table per metric."""

STYLE = """\
<style>
.mixerbench table { border-collapse: collapse; font: 13px/1.35 sans-serif; margin-bottom: 1em }
.mixerbench th, .mixerbench td { padding: 2px 7px; text-align: right; vertical-align: top; white-space: nowrap }
.mixerbench th { border-bottom: 1px solid #999 }
.mixerbench th:first-child, .mixerbench td:first-child { text-align: left }
.mixerbench .group { font-weight: normal; font-style: italic }
.mixerbench .paper { color: #444; font-size: 11px }
.mixerbench .near { background: #d5efe3 }
.mixerbench .far { background: #fbdcc8 }
.mixerbench li { font: 12px/1.4 sans-serif }
</style>"""
TRUTHS_STYLE = "<style>.mixerbench .truths td { text-align: left; white-space: normal }</style>"
TRUTHS_SECTION = re.compile(r'<section class="truths">.*?</section>', re.DOTALL)
"""The section of verdicts in HTML."""
PREAMBLE = "needs \\usepackage{booktabs} \\usepackage{graphicx} \\usepackage[table]{xcolor}"
NO_WIDER = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
"""Shrinks a table to the text width if it is wider."""


@dataclass(frozen=True)
class Block:
    """One table as every form writes it: headings in two parts, rows by group."""

    title: str
    headings: Sequence[tuple[str, str]]
    groups: dict[str, list[tuple[Row, list[Text]]]]


@dataclass
class Table:
    """A comparison: rows, columns, cells and notes.

    cells: by row and column, every pair present. model: the model table, by row and key of MODEL_COLUMNS; empty without
    runs. notes: what a reader must know. provenance: records, code and machine; LaTeX has them as comments. tested: the
    tests by group and column, if there were any. title: set for a table in the paper's layout. percent_digits: decimals
    of numbers in percent. truths: verdicts on what the results must meet; CSV has none of them.
    """

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[Row, Column], Cell] = field(default_factory=dict)
    model: dict[Row, dict[str, Estimate | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    provenance: list[str] = field(default_factory=list)
    tested: dict[tuple[str, Column], Tested] = field(default_factory=dict)
    title: str | None = None
    percent_digits: int = 1
    truths: list[Verdict] = field(default_factory=list)

    @property
    def marked(self) -> bool:
        """Whether any cell is marked."""
        return any(cell.mark for cell in self.cells.values())

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in their order."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    def sections(self) -> list[tuple[str, list[Column]]]:
        """(title, columns) by suite, and by metric for wide suites. A table in the paper's layout is one section."""
        if self.title is not None:
            return [(self.title, self.columns)]
        sections: dict[str, list[Column]] = {}
        for suite in dict.fromkeys(c.suite for c in self.columns):
            columns = [c for c in self.columns if c.suite == suite]
            for c in columns:
                title = suite if len(columns) <= WIDEST else f"{suite}: {c.unit.display}"
                sections.setdefault(title, []).append(c)
        return list(sections.items())

    def decimals(self, column: Column) -> int:
        """Decimals of a column: about four significant digits of its smallest number."""
        if column.unit.percent:
            return self.percent_digits
        values = [abs(e.value) for row in self.rows if (e := self.cells[row, column].estimate)]
        smallest = min(values, default=1.0)
        return 3 if smallest < 1 else 2 if smallest < 100 else 1 if smallest < 1000 else 0

    def blocks(self) -> list[Block]:
        """The model table, then one block per section. A table in the paper's layout has no model table."""
        found = []
        if self.model and self.title is None:
            shown = [key for key in MODEL_COLUMNS if any(self.model[row][key] for row in self.rows)]
            groups = {
                group: [(row, [Text(model_text(self.model[row][key])) for key in shown]) for row in rows]
                for group, rows in self.groups().items()
            }
            found.append(Block("model", [("", MODEL_COLUMNS[key]) for key in shown], groups))
        for title, columns in self.sections():
            decimals = {c: self.decimals(c) for c in columns}
            groups = {
                group: [(row, [cell_text(self.cells[row, c], c, decimals[c]) for c in columns]) for row in rows]
                for group, rows in self.groups().items()
            }
            suites = {c.title: {other.suite for other in columns if other.title == c.title} for c in columns}
            tops = [f"{c.suite} {c.title}" if len(suites[c.title]) > 1 else c.title for c in columns]
            found.append(Block(title, [(top, c.detail) for top, c in zip(tops, columns, strict=True)], groups))
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
        """All blocks, then truths and notes. A comparison shows the layout in a column, a table in the paper's layout
        shows groups as rows."""
        parts = [
            f"### {in_markdown(block.title)}\n\n" + markdown_block(block, self.title is None) for block in self.blocks()
        ]
        parts += [markdown_truths(self.truths)] if self.truths else []
        notes = [*self.marks_note("**bold**", "<u>underlined</u>"), *map(in_markdown, [*self.notes, *self.provenance])]
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"

    def html(self) -> str:
        """A fragment with its own style. Colour, like ≈ and ≠, says whether our number is within the tolerance of the
        paper's."""
        parts = [STYLE, '<div class="mixerbench">', *(html_block(block) for block in self.blocks())]
        parts += [*([html_truths(self.truths)] if self.truths else []), "<ul>"]
        parts += [f"<li>{note}</li>" for note in self.marks_note("<b>bold</b>", "<u>underlined</u>")]
        parts += [f"<li>{in_html(note)}</li>" for note in [*self.notes, *self.provenance]]
        return "\n".join([*parts, "</ul>", "</div>"]) + "\n"

    def latex(self, label: str) -> str:
        """One float per block, notes below the last one, provenance as comments. The first float is `tab:<label>`."""
        head = [f"% {PREAMBLE}", *(f"% {plain(note)}" for note in self.provenance)]
        found = self.blocks()
        beside = any(cell.paper is not None for cell in self.cells.values())
        notes = [*self.marks_note("bold", "underlined"), *["in italics: the paper's number"] * beside, *self.notes]
        notes += [f"{v.outcome}: {truth_text(v)}: {v.numbers}" for v in self.truths]
        floats = [
            latex_block(block, label if i == 0 else f"{label}-{i + 1}", notes if i == len(found) - 1 else [])
            for i, block in enumerate(found)
        ]
        return "\n".join([*head, *floats]) + "\n"

    def csv(self) -> str:
        """One line per row, notes first, after #. Columns have the paper's names; fractions are in percent, as in its
        tables. A cell without a number is empty.

        Text that a spreadsheet would compute has an apostrophe in front.

        Each column is followed by its standard error `_se` and, if any row has them, the interval of an average `_low`
        and `_high`, `_paper` and `_tolerance`.
        """
        out = io.StringIO()
        for note in [*self.notes, *self.provenance]:
            out.write(csv_note(note) + "\n")
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


def html_truths(truths: Sequence[Verdict]) -> str:
    """The section of verdicts in HTML, which `TRUTHS_SECTION` finds again."""
    lines = ['<section class="truths">', TRUTHS_STYLE, "<h3>Truths</h3>", f"<p>{tally(truths)}</p>", "<table>"]
    lines.append("<tr><th>verdict</th><th>truth</th><th>numbers</th></tr>")
    for v in truths:
        side = {MET: ' class="near"', NOT_MET: ' class="far"'}.get(v.outcome, "")
        cells = "".join(f"<td>{in_html(text)}</td>" for text in (truth_text(v), v.numbers))
        lines.append(f"<tr><td{side}>{v.outcome}</td>{cells}</tr>")
    return "\n".join([*lines, "</table>", "</section>"])


def truth_text(verdict: Verdict) -> str:
    """A truth with its source."""
    return f"{verdict.truth} ({verdict.why})" if verdict.why else verdict.truth


def markdown_text(text: Text) -> str:
    """A cell in markdown."""
    value = in_markdown(text.value)
    value = {BOLD: f"**{value}**", UNDERLINED: f"<u>{value}</u>"}.get(text.mark, value)
    return value if text.paper is None else f"{value}<br>paper {in_markdown(text.paper)}"


def html_block(block: Block) -> str:
    """A block as an HTML table."""
    lines = [f"<h3>{in_html(block.title)}</h3>", "<table>"]
    tops = "".join(f'<th colspan="{n}">{in_html(top)}</th>' for top, n in spans(block))
    details = "".join(f"<th>{in_html(detail)}</th>" for _, detail in block.headings)
    lines += [f"<tr><th></th>{tops}</tr>", f"<tr><th>mixer</th>{details}</tr>"]
    for group, rows in block.groups.items():
        lines.append(f'<tr><td class="group" colspan="{len(block.headings) + 1}">{in_html(group)}</td></tr>')
        for row, texts in rows:
            lines.append(f"<tr><td>{in_html(row.label)}</td>{''.join(map(html_text, texts))}</tr>")
    return "\n".join([*lines, "</table>"])


def html_text(text: Text) -> str:
    """A cell in HTML."""
    value = in_html(text.value)
    value = {BOLD: f"<b>{value}</b>", UNDERLINED: f"<u>{value}</u>"}.get(text.mark, value)
    if text.paper is not None:
        value += f'<br><span class="paper">paper {in_html(text.paper)}</span>'
    side = {None: "", True: ' class="near"', False: ' class="far"'}[text.near]
    return f"<td{side}>{value}</td>"


def spans(block: Block) -> list[tuple[str, int]]:
    """First parts of the headings with the number of adjacent columns that share each."""
    return [(top, len(list(own))) for top, own in groupby(block.headings, key=lambda heading: heading[0])]


def latex_block(block: Block, label: str, notes: list[str]) -> str:
    """A block as a LaTeX float."""
    width = len(block.headings)
    tops, rules, at = [], [], 2
    for top, n in spans(block):
        tops.append(f"\\multicolumn{{{n}}}{{c}}{{{in_latex(top)}}}")
        rules += [f"\\cmidrule(lr){{{at}-{at + n - 1}}}"] if n > 1 else []
        at += n
    lines = [
        *("\\begin{table}[tp]", "\\centering", f"\\caption{{{in_latex(block.title)}}}", f"\\label{{tab:{label}}}"),
        *(
            "\\footnotesize",
            "\\setlength{\\tabcolsep}{3pt}",
            NO_WIDER,
            f"\\begin{{tabular}}{{l{'r' * width}}}",
            "\\toprule",
        ),
        *([f" & {' & '.join(tops)} \\\\", *rules] if any(top for top, _ in block.headings) else []),
        f"mixer & {' & '.join(in_latex(detail) for _, detail in block.headings)} \\\\",
    ]
    for group, rows in block.groups.items():
        lines += ["\\midrule", f"\\multicolumn{{{width + 1}}}{{l}}{{\\textit{{{in_latex(group)}}}}} \\\\"]
        lines += [f"{in_latex(row.label)} & {' & '.join(map(latex_text, texts))} \\\\" for row, texts in rows]
    lines += ["\\bottomrule", "\\end{tabular}}"]
    if notes:
        lines += ["\\par\\medskip", "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright"]
        lines += [f"{in_latex(note)}.\\par" for note in notes] + ["\\end{minipage}"]
    return "\n".join([*lines, "\\end{table}"])


def latex_text(text: Text) -> str:
    """A cell in LaTeX."""
    value = in_latex(text.value)
    value = {BOLD: f"\\textbf{{{value}}}", UNDERLINED: f"\\underline{{{value}}}"}.get(text.mark, value)
    if text.paper is not None:
        value = f"\\shortstack[r]{{\\strut {value}\\\\{{\\scriptsize\\itshape {in_latex(text.paper)}}}}}"
    side = {None: "", True: "\\cellcolor{teal!15}", False: "\\cellcolor{orange!25}"}[text.near]
    return side + value


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
