"""A killed evaluation resumes after the last answers it wrote and ends with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness.lm.journal import Journal


class Counting(LM):
    """A model that answers from the text alone, records its requests, and can be made to fail."""

    tokenizer = "its tokenizer"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.left: int | None = None

    def _take(self, requests: list[Instance]) -> list[str]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        texts = [str(request.args) for request in requests]
        self.asked += texts
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(-len(text) / 3, len(text) % 2 == 0) for text in self._take(requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-len(text) / 7 for text in self._take(requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [text[::-1] for text in self._take(requests)]


KINDS = ["loglikelihood", "loglikelihood_rolling", "generate_until"]


def requests(kind: str, count: int = 20) -> list[Instance]:
    """Two requests per document; the last request repeats the first."""
    second: object = {"until": ["\n"], "max_gen_toks": 4} if kind == "generate_until" else "an ending"
    texts = [f"Text {i} — “é”" for i in range(count - 1)] + ["Text 0 — “é”"]
    arguments = [(text,) if kind == "loglikelihood_rolling" else (text, second) for text in texts]
    return [Instance(kind, {}, a, i % 2, ("task", i // 2, 1)) for i, a in enumerate(arguments)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_evaluation_asks_only_for_missing_answers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.lm.journal.CHUNK", 6)
    wanted = getattr(Counting(), kind)(requests(kind))
    inner = Counting()
    inner.left = 2
    with pytest.raises(KeyboardInterrupt):
        getattr(Journal(inner, tmp_path / "answers.jsonl"), kind)(requests(kind))
    assert len(inner.asked) == 12
    with open(tmp_path / "answers.jsonl", "a") as file:
        file.write('{"key": "cut off when the proc')
    again, said = Counting(), []
    answers = getattr(Journal(again, tmp_path / "answers.jsonl", said.append), kind)(requests(kind))
    assert answers == wanted
    assert len(again.asked) == 19 - 12 and not set(again.asked) & set(inner.asked)
    assert said[-1].startswith("task: 7/7 requests, 0 s left")
    third = Counting()
    assert getattr(Journal(third, tmp_path / "answers.jsonl"), kind)(requests(kind)) == wanted
    assert third.asked == []


def test_lines_name_the_document_and_its_answer(tmp_path: Path) -> None:
    Journal(Counting(), tmp_path / "a.jsonl").generate_until(requests("generate_until", 4))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["task"], line["doc"]) for line in lines] == [("task", 0), ("task", 0), ("task", 1)]
    assert all(line["answer"] == str(r.args)[::-1] for line, r in zip(lines, requests("generate_until"), strict=False))


def test_the_endings_of_one_document_are_asked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.lm.journal.CHUNK", 3)
    inner = Counting()
    inner.left = 1
    with pytest.raises(KeyboardInterrupt):
        Journal(inner, tmp_path / "a.jsonl").loglikelihood(requests("loglikelihood"))
    assert len(inner.asked) == 4


def test_kinds_do_not_answer_for_each_other_and_other_attributes_are_the_models(tmp_path: Path) -> None:
    journal = Journal(Counting(), tmp_path / "a.jsonl")
    assert journal.tokenizer == "its tokenizer"
    journal.loglikelihood(requests("loglikelihood"))
    assert journal.generate_until(requests("generate_until")) == Counting().generate_until(requests("generate_until"))
