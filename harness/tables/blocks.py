"""Blocks: the parts of a table as every form writes them, cut to where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from textwrap import wrap

from harness.records.record import BASELINE
from harness.tables.cells import MISSING, Row, Text, unlabelled

WIDEST = 8
"""Columns of a block; a suite with more is divided by metric, and then evenly."""

HEADING = 12
"""Characters of a line of a heading."""


@dataclass(frozen=True)
class Block:
    """One table as every form writes it: headings in two parts, rows by group.

    metrics: one a column, by which a wide block is divided; empty for a block that is not. remarks: lines below it
    about columns and rows that are left out.
    """

    title: str
    headings: Sequence[tuple[str, str]]
    groups: dict[str, list[tuple[Row, list[Text]]]]
    metrics: Sequence[str] = ()
    remarks: list[str] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """The title and, if any number has an error, the meaning of ±, which is the same in every table."""
        errors = any("±" in text.value for _, texts in self.rows for text in texts)
        return f"{self.title}: mean ± standard error" if errors else self.title

    @property
    def rows(self) -> list[tuple[Row, list[Text]]]:
        """Rows of all groups with their texts."""
        return [row for own in self.groups.values() for row in own]

    @property
    def spans(self) -> list[tuple[str, int]]:
        """First parts of the headings with the number of adjacent columns that share each."""
        return [(top, len(list(own))) for top, own in groupby(self.headings, key=lambda heading: heading[0])]

    def with_columns(self, kept: Sequence[int], title: str | None = None) -> Block:
        """The block with some of its columns."""
        groups = {g: [(row, [texts[i] for i in kept]) for row, texts in own] for g, own in self.groups.items()}
        metrics = [self.metrics[i] for i in kept] if self.metrics else ()
        headings = [self.headings[i] for i in kept]
        return replace(self, title=title or self.title, headings=headings, groups=groups, metrics=metrics)

    def cut(self, width: int, gap: int) -> list[Block]:
        """Parts that are at most `width` characters wide, each with the rows' labels; the last has the remarks.

        gap: characters between two columns. A part has at least one column.
        """
        labels = max((len(unlabelled(row)) for row, _ in self.rows), default=0)
        parts: list[list[int]] = [[]]
        used = labels
        for i, (top, detail) in enumerate(self.headings):
            own = gap + max(
                [*(texts[i].width for _, texts in self.rows), *map(len, [*wrapped(top), *wrapped(detail)])], default=0
            )
            if parts[-1] and used + own > width:
                parts.append([])
                used = labels
            parts[-1].append(i)
            used += own
        blocks = [self.with_columns(part) for part in parts]
        return [*(replace(block, remarks=[]) for block in blocks[:-1]), blocks[-1]]


def wrapped(text: str) -> list[str]:
    """A heading in lines of about HEADING characters; words stay whole."""
    return wrap(text, HEADING, break_long_words=False, break_on_hyphens=False)


def folded(block: Block) -> Block:
    """A block without rows that have no numbers, and without columns in which nothing differs; remarks name them.

    A baseline's row without numbers is not named: a suite measures it or does not.
    """
    empty = [row for row, texts in block.rows if all(text == Text(MISSING) for text in texts)]
    groups = {g: [pair for pair in own if pair[0] not in empty] for g, own in block.groups.items()}
    block = replace(block, groups={g: own for g, own in groups.items() if own})
    remarks = list(without_numbers(empty))
    same = []
    for i in range(len(block.headings)):
        texts = {pair[1][i] for pair in block.rows if pair[0].layout != BASELINE or pair[1][i].value != MISSING}
        if len(block.rows) > 1 and len(texts) == 1:
            same.append((i, texts.pop()))
    if same:
        shown = (f"{' '.join(block.headings[i]).strip()} {text.value}" for i, text in same)
        remarks.append(f"the same in every row: {'; '.join(shown)}")
    kept = [i for i in range(len(block.headings)) if i not in dict(same)]
    return replace(block.with_columns(kept), remarks=remarks)


def without_numbers(empty: Sequence[Row], rows: Sequence[Row] = ()) -> Iterator[str]:
    """Remark that names models without numbers, by preset if several are compared. rows: all of the table's."""
    by_preset: dict[str | None, list[str]] = {}
    for row in empty:
        if row.layout != BASELINE:
            by_preset.setdefault(row.preset, []).append(f"{unlabelled(row)} ({row.layout})")
    texts = []
    for preset, own in by_preset.items():
        every = len(own) > 1 and len(own) == sum(row.preset == preset for row in rows)
        texts.append(f"{f'{preset}: ' if preset else ''}{'all' if every else ', '.join(own)}")
    if texts:
        yield f"no numbers yet: {'; '.join(texts)}"


def divided(block: Block) -> Iterator[Block]:
    """A block in parts of at most WIDEST columns: by metric, and what is still wider evenly."""
    if len(block.headings) <= WIDEST or not block.metrics:
        yield block
        return
    parts: list[tuple[str, list[int]]] = []
    for metric in dict.fromkeys(block.metrics):
        own = [i for i, name in enumerate(block.metrics) if name == metric]
        pieces = -(-len(own) // WIDEST)
        size = -(-len(own) // pieces)
        for piece in range(pieces):
            suffix = f" ({piece + 1} of {pieces})" if pieces > 1 else ""
            parts.append((f"{block.title}: {metric}{suffix}", own[piece * size : (piece + 1) * size]))
    for n, (title, own) in enumerate(parts):
        part = block.with_columns(own, title)
        yield part if n == len(parts) - 1 else replace(part, remarks=[])
