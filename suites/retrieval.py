"""Real-world retrieval: an answer is read out of a document that is in the prompt (Based and Just Read Twice).

Six tasks of arXiv 2407.05483 over its own data sets on the Hub: zero-shot, greedy to the end of the line, input cut to
a window around the answer, score `contains`. And three that need no Hub, are no tasks of the paper and say so:
`squad_passages` and `drop_passages`, questions over the passages that `suites.shared.offline` holds, and `factbook`,
SWDE's question on the held-out countries of the World Factbook. Where a passage can be had without its answer, the
continuous needle score is measured too; many of DROP's answers stand nowhere in the passage, so `drop_passages` has
none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Literal

from huggingface_hub import constants
from lm_eval.api.model import LM
from pydantic import Field, PositiveInt, field_validator

from harness.data.corpus import factbook_fields
from harness.records.record import Measurement
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared import offline
from suites.shared.items import Item, hashed_item
from suites.shared.lm_requests import (
    check_distinct,
    check_prompt_length,
    contains,
    encode,
    fingerprint,
    generate,
    mean_measurement,
    token_count,
    tokenizer_of,
)
from suites.shared.needle import Probe, needle_measurements

Task = Literal["swde", "fda", "squad", "nq", "triviaqa", "drop", "squad_passages", "drop_passages", "factbook"]
Record = Mapping[str, Any]

# Tokens of the limit that are kept for the answer.
ANSWER_ROOM = 50
SUMMARY = "Summary of information above..."
TAGS = re.compile(r"\[(?:PAR|DOC|TLE)\]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
STAND_INS = {
    "squad_passages": "not a task of the paper: 1,000 questions of SQuAD, where the paper's completes a sentence",
    "drop_passages": "not a task of the paper: 1,000 questions of DROP, offline",
    "factbook": "not a task of the paper: key and value lines of the World Factbook, offline",
}
TWICE = "context and question given two times (Just Read Twice), which the paper does not measure"
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
PASSAGES: dict[str, tuple[str, str]] = {"squad_passages": ("squad", "nq"), "drop_passages": ("drop", "drop")}
"""Offline task → its data in `suites.shared.offline`, and the task of the paper whose prompt and window it takes."""


class Config(SuiteConfig):
    """What to measure of the retrieval tasks.

    limit_tokens: the paper's 2K; the window takes 50 fewer. samples: of each task, drawn with `seed`; None for all.
    max_new_tokens: of the answer, which ends at a newline anyway. twice: beside each task also `<task>_twice`, the same
    records with context and question given two times, each copy with the whole limit: prompts of up to 4K.
    """

    tasks: list[Task] = Field(default=["swde", "fda", "squad", "nq", "triviaqa", "drop"], min_length=1)
    limit_tokens: int = Field(default=2048, gt=ANSWER_ROOM)
    samples: PositiveInt | None = None
    seed: int = 0
    max_new_tokens: PositiveInt = 48
    twice: bool = False

    _each_once = field_validator("tasks")(check_distinct)


@dataclass(frozen=True)
class Prompt:
    """A prompt and its gold answers. without: the prompt with what holds the answer removed, where that can be."""

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
    return all(len(name) > 1 for name in names(record, SPECS[form_of(task)].looked_up))


def form_of(task: str) -> str:
    """The task whose prompt and window `task` takes: itself but for those over offline passages."""
    return PASSAGES[task][1] if task in PASSAGES else task


def dataset_of(task: str) -> str:
    return f"{offline.PACKAGE}, {PASSAGES[task][0]}" if task in PASSAGES else SPECS[task].dataset


def earliest(text: str, sought: Sequence[str]) -> int:
    """The first character of whichever name comes first, ignoring case; the end of the text where none does.

    So a document without its answer keeps its end, as in the protocol's own code.
    """
    found = [re.search(re.escape(name), text, re.IGNORECASE) for name in sought]
    return min((match.start() for match in found if match), default=len(text))


def around(text: str, sought: Sequence[str], tokenizer: Any, limit: int) -> str:
    """`text` cut to the window around the earliest of `sought`, to its head where nothing is looked for."""
    return window(text, earliest(text, sought) if sought else 0, tokenizer, limit)


def without_ending(text: str, ending: str) -> str:
    """`text` with every trailing copy of `ending` removed, ignoring case."""
    while ending and text.lower().endswith(ending.lower()):
        text = text[: -len(ending)]
    return text


def without_sentences(text: str, answer: str) -> str:
    """`text` without the sentences that `answer` stands in, ignoring case; ValueError when it stands in none."""
    spans = [match.span() for match in re.finditer(re.escape(answer), text, re.IGNORECASE)]
    if not spans:
        raise ValueError(f"retrieval.limit_tokens: the answer {answer!r} does not fit the window; use a larger limit")
    edges = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    kept = [text[a:b] for a, b in pairwise(edges) if not any(start < b and a < end for start, end in spans)]
    return "".join(kept).strip()


def without_line(text: str, line: str) -> str:
    """`text` without every copy of `line`; ValueError when it has none."""
    lines = text.split("\n")
    if line not in lines:
        raise ValueError(f"retrieval.limit_tokens: the line {line!r} does not fit the window; use a larger limit")
    return "\n".join(other for other in lines if other != line).strip()


def build_prompt(task: Task, record: Record, tokenizer: Any, limit: int, twice: bool = False) -> Prompt:
    """The prompt of a record with the Hub's columns, its document cut to `limit` tokens less 50 for the answer.

    swde, fda: text, key, value. squad: text, value. nq, triviaqa, drop: context, question, answers. factbook: text,
    key, value, line. squad_passages asks as nq does and drop_passages as drop does. No space follows the question or
    the colon.

    twice: as in the code of Just Read Twice, the question or what it is about, the cut document, a newline, the same
    once more, the question as above. The first question is orig_question where the record has one, squad's is question
    with context before the text; that context is cut too, each copy having the whole limit.
    """
    form = form_of(task)
    text = record[SPECS[form].document].strip()
    if form == "swde":
        text = text.split(SUMMARY)[0].strip()
    text = around(text, names(record, SPECS[form].looked_up), tokenizer, limit)
    if form == "squad":
        text = text.strip()
        if twice:
            passage = around(record["context"].split("Question:")[0], [record["value"]], tokenizer, limit)
            text = f"{record['question']} {passage}\n{text}"
        return Prompt(text, (record["value"],))
    if form in ("swde", "fda", "factbook"):
        key, answers = record["key"], (record["value"],)
        question = f"{key[0].upper()}{key[1:]}:"
        intro = f"Information about {question.strip(':')}."
        text = text if form == "factbook" else without_ending(text, f"{key}:")
        text = text.strip("\n") if form == "fda" else text.strip()
    else:
        question, answers = record["question"].strip(), tuple(record["answers"])
        intro = record.get("orig_question", question)
        intro = intro if form == "triviaqa" else intro.strip(":")
        text = TAGS.sub("", text) if form == "triviaqa" else text
        text = without_ending(text.strip(), question).strip()

    def ask(text: str) -> str:
        copy = text.strip(".")
        if not twice:
            return f"{copy}. {question}"
        copy = copy if form == "fda" else copy.strip()
        return f"{intro} {copy}.\n{copy}. {question}"

    without = None
    if task == "factbook":
        without = ask(without_line(text, record["line"]))
    elif task == "squad_passages":
        # Where every sentence holds the answer, the question is left.
        rest = without_sentences(text, answers[0])
        without = ask(rest) if rest else question
    return Prompt(ask(text), answers, without)


def hub(task: Task) -> Any:
    """A task's data set on the Hub, or its copy in the Hub's cache; ValueError where it cannot be had."""
    from datasets import load_dataset

    try:
        return load_dataset(SPECS[task].dataset, split="validation")
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"retrieval.tasks: {task} needs the data set {SPECS[task].dataset}, which cannot be read ({reason}); fetch "
            f"it first where the Hub answers, or use tasks: [{', '.join(STAND_INS)}]"
        ) from error


def load(task: Task) -> list[Record]:
    """All records of a task that the protocol keeps. ValueError when its data cannot be had."""
    if task == "factbook":
        records: list[Record] = [
            {"text": text, "key": key, "value": value, "line": f"{key}: {value}"}
            for _, text, key, value in factbook_fields("test")
        ]
    elif task in PASSAGES:
        try:
            records = list(offline.load(PASSAGES[task][0])["validation"])
        except ValueError as error:
            raise ValueError(f"retrieval.tasks: {task}: {error}") from error
    else:
        records = list(hub(task))
    return [record for record in records if usable(task, record)]


def draw(task: Task, config: Config) -> tuple[list[Record], int | None]:
    """The records of a task that are asked, and how many that are where it is not all of them."""
    records = load(task)
    if config.samples is None or config.samples >= len(records):
        return records, None
    return Random(f"{task}:{config.seed}").sample(records, config.samples), config.samples


@register_suite("retrieval", title="answers read out of real documents (Based, Just Read Twice), and offline stand-ins")
class Retrieval(Suite):
    """Questions about a document in the prompt: whether the answer contains the gold one, and the needle score."""

    Config = Config

    def check(self, config: Config, tokenizer: Any) -> None:
        """Raise ValueError if data are not on this machine or an answer does not fit the window. Uses no network.

        Data sets of the Hub are looked up in its cache, and only if HF_HUB_OFFLINE says that the Hub cannot be reached.
        """
        for task in config.tasks:
            if task in STAND_INS:
                records, _ = draw(task, config)
                # The longest stands for all: a prompt for each would take as long as the run's own.
                longest = max(
                    records, key=lambda record: len(record["line"] if "line" in record else record["answers"][0])
                )
                build_prompt(task, longest, tokenizer, config.limit_tokens)
            elif constants.HF_HUB_OFFLINE:
                hub(task)

    def prefetch(self, config: Config, tokenizer: Any, progress: Progress = silent) -> Iterator[Item]:
        """Each task's data, read once so that the Hub's lie in its cache, with the sha256 of the records that are kept.

        tokenizer: not used, prompts being made when they are asked.
        """
        for task in config.tasks:
            progress(f"retrieval {task}: {dataset_of(task)}")
            yield hashed_item(f"retrieval {task}", lambda task=task: fingerprint(load(task)))

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """`contains` of every task, and where there is a prompt without the answer needle_logprob and needle_gain.

        On any lm-eval model. Data and prompts are had before anything is measured.
        """
        tokenizer = tokenizer_of(lm, self.name)
        drawn = {task: draw(task, config) for task in config.tasks}
        asked = []
        for task, (records, limit) in drawn.items():
            progress(f"retrieval {task}: making prompts")
            for twice in (False, True) if config.twice else (False,):
                prompts = [build_prompt(task, record, tokenizer, config.limit_tokens, twice) for record in records]
                tokens = [token_count(tokenizer, prompt.text) for prompt in prompts]
                # Questions are outside the window, so the longest prompt can pass the limit by the length of its own.
                check_prompt_length(lm, "retrieval.limit_tokens", max(tokens) + config.max_new_tokens)
                asked.append((task, prompts, tokens, limit, twice))
        results = []
        for task, prompts, tokens, limit, twice in asked:
            progress(f"retrieval {measured_name(task, twice)}: {len(prompts)} samples")
            results += score(lm, task, prompts, tokens, limit, config, twice)
        return results


def measured_name(task: str, twice: bool) -> str:
    """The name of a task's measurements: tables never put a number of one reading beside one of two."""
    return f"{task}_twice" if twice else task


