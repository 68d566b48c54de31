"""Haystacks of RULER: held-out prose, sentences, passages of the Hub, and data out of reach."""

from __future__ import annotations

import datasets
import pytest

from suites.ruler import haystack
from suites.ruler.haystack import HUB, essay_sentences, essay_words
from tests.suites.ruler.reading import draw_needles, hotpotqa_rows, squad_rows


def test_haystack_is_held_out_prose_and_wraps_around(tok):
    words = essay_words("corpus")
    assert len(words) > 100_000
    assert " ".join(essay_sentences("corpus", 2000)) == " ".join(words[:2000])


def test_paul_graham_out_of_reach_is_one_line_with_the_remedy(tok, monkeypatch):
    def fail(path, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"ruler.haystack: .*baber/paul_graham_essays.*offline.*haystack: corpus"):
        draw_needles(tok, "s_niah_2", source="paul_graham")


def test_rows_of_the_hub_are_read(monkeypatch):
    text = {"text": ["a", "a", "b"], "answer_start": [0, 0, 2]}
    row = {"id": "1", "title": "T", "context": "a b", "question": "q?", "answers": text}
    rows = datasets.Dataset.from_list([row, {**row, "answers": {"text": [], "answer_start": []}}])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: rows)
    found = haystack.squad_passages(haystack.squad_rows(HUB))
    assert found.questions == (haystack.Question("q?", ("a", "b"), (0,)),) and found.documents == ("a b",)


def test_essays_repeat_where_they_end():
    words = essay_words("corpus")
    assert " ".join(essay_sentences("corpus", len(words) + 3)).split() == [*words, *words[:3]]


def test_passages_of_an_article_are_related_and_unanswerable_questions_left_out():
    passages = haystack.squad_passages(squad_rows(8))
    assert len(passages.questions) == len(passages.documents) == 8
    for i, question in enumerate(passages.questions):
        (gold,) = question.gold
        assert f"zebra{i}x" in passages.documents[gold] and question.answers == (f"zebra{i}x", f"room {i} is zebra{i}x")
        others = {i // 4 * 4 + j for j in range(4)} - {i}
        assert {passages.questions.index(q) for q in passages.questions if q.gold[0] in question.related} == others


def test_every_document_of_a_hotpotqa_row_is_gold_under_its_title():
    passages = haystack.hotpotqa_passages(hotpotqa_rows(3))
    for i, question in enumerate(passages.questions):
        titles = [passages.documents[number].split("\n")[0] for number in question.gold]
        assert titles == [f"Title {i}", f"Title {i + 3}"] and question.related == ()
