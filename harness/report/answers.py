"""Questions with every model's answer, those on which models disagree first, as a part of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.records.answers import Answer
from harness.records.record import SampleKey
from harness.tables.cells import Column, Row, unlabelled
from harness.tables.escaping import in_html
from harness.tables.forms import Table

MOST_ITEMS = 8
"""Items of a column that are shown, of those whose texts were kept."""
Answers = Mapping[SampleKey, tuple[Answer, ...]]


@dataclass(frozen=True)
class Said:
    """One model's answer to an item, in its first seed, and the score that it got."""

    row: Row
    text: str | None
    score: float


@dataclass(frozen=True)
class Item:
    """An item that at least one model was asked."""

    number: int
    asked: str
    expected: str
    said: tuple[Said, ...]

    @property
    def spread(self) -> float:
        """The standard deviation of the models' scores: 0 if all got the same."""
        return float(np.std([each.score for each in self.said]))

    @property
    def outcome(self) -> str:
        """Who was right, in words."""
        right = sum(each.score == 1 for each in self.said)
        if any(each.score not in (0, 1) for each in self.said):
            return f"mean score {np.mean([each.score for each in self.said]):.2g}"
        return f"{right} of {len(self.said)} models right"


def items(table: Table, column: Column, answers: Answers) -> list[Item]:
    """The items of a column whose texts were kept, those on which models disagree most first.

    A model is left out of an item if it was asked something else.
    """
    found: dict[int, Item] = {}
    for row in table.rows:
        cell = table.cells[row, column]
        if cell.scores is None:
            continue
        own = answers.get((cell.runs[0], *column.key), ())
        for number, (answer, score) in enumerate(zip(own, cell.scores[0], strict=False)):
            item = found.setdefault(number, Item(number, answer.asked, answer.expected, ()))
            if (item.asked, item.expected) == (answer.asked, answer.expected):
                said = (*item.said, Said(row, answer.said, float(score)))
                found[number] = Item(number, item.asked, item.expected, said)
    return sorted(found.values(), key=lambda item: (-item.spread, item.number))


def questions(table: Table, answers: Answers) -> str:
    """For each column with texts, some items: what was asked, what is right, what each model said.

    Empty if no texts were kept, as in collections of earlier versions.
    """
    parts = []
    for column in table.columns:
        if found := items(table, column, answers):
            apart = sum(item.spread > 0 for item in found)
            said = f"{column.words}: models disagree on {apart} of the first {len(found)} items"
            shown = "".join(map(_item, found[:MOST_ITEMS]))
            parts.append(f"<details><summary>{in_html(said)}</summary>{shown}</details>")
    return "\n".join(parts)


def _item(item: Item) -> str:
    title = f"Item {item.number}: {item.outcome}"
    asked = "\n".join(map(in_html, item.asked.splitlines()))
    rows = "".join(
        f'<tr><th scope="row">{in_html(_name(each.row))}</th><td>{_text(each)}</td><td>{_verdict(each.score)}</td></tr>'
        for each in item.said
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("model", "answer", "score"))
    return (
        f'<div class="item"><h3>{in_html(title)}</h3><pre class="asked" tabindex="0">{asked}</pre>'
        f'<div class="wide" tabindex="0"><table class="plain said"><caption>Right answer: {in_html(item.expected)}'
        f"</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _name(row: Row) -> str:
    return ", ".join(filter(None, (unlabelled(row), row.layout, row.preset)))


def _text(said: Said) -> str:
    return "something else" if said.text is None else in_html(said.text) or "nothing"


def _verdict(score: float) -> str:
    return {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.2g}")
