"""Texts of items: bounded in number and length, and a question is kept once for all runs that were asked it."""

from __future__ import annotations

import pytest

from harness.records.answers import ASKED, GAP, MOST_ANSWERS, SAID, Answer, grouped, kept, shortened, ungrouped
from harness.records.record import Measurement

KEY = ("suite", "task", "acc", 4)


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = "".join(f"{n} " for n in range(1000))
    short = shortened(text, 100)
    head, _, tail = short.partition(GAP)
    assert len(short) == 100 and text.startswith(head) and text.endswith(tail) and len(tail) > len(head) > 20
    assert shortened("short", 5) == "short"


def test_texts_are_bounded_in_number_and_length() -> None:
    answers = kept(["q" * 10_000] * 50, ["e" * 10_000] * 50, ["s" * 10_000] * 50)
    assert len(answers) == MOST_ANSWERS
    assert {(len(a.asked), len(a.expected), len(a.said)) for a in answers} == {(ASKED, SAID, SAID)}
    with pytest.raises(ValueError, match="answers: said: 3 is no text"):
        Answer("q", "e", 3)


def test_more_texts_than_samples_are_refused() -> None:
    two = kept("ab", "ab", "ab")
    Measurement("suite", "task", "acc", 0.5, None, 2, samples=(0.0, 1.0), answers=two)
    for samples, value in (((1.0,), 1.0), (None, 1.0)):
        with pytest.raises(ValueError, match="suite: task: answers: 2 texts; give those of the first 20 samples"):
            Measurement("suite", "task", "acc", value, None, 1, samples=samples, answers=two)


def test_runs_that_were_asked_the_same_share_the_question() -> None:
    answers = {
        ("a", *KEY): kept("qr", "12", ["1", None]),
        ("b", *KEY): kept("qr", "12", ["3", "2"]),
        ("c", *KEY): kept("q", "1", "1"),
    }
    groups = grouped(answers)
    assert [group["said"] for group in groups] == [{"a": ["1", None], "b": ["3", "2"]}, {"c": ["1"]}]
    assert ungrouped(groups) == answers
