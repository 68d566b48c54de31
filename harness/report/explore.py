"""Numbers to sort and filter, one table a suite, and scores of the items on which models disagree, for the report."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.tables.cells import Cell, Column, Row, cell_text, unlabelled
from harness.tables.escaping import in_html
from harness.tables.forms import Table

LIBRARY = Path(__file__).parent / "datatables"
"""DataTables (MIT), as its authors publish it, with its licence."""
START = """
for (const table of document.querySelectorAll("table.sortable"))
  new DataTable(table, {paging: false, info: false, autoWidth: false, order: [], language: {search: "Filter rows"}});
"""
MOST_ITEMS = 30
"""Items of a column that are shown, of those on which models disagree."""


def scripts() -> tuple[str, str]:
    """The page's scripts as HTML, and their hashes as sources of a content security policy."""
    licence = " ".join((LIBRARY / "LICENSE").read_text(encoding="utf-8").split())
    codes = [f"/* {licence} */\n" + (LIBRARY / "dataTables.min.js").read_text(encoding="utf-8"), START]
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in codes)
    return "".join(f"<script>{code}</script>" for code in codes), " ".join(f"'sha256-{d}'" for d in digests)


def suites(table: Table) -> str:
    """A table for each suite, one row a model, which a reader may sort by any column and filter by any text.

    Without scripts it is a table all the same.
    """
    return "\n".join(_suite(table, suite, columns) for suite, columns in table.sections().items())


def _suite(table: Table, suite: str, columns: list[Column]) -> str:
    presets = any(row.preset for row in table.rows)
    head = ["model", "layout", *["scale"] * presets, *(f"{c.title} {c.detail}" for c in columns)]
    decimals = {c: table.decimals(c) for c in columns}
    rows = []
    for row in table.rows:
        cells = [table.cells[row, c] for c in columns]
        if any(cell.estimate for cell in cells):
            names = [row.layout, *[row.preset or "–"] * presets]
            texts = [f"<td>{in_html(name)}</td>" for name in names]
            texts += [_number(cell, c, decimals[c]) for cell, c in zip(cells, columns, strict=True)]
            rows.append(f'<tr><th scope="row">{in_html(unlabelled(row))}</th>{"".join(texts)}</tr>')
    return _table(f"{suite}: mean ± standard error", head, rows)


def _number(cell: Cell, column: Column, decimals: int) -> str:
    """A cell that is sorted by its number, whatever its text."""
    if cell.estimate is None:
        return f"<td>{in_html(cell.text)}</td>"
    order = f"{column.shown(cell.estimate.value):.9g}"
    return f'<td data-order="{order}">{in_html(cell_text(cell, column, decimals).value)}</td>'


def _table(caption: str, head: list[str], rows: list[str]) -> str:
    headings = "".join(f'<th scope="col">{in_html(text)}</th>' for text in head)
    return (
        f'<div class="wide" tabindex="0"><table class="plain sortable"><caption>{in_html(caption)}</caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def items(table: Table) -> str:
    """For each column whose scores were kept, the items on which models disagree most, with every model's score.

    A score is a mean over seeds. Empty if no two models were scored on the same items of a column.
    """
    return "\n".join(filter(None, (_items(table, column) for column in table.columns)))


def _items(table: Table, column: Column) -> str:
    scored = list(_scored(table, column))
    if len(scored) < 2:
        return ""
    scores = np.array([own for _, own in scored])  # [models, items]
    spread = scores.std(axis=0)
    order = [int(i) for i in np.argsort(-spread, kind="stable") if spread[i] > 0]
    if not order:
        return ""
    rows = []
    for i in order[:MOST_ITEMS]:
        cells = "".join(f"<td>{own[i]:.3g}</td>" for own in scores)
        rows.append(f'<tr><th scope="row">{i}</th>{cells}</tr>')
    said = f"{column.words}: {len(order):,} of {scores.shape[1]:,} items told models apart"
    if np.isin(scores, (0.0, 1.0)).all():
        every, none = int(scores.all(axis=0).sum()), int((~scores.any(axis=0)).sum())
        said += f"; all score 1 on {every:,} and 0 on {none:,}"
    shown = f"the {MOST_ITEMS} that did so most" if len(order) > MOST_ITEMS else "all that did so"
    head = ["item", *(f"{row.label} ({row.layout})" for row, _ in scored)]
    body = _table(f"{column.words}, score by item: {shown}", head, rows)
    return f'<details class="scores"><summary>{in_html(said)}</summary>{body}</details>'


def _scored(table: Table, column: Column) -> Iterator[tuple[Row, np.ndarray]]:
    """Rows with their scores by item, meaned over seeds, of those that were scored on the items of the first."""
    first: Cell | None = None
    for row in table.rows:
        cell = table.cells[row, column]
        if cell.scores is None or len(cell.settings) != 1:
            continue
        first = first or cell
        own = np.mean(cell.scores, axis=0)
        if cell.settings == first.settings and len(own) == len(first.scores[0]):
            yield row, own
