"""Real-world retrieval: answers read out of a document in the prompt (Based and Just Read Twice).

Six tasks of arXiv 2407.05483 use its own data sets on the Hub: zero-shot, greedy decoding to the end of the line, input
cut to a window around the answer, scored by `contains`. Windows and prompts are those of that paper's public code: a
window is shorter than its budget where the answer comes late, and a document that would fit can lose its head.

Three more tasks need no Hub; they are not tasks of the paper and say so: `squad_passages` and `drop_passages` ask about
the passages of `suites.shared.offline`, and `factbook` asks SWDE's question about the held-out countries of the World
Factbook. Where the answer can be removed from a passage, the continuous needle score is measured too. Many of DROP's
answers do not occur in the passage, so `drop_passages` has no needle score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

from huggingface_hub import constants
from pydantic import Field, PositiveInt, field_validator

from harness.data.corpus import factbook_fields
from harness.experiments.closed import Seed
from harness.records.answers import kept
from harness.records.record import Measurement
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared import offline
from suites.shared.items import Item, hashed_item
from suites.shared.lm_requests import (
    check_distinct,
    check_prompt_length,
    contains,
    fingerprint,
    generate,
    mean_measurement,
    token_count,
    tokenizer_of,
)
from suites.shared.needle import Probe, needle_measurements

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Task = Literal["swde", "fda", "squad", "nq", "triviaqa", "drop", "squad_passages", "drop_passages", "factbook"]
Record = Mapping[str, Any]

ANSWER_ROOM = 50
"""Tokens of the limit that are kept free for the answer."""
SUMMARY = "Summary of information above..."
TAGS = re.compile(r"\[(?:PAR|DOC|TLE)\]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
STAND_INS = {
    "squad_passages": "not a task of the paper: 1,000 questions of SQuAD, where the paper's completes a sentence",
    "drop_passages": "not a task of the paper: 1,000 questions of DROP, offline",
    "factbook": "not a task of the paper: key and value lines of the World Factbook, offline",
}
TWICE = "context and question given two times (Just Read Twice), which the paper does not measure"
NEW_TOKENS = 48
"""The public code's tokens of an answer at most."""
PROTOCOL = 2
"""Version of prompts and windows. In version 1 a window around a late answer was filled up from before it."""
LIMIT, LIMITS = 2048, {"nq": 2000}
"""The public code's tokens of document and answer, and where they differ by task."""


@dataclass(frozen=True)
class Spec:
    """A task.

    dataset: on the Hub. document: the column with the document. looked_up: the columns whose text places the window, or
    the first text of a column that lists several; a task without any takes the head of the document.
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
"""Offline task → its data in `suites.shared.offline`, and the task of the paper whose prompt and window it uses."""


class Config(SuiteConfig):
    """Options of the retrieval tasks."""

    tasks: list[Task] = Field(default=["swde", "fda", "squad", "nq", "triviaqa", "drop"], min_length=1)
    """Tasks; by default the paper's."""
    limit_tokens: Annotated[int, Field(gt=ANSWER_ROOM)] | None = None
    """Tokens of document and answer; the document's window is 50 tokens smaller. null: 2,048, but 2,000 for nq."""
    samples: PositiveInt | None = None
    """Samples per task; null: all records."""
    seed: Seed = 0
    """Seed by which `samples` records are drawn."""
    max_new_tokens: PositiveInt = NEW_TOKENS
    """Largest number of tokens of an answer, which also ends at a newline."""
    twice: bool = False
    """Whether to also measure `<task>_twice`: the same records with context and question given two times.

    Each copy has the whole limit, so prompts have up to twice `limit_tokens`.
    """

    _check_distinct = field_validator("tasks")(check_distinct)

    def limit(self, task: str) -> int:
        """Return the tokens of a task's document and answer."""
        return self.limit_tokens or LIMITS.get(task, LIMIT)


@dataclass(frozen=True)
class Prompt:
    """A prompt and its gold answers.

    without: the prompt without the passage that holds the answer, or None if that cannot be removed.
    """

    text: str
    answers: tuple[str, ...]
    without: str | None = None


