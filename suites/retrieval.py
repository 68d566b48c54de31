"""Real-world retrieval: an answer is read out of a document that is in the prompt (Based and Just Read Twice).

Six tasks of arXiv 2407.05483 over its own data sets on the Hub: zero-shot, greedy to the end of the line, input cut to
a window around the answer, score `contains`. And one that needs no Hub: `factbook`, the same question on the held-out
countries of the World Factbook, with the continuous needle score. It is no task of the paper and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from lm_eval.api.model import LM
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from harness.corpus import factbook_fields
from harness.records import Measurement
from suites.needle import Probe, needle_measurements
from suites.requests import (
    check_room,
    contains,
    each_once,
    encode,
    fingerprint,
    generate,
    measure,
    token_count,
    tokenizer_of,
)

Task = Literal["swde", "fda", "squad", "nq", "triviaqa", "drop", "factbook"]
Record = Mapping[str, Any]

# Tokens of the limit that are kept for the answer.
ANSWER_ROOM = 50
SUMMARY = "Summary of information above..."
TAGS = re.compile(r"\[(?:PAR|DOC|TLE)\]")
STAND_IN = "not a task of the paper: key and value lines of the World Factbook, offline"
# Changed whenever the same record would give another prompt.
VERSION = 1


@dataclass(frozen=True)
class Spec:
    """A task: its data set on the Hub, its column with the document, and those looked up to place the window.

    A task without `looked_up` takes the head of the document.
    """

    dataset: str
    document: str
    looked_up: tuple[str, ...] = ()


SPECS: dict[str, Spec] = {
    "swde": Spec("hazyresearch/based-swde-v2", "text", ("key", "value")),
    "fda": Spec("hazyresearch/based-fda", "text", ("key", "value")),
    "squad": Spec("hazyresearch/based-squad", "text", ("value",)),
    "nq": Spec("hazyresearch/based_nq_2048", "context", ("answers",)),
    "triviaqa": Spec("hazyresearch/based_triviaqa", "context"),
    "drop": Spec("hazyresearch/based_drop", "context"),
    "factbook": Spec("embedded corpus, test split", "text", ("line",)),
}


class Config(BaseModel):
    """What to measure of the retrieval tasks.

    limit_tokens: the paper's 2K; the window takes 50 fewer. samples: of each task, drawn with `seed`; None for all.
    max_new_tokens: of the answer, which ends at a newline anyway.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[Task] = Field(default=["swde", "fda", "squad", "nq", "triviaqa", "drop"], min_length=1)
    limit_tokens: int = Field(default=2048, gt=ANSWER_ROOM)
    samples: PositiveInt | None = None
    seed: int = 0
    max_new_tokens: PositiveInt = 48

    _each_once = field_validator("tasks")(each_once)


@dataclass(frozen=True)
class Prompt:
    """A prompt and its gold answers. without: the prompt with the answer's line removed, for `factbook` only."""

    text: str
    answers: tuple[str, ...]
    without: str | None = None


