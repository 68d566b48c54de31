"""Tables in a terminal: as many columns side by side as fit."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from harness.tables.blocks import Block, wrapped
from harness.tables.cells import BOLD, UNDERLINED, Text, unlabelled
from harness.tables.escaping import plain
from harness.tables.verdicts import MET, Verdict, tally, truth_text

GAP = 2


def terminal(
    blocks: Sequence[Block], summary: Sequence[str], truths: Sequence[Verdict], notes: Sequence[str], width: int
) -> str:
    """A table for a terminal that is `width` characters wide, with its escape sequences. All text is data."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False, emoji=False)
    for line in summary:
        bullet(console, line)
    for block in blocks:
        console.print()
        console.print(RichText(plain(block.caption), "bold"))
        for n, part in enumerate(block.cut(width, GAP) if block.headings else []):
            if n:
                console.print()
            console.print(rich_table(part))
        for remark in block.remarks:
            bullet(console, remark)
    if truths:
        console.print()
        console.print(RichText(f"truths: {tally(truths)}", "bold"))
        for verdict in truths:
            bullet(console, f"{verdict.outcome}: {truth_text(verdict)}", "" if verdict.outcome == MET else "bold")
    console.print()
    for note in notes:
        bullet(console, note)
    return console.file.getvalue()


def bullet(console: Console, text: str, style: str = "") -> None:
    """Print a line with a hanging indent."""
    item = RichTable.grid(padding=(0, 1))
    item.add_row("-", RichText(plain(text), style))
    console.print(item)


def rich_table(block: Block) -> RichTable:
    """A block that fits as it is."""
    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("mixer", no_wrap=True)
    for top, detail in block.headings:
        heading = "\n".join(map(plain, [*wrapped(top), *wrapped(detail)]))
        table.add_column(RichText(heading), justify="right", no_wrap=True)
    for group, rows in block.groups.items():
        table.add_row(RichText(plain(group), "italic"))
        for row, texts in rows:
            table.add_row(RichText(plain(unlabelled(row))), *map(rich_text, texts))
    return table


def rich_text(text: Text) -> RichText:
    """A cell; the paper's number stands below ours."""
    shown = RichText(plain(text.value), {BOLD: "bold", UNDERLINED: "underline"}.get(text.mark, ""))
    if text.paper is not None:
        shown.append(f"\npaper {plain(text.paper)}", "dim")
    return shown