def window_bounds(tokens: int, position: int, budget: int) -> tuple[int, int]:
    """Return the first and the past-the-last token of a window around a position.

    tokens: of the document. budget: of the window. Up to half of the budget lies before the position; what is left of
    it lies from the position on, as far as the document goes. Nothing before the position makes up for a document that
    ends sooner.
    """
    start = max(0, position - budget // 2)
    return start, min(tokens, start + budget)


def cut_to_window(text: str, position: int, tokenizer: Any, budget: int) -> str:
    """Return the text of the window of `budget` tokens around a token of `text`.

    Positions count the BOS where the tokenizer adds one; it takes its place in a window at the head.
    """
    ids = tokenizer.encode(text)
    start, end = window_bounds(len(ids), position, budget)
    return tokenizer.decode(ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def looked_up_texts(record: Record, columns: Sequence[str]) -> list[str]:
    """Return the texts to look up in the document: each column's text, or the first of its list."""
    values = [record[column] for column in columns]
    return [value if isinstance(value, str) else next(iter(value), "") for value in values]


def is_usable(task: Task, record: Record) -> bool:
    """Whether the protocol keeps the record: a text that is looked up must have two characters or more."""
    return all(len(text) > 1 for text in looked_up_texts(record, SPECS[prompt_task(task)].looked_up))


def prompt_task(task: str) -> str:
    """Return the task whose prompt and window `task` uses: the paper's for offline passages, else itself."""
    return PASSAGES[task][1] if task in PASSAGES else task


def dataset_of(task: str) -> str:
    """Return the name of a task's data set, as measurements record it."""
    return f"{offline.PACKAGE}, {PASSAGES[task][0]}" if task in PASSAGES else SPECS[task].dataset


def earliest_position(text: str, sought: Sequence[str]) -> int | None:
    """Return the position of the first of the `sought` texts, ignoring case, or None if none occurs."""
    matches = [re.search(re.escape(other), text, re.IGNORECASE) for other in sought]
    return min((match.start() for match in matches if match), default=None)


def answer_position(text: str, record: Record, sought: Sequence[str], tokenizer: Any, budget: int) -> int:
    """Return the token around which a document is cut: the first of `sought`, or of the record's `alt_answers`.

    Alternatives are tried in their order. If none occurs, it is the record's `tok_pos` where there is one and the text
    is longer than the budget, and the text's last character elsewhere. With nothing sought it is the head.
    """
    at = earliest_position(text, sought) if sought else 0
    alternatives = (earliest_position(text, [other]) for other in record.get("alt_answers") or ())
    if at is None:
        at = next((found for found in alternatives if found is not None), None)
    before = len(tokenizer.encode(text[:-1] if at is None else text[:at]))
    return record["tok_pos"] if at is None and "tok_pos" in record and before > budget else before


def window_around(text: str, record: Record, columns: Sequence[str], tokenizer: Any, limit: int) -> str:
    """Return `text` cut to the window around the texts of a record's columns, or to its head if there are none."""
    budget = limit - ANSWER_ROOM
    sought = looked_up_texts(record, columns)
    return cut_to_window(text, answer_position(text, record, sought, tokenizer, budget), tokenizer, budget)


def without_ending(text: str, ending: str) -> str:
    """Return `text` without any trailing copies of `ending`, ignoring case."""
    while ending and text.lower().endswith(ending.lower()):
        text = text[: -len(ending)]
    return text


def without_sentences(text: str, answer: str) -> str:
    """Return `text` without the sentences that contain `answer`, ignoring case. Raises ValueError if none does."""
    spans = [match.span() for match in re.finditer(re.escape(answer), text, re.IGNORECASE)]
    if not spans:
        raise ValueError(f"retrieval.limit_tokens: the answer {answer!r} does not fit the window; use a larger limit")
    edges = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    kept = [text[a:b] for a, b in pairwise(edges) if not any(start < b and a < end for start, end in spans)]
    return "".join(kept).strip()


def without_line(text: str, line: str) -> str:
    """Return `text` without any copy of `line`. Raises ValueError if it has none."""
    lines = text.split("\n")
    if line not in lines:
        raise ValueError(f"retrieval.limit_tokens: the line {line!r} does not fit the window; use a larger limit")
    return "\n".join(other for other in lines if other != line).strip()


def build_prompt(task: Task, record: Record, tokenizer: Any, limit: int, twice: bool = False) -> Prompt:
    """Return the prompt of a record, its document cut to `limit` tokens less 50 for the answer.

    Records have the Hub's columns. swde, fda: text, key, value. squad: text, value. nq, triviaqa, drop: context,
    question, answers. Any may have alt_answers, and nq has tok_pos. factbook: text, key, value, line. squad_passages
    asks as nq does, and drop_passages as drop does. No space follows the question or the colon.

    twice: as in the code of Just Read Twice, the prompt is the question or its subject, the cut document, a newline,
    the document again, and the question as above. The first question is orig_question if the record has one. For squad
    it is question, followed by context, which is not cut.
    """
    form = prompt_task(task)
    text = record[SPECS[form].document].strip()
    if form == "swde":
        text = text.split(SUMMARY)[0].strip()
    text = window_around(text, record, SPECS[form].looked_up, tokenizer, limit)
    if form == "squad":
        text = text.strip()
        if twice:
            text = f"{record['question']} {record['context'].split('Question:')[0]}\n{text}"
        return Prompt(text, (record["value"],))
    if form in ("swde", "fda", "factbook"):
        key, answers = record["key"], (record["value"],)
        question = f"{key[0].upper()}{key[1:]}:"
        intro = f"Information about {question.strip(':')}."
        text = text if form == "factbook" else without_ending(text, f"{key}:")
        text = text.strip("\n") if form == "fda" or (form == "swde" and twice) else text.strip()
    else:
        question, answers = record["question"].strip(), tuple(record["answers"])
        intro = record.get("orig_question", question)
        intro = intro if form == "triviaqa" else intro.strip(":")
        text = text.strip()
        text = TAGS.sub("", text) if form == "triviaqa" else text
        if form == "nq" and not twice:  # one copy, as it is written
            text = text.removesuffix(question).strip()
        else:
            text = without_ending(text, question).strip()

    def ask(text: str) -> str:
        copy = text.strip(".")
        if not twice:
            return f"{copy}. {question}"
        copy = copy if form == "fda" else copy.strip()
        # Of the twice forms, only swde's can end with full stops inside blanks, and keeps them.
        copy = copy if form == "swde" and copy.endswith(".") else f"{copy}."
        return f"{intro} {copy}\n{copy} {question}"

    without = None
    if task == "factbook":
        without = ask(without_line(text, record["line"]))
    elif task == "squad_passages":
        # If every sentence contains the answer, only the question remains.
        rest = without_sentences(text, answers[0])
        without = ask(rest) if rest else question
    return Prompt(ask(text), answers, without)


def hub_records(task: Task) -> Any:
    """Return a task's data set from the Hub or its cache. Raises ValueError if neither has it."""
    from datasets import load_dataset

    try:
        return load_dataset(SPECS[task].dataset, split="validation")
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"retrieval.tasks: {task} needs the data set {SPECS[task].dataset}, which cannot be read ({reason}); fetch "
            f"it first where the Hub answers, or use tasks: [{', '.join(STAND_INS)}]"
        ) from error


def load_records(task: Task) -> list[Record]:
    """Return all records of a task that the protocol keeps. Raises ValueError if its data are not available."""
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
        records = list(hub_records(task))
    return [record for record in records if is_usable(task, record)]


def draw_records(task: Task, config: Config) -> tuple[list[Record], int | None]:
    """Return the records of a task that are asked, and their number if they are not all of them, else None."""
    records = load_records(task)
    if config.samples is None or config.samples >= len(records):
        return records, None
    return Random(f"{task}:{config.seed}").sample(records, config.samples), config.samples


@register_suite("retrieval", title="answers read out of real documents (Based, Just Read Twice), and offline stand-ins")
class Retrieval(Suite):
    """Questions about a document in the prompt: whether the answer contains the gold one, and the needle score."""

    Config = Config

    def protocol_versions(self, config: Config) -> dict[str, int]:
        """Return the version of prompts and windows."""
        readings = (False, True) if config.twice else (False,)
        return {measured_name(task, twice): PROTOCOL for task in config.tasks for twice in readings}

    def check(self, config: Config, tokenizer: Any) -> None:
        """Raise ValueError if data are not on this machine or an answer does not fit the window. Uses no network.

        Data sets of the Hub are looked up in its cache, and only if HF_HUB_OFFLINE says that the Hub cannot be reached.
        """
        for task in config.tasks:
            if task in STAND_INS:
                records, _ = draw_records(task, config)
                # Only the longest answer is tried; all prompts would take as long as the run's own.
                longest = max(
                    records, key=lambda record: len(record["line"] if "line" in record else record["answers"][0])
                )
                build_prompt(task, longest, tokenizer, config.limit(task))
            elif constants.HF_HUB_OFFLINE:
                hub_records(task)

    def prefetch(self, config: Config, tokenizer: Any, progress: Progress = silent) -> Iterator[Item]:
        """Read each task's data once, which puts the Hub's into its cache, and yield the SHA-256 of its records.

        tokenizer: unused; prompts are made when they are asked.
        """
        for task in config.tasks:
            progress(f"retrieval {task}: {dataset_of(task)}")
            yield hashed_item(f"retrieval {task}", lambda task=task: fingerprint(load_records(task)))

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `contains` of every task, and needle_logprob and needle_gain of those with prompts without the answer.

        All data are loaded and all prompts made before anything is measured.
        """
        tokenizer = tokenizer_of(lm, self.name)
        for task in config.tasks:
            check_prompt_length(lm, "retrieval.limit_tokens", config.limit(task) * (2 if config.twice else 1))
        drawn = {task: draw_records(task, config) for task in config.tasks}
        asked = []
        for task, (records, limit) in drawn.items():
            progress(f"retrieval {task}: making prompts")
            for twice in (False, True) if config.twice else (False,):
                prompts = [build_prompt(task, record, tokenizer, config.limit(task), twice) for record in records]
                tokens = [token_count(tokenizer, prompt.text) for prompt in prompts]
                asked.append((task, prompts, tokens, limit, twice))
        measurements = []
        for task, prompts, tokens, limit, twice in asked:
            progress(f"retrieval {measured_name(task, twice)}: {len(prompts)} samples")
            measurements += score_prompts(lm, task, prompts, tokens, limit, config, twice)
        return measurements


def other_options(task: str, config: Config) -> str | None:
    """Return how a task's options differ from the paper's, or None if they do not or the task is not the paper's."""
    if task in STAND_INS or (config.limit(task), config.max_new_tokens) == (LIMITS.get(task, LIMIT), NEW_TOKENS):
        return None
    return (
        f"{config.limit(task):,} tokens of document and answer and {config.max_new_tokens} of the answer at most, "
        f"where the paper's protocol has {LIMITS.get(task, LIMIT):,} and {NEW_TOKENS}"
    )


def measured_name(task: str, twice: bool) -> str:
    """Return the task name of measurements; one and two readings differ, so tables never mix them."""
    return f"{task}_twice" if twice else task


def score_prompts(
    lm: LM,
    task: Task,
    prompts: list[Prompt],
    tokens: list[int],
    limit: int | None,
    config: Config,
    twice: bool = False,
) -> list[Measurement]:
    """Return the measurements of one task.

    tokens: of each prompt. limit: the number of records if they are not all of the task's.
    """
    name = measured_name(task, twice)
    # The question is outside the window, so a prompt can be longer than a model of the protocol's length reads. It then
    # reads the last tokens, as in the public code.
    longest = getattr(lm, "max_length", None)
    cut = sum(longest is not None and count + config.max_new_tokens > longest for count in tokens)
    reasons = [STAND_INS.get(task), other_options(task, config), TWICE if twice else None]
    fields = {
        "suite": "retrieval",
        "task": name,
        "stand_in": "; ".join(filter(None, reasons)) or None,
        "limit": limit,
        "settings": {
            "dataset": dataset_of(task),
            "items_sha256": fingerprint([prompt.text, prompt.without, prompt.answers] for prompt in prompts),
            "seed": config.seed,
            "limit_tokens": config.limit(task),
            "max_new_tokens": config.max_new_tokens,
            "prompt_tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        }
        # limit_tokens holds for each copy.
        | ({"copies": 2} if twice else {})
        | ({"cut_prompts": cut, "cut_to": longest - config.max_new_tokens} if cut else {}),
    }
    enough = [[[answer] for answer in prompt.answers] for prompt in prompts]
    texts = generate(lm, name, [prompt.text for prompt in prompts], ["\n"], config.max_new_tokens, enough)
    scores = [contains(text, prompt.answers) for text, prompt in zip(texts, prompts, strict=True)]
    probes = [Probe(p.text, p.without, f" {p.answers[0]}") for p in prompts if p.without is not None]
    answers = kept((prompt.text for prompt in prompts), (" or ".join(prompt.answers) for prompt in prompts), texts)
    accuracy = mean_measurement("contains", scores, answers=answers, **fields)
    return [accuracy, *(needle_measurements(lm, probes, **fields) if probes else [])]