def bounds(tokens: int, position: int, budget: int) -> tuple[int, int]:
    """First and past-the-last token of the window of `budget` tokens around `position`.

    Half the budget lies before the position and the rest from it on; where the document begins or ends sooner, the
    other side gets what is left.
    """
    start = max(0, position - budget // 2)
    end = min(tokens, start + budget)
    return max(0, end - budget), end


def window(text: str, at: int, tokenizer: Any, limit: int) -> str:
    """`text` cut to the window around its character `at`, a document that fits left as it is."""
    ids, budget = encode(tokenizer, text), limit - ANSWER_ROOM
    if len(ids) <= budget:
        return text
    start, end = bounds(len(ids), len(encode(tokenizer, text[:at])), budget)
    cut = tokenizer.decode(ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # Half a character at an edge, in byte-level vocabularies.
    return cut.strip("\ufffd")


def names(record: Record, columns: Sequence[str]) -> list[str]:
    """What to look for in the document: each column's text, or the first of its list."""
    values = [record[column] for column in columns]
    return [value if isinstance(value, str) else next(iter(value), "") for value in values]


def usable(task: Task, record: Record) -> bool:
    """Whether the protocol keeps the record: where an answer is looked up, it must have two characters or more."""
    return all(len(name) > 1 for name in names(record, SPECS[task].looked_up))


def earliest(text: str, sought: Sequence[str]) -> int:
    """The first character of whichever name comes first, ignoring case; the end of the text where none does.

    So a document without its answer keeps its end, as in the protocol's own code.
    """
    found = [re.search(re.escape(name), text, re.IGNORECASE) for name in sought]
    return min((match.start() for match in found if match), default=len(text))


def without_ending(text: str, ending: str) -> str:
    """`text` with every trailing copy of `ending` removed, ignoring case."""
    while ending and text.lower().endswith(ending.lower()):
        text = text[: -len(ending)]
    return text


def build_prompt(task: Task, record: Record, tokenizer: Any, limit: int) -> Prompt:
    """The prompt of a record with the Hub's columns, its document cut to `limit` tokens less 50 for the answer.

    swde, fda: text, key, value. squad: text, value. nq, triviaqa, drop: context, question, answers. factbook: text,
    key, value, line. No space follows the question or the colon.
    """
    spec = SPECS[task]
    text = record[spec.document].strip()
    if task == "swde":
        text = text.split(SUMMARY)[0].strip()
    at = earliest(text, names(record, spec.looked_up)) if spec.looked_up else 0
    text = window(text, at, tokenizer, limit)
    if task == "squad":
        return Prompt(text.strip(), (record["value"],))
    if task in ("swde", "fda", "factbook"):
        key, value = record["key"], record["value"]
        question = f"{key[0].upper()}{key[1:]}:"
        if task == "factbook":
            return factbook_prompt(text, record["line"], question, value)
        text = without_ending(text, f"{key}:")
        text = text.strip() if task == "swde" else text.strip("\n")
        return Prompt(ask(text, question), (value,))
    question = record["question"].strip()
    text = TAGS.sub("", text) if task == "triviaqa" else text
    return Prompt(ask(without_ending(text.strip(), question).strip(), question), tuple(record["answers"]))


def ask(text: str, question: str) -> str:
    """The document without full stops at its ends, one full stop, and the question."""
    return f"{text.strip('.')}. {question}"


def factbook_prompt(text: str, line: str, question: str, value: str) -> Prompt:
    """The cloze over a country's lines, with and without the `line` that answers it."""
    lines = text.split("\n")
    if line not in lines:
        raise ValueError(f"retrieval.limit_tokens: the line {line!r} does not fit the window; use a larger limit")
    others = [other for other in lines if other != line]
    return Prompt(ask(text.strip(), question), (value,), ask("\n".join(others).strip(), question))


def load(task: Task) -> list[Record]:
    """All records of a task that the protocol keeps. ValueError when the Hub cannot be reached."""
    if task == "factbook":
        records: list[Record] = [
            {"text": text, "key": key, "value": value, "line": f"{key}: {value}"}
            for _, text, key, value in factbook_fields("test")
        ]
    else:
        from datasets import load_dataset

        try:
            records = list(load_dataset(SPECS[task].dataset, split="validation"))
        except OSError as error:
            raise ValueError(
                f"retrieval.tasks: {task} needs the data set {SPECS[task].dataset}, which cannot be read ({error}); "
                "fetch it first, or use tasks: [factbook]"
            ) from error
    return [record for record in records if usable(task, record)]


def run(lm: LM, config: Config, progress: Callable[[str], None] = lambda message: None) -> list[Measurement]:
    """`contains` of every task, and for `factbook` needle_logprob and needle_gain, on any lm-eval model."""
    tokenizer = tokenizer_of(lm, "retrieval")
    results = []
    for task in config.tasks:
        records = load(task)
        limit = None
        if config.samples is not None and config.samples < len(records):
            limit = config.samples
            records = Random(f"{task}:{config.seed}").sample(records, limit)
        prompts = [build_prompt(task, record, tokenizer, config.limit_tokens) for record in records]
        progress(f"retrieval {task}: {len(prompts)} samples")
        tokens = [token_count(tokenizer, prompt.text) for prompt in prompts]
        # The question is outside the window, so the longest prompt can pass the limit by the length of its question.
        check_room(lm, "retrieval.limit_tokens", max(tokens) + config.max_new_tokens)
        results += score(lm, task, prompts, tokens, limit, config)
    return results


def score(
    lm: LM, task: Task, prompts: list[Prompt], tokens: list[int], limit: int | None, config: Config
) -> list[Measurement]:
    """The measurements of one task, whose prompts have `tokens` tokens."""
    rest = {
        "suite": "retrieval",
        "stand_in": STAND_IN if task == "factbook" else None,
        "limit": limit,
        "settings": {
            "prompts": f"retrieval-{VERSION}",
            "dataset": SPECS[task].dataset,
            "items_sha256": fingerprint([prompt.text, prompt.without, prompt.answers] for prompt in prompts),
            "seed": config.seed,
            "limit_tokens": config.limit_tokens,
            "max_new_tokens": config.max_new_tokens,
            "prompt_tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        },
    }
    texts = generate(lm, task, [prompt.text for prompt in prompts], until=["\n"], max_new_tokens=config.max_new_tokens)
    found = [contains(text, prompt.answers) for text, prompt in zip(texts, prompts, strict=True)]
    probes = [Probe(p.text, p.without, f" {p.answers[0]}") for p in prompts if p.without is not None]
    return [
        measure("contains", found, task=task, **rest),
        *(needle_measurements(lm, probes, task, **rest) if probes else []),
    ]