def score(
    lm: LM,
    task: Task,
    prompts: list[Prompt],
    tokens: list[int],
    limit: int | None,
    config: Config,
    twice: bool = False,
) -> list[Measurement]:
    """The measurements of one task, whose prompts have `tokens` tokens."""
    name = measured_name(task, twice)
    reasons = [STAND_INS.get(task), TWICE if twice else None]
    rest = {
        "suite": "retrieval",
        "task": name,
        "stand_in": "; ".join(filter(None, reasons)) or None,
        "limit": limit,
        "settings": {
            "prompts": f"retrieval-{VERSION}",
            "dataset": dataset_of(task),
            "items_sha256": fingerprint([prompt.text, prompt.without, prompt.answers] for prompt in prompts),
            "seed": config.seed,
            "limit_tokens": config.limit_tokens,
            "max_new_tokens": config.max_new_tokens,
            "prompt_tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        }
        # limit_tokens is each copy's.
        | ({"copies": 2} if twice else {}),
    }
    enough = [[[answer] for answer in prompt.answers] for prompt in prompts]
    texts = generate(lm, name, [prompt.text for prompt in prompts], ["\n"], config.max_new_tokens, enough)
    found = [contains(text, prompt.answers) for text, prompt in zip(texts, prompts, strict=True)]
    probes = [Probe(p.text, p.without, f" {p.answers[0]}") for p in prompts if p.without is not None]
    return [mean_measurement("contains", found, **rest), *(needle_measurements(lm, probes, **rest) if probes else [])]
