"""Questions and answers in the report: each model's own words, and what it was not asked is not shown for it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.records.answers import kept
from harness.records.stats import mean_stderr
from harness.records.store import load_answers, load_samples
from harness.report.answers import MOST_ITEMS, items, questions
from harness.tables.comparison import comparison
from tests.harness.tables.table_records import HOSTILE, record, store
from tests.harness.tables.test_escaping import Page

N = 12
ASKED = [f"color of {n}\n? {HOSTILE[0]}" for n in range(N)]


@pytest.fixture
def made(tmp_path: Path):
    """(table, answers) of two models on the same items, which differ on the last three, and one that kept no texts."""
    records = []
    for seed in (0, 1):
        for label, right in (("gdn2", N), ("kda", N - 3)):
            scores = tuple((np.arange(N) < right - seed).astype(float))
            said = ["red" if score else None if label == "gdn2" else HOSTILE[1] for score in scores]
            own = {"samples": scores, "settings": {"items": "x"}, "answers": kept(ASKED, ["red"] * N, said)}
            each = record(label, "piqa", "acc", *mean_stderr(np.array(scores)), N, seed=seed, **own)
            records.append(replace(each, run=f"{label}-{seed}"))
    records.append(record("mamba2", "piqa", "acc", 0.5, 0.01, N, settings={"items": "x"}))
    frame = store(tmp_path, records)
    return comparison(frame, samples=load_samples(tmp_path)), load_answers(tmp_path)


def test_items_on_which_models_disagree_come_first_with_the_first_seeds_answers(made) -> None:
    table, answers = made
    found = items(table, table.columns[0], answers)
    assert [item.number for item in found] == [9, 10, 11, *range(9)]
    assert [(said.row.label, said.text, said.score) for said in found[0].said] == [
        ("gdn2", "red", 1.0),
        ("kda", HOSTILE[1], 0.0),
    ]
    assert found[0].outcome == "1 of 2 models right" and found[-1].outcome == "2 of 2 models right"


def test_a_model_that_was_asked_something_else_is_not_shown_under_the_question(made) -> None:
    table, answers = made
    other = {key: kept(reversed(ASKED), ["red"] * N, ["red"] * N) for key in answers if key[0] == "kda-0"}
    assert all(len(item.said) == 1 for item in items(table, table.columns[0], answers | other))


def test_the_part_shows_question_right_answer_and_answers_as_text_and_is_bounded(made) -> None:
    table, answers = made
    text = questions(table, answers)
    assert "models disagree on 3 of the first 12 items" in text and text.count('class="item"') == MOST_ITEMS
    page = Page(text)
    assert HOSTILE[1] in page.texts() and text.count("<td>wrong</td>") == 3
    assert text.count("<caption>Right answer: red</caption>") == MOST_ITEMS
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img"})
    assert re.search(r"color of 9\n\? &lt;script", text)
    assert questions(table, {}) == ""
