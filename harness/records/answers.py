"""Answers: a model's own words on the first items of a measurement, kept at bounded size so that a reader can look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_ANSWERS = 20
"""Items of a measurement whose texts are kept: the first ones, whatever their scores."""
ASKED, SAID = 600, 200
"""Characters of a question, and of an answer, that are kept. What is longer loses its middle."""
GAP = " […] "


@dataclass(frozen=True)
class Answer:
    """One item: the question as the model read it, the answer that is right, and the model's.

    said: None if all that is known is that it is not the right one. Longer texts are cut as they are made.
    """

    asked: str
    expected: str
    said: str | None

    def __post_init__(self) -> None:
        for name, most in (("asked", ASKED), ("expected", SAID), ("said", SAID)):
            text = getattr(self, name)
            if not isinstance(text, str) and not (name == "said" and text is None):
                raise ValueError(f"answers: {name}: {text!r} is no text; give a string")
            object.__setattr__(self, name, None if text is None else shortened(text, most))


def shortened(text: str, most: int) -> str:
    """A text in at most `most` characters: its beginning and its end, where a question stands, around a gap."""
    if len(text) <= most:
        return text
    head = (most - len(GAP)) // 3
    return text[:head] + GAP + text[head + len(GAP) - most :]


def kept(asked: Iterable[str], expected: Iterable[str], said: Iterable[str | None]) -> tuple[Answer, ...]:
    """The first MOST_ANSWERS items of a measurement."""
    texts = zip(asked, expected, said, strict=False)
    return tuple(Answer(*each) for each, _ in zip(texts, range(MOST_ANSWERS), strict=False))


Key = tuple[str, str, str, str, int | None]


def grouped(answers: dict[Key, tuple[Answer, ...]]) -> list[dict[str, Any]]:
    """Answers by measurement and question, as a collection keeps them: a question once, with every run's answer.

    Each group has suite, task, metric, length, `asked`, pairs of a question and its right answer, and `said`, the
    answers by run.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for (run, suite, task, metric, length), own in answers.items():
        asked = tuple((each.asked, each.expected) for each in own)
        names = {"suite": suite, "task": task, "metric": metric, "length": length}
        group = groups.setdefault((suite, task, metric, length, asked), {**names, "asked": asked, "said": {}})
        group["said"][run] = [each.said for each in own]
    return list(groups.values())


def ungrouped(groups: Sequence[dict[str, Any]]) -> dict[Key, tuple[Answer, ...]]:
    """The inverse of `grouped`. Raises KeyError, TypeError or ValueError for anything that it does not make."""
    return {
        (run, group["suite"], group["task"], group["metric"], group["length"]): tuple(
            Answer(asked, expected, own) for (asked, expected), own in zip(group["asked"], said, strict=True)
        )
        for group in groups
        for run, said in group["said"].items()
    }
