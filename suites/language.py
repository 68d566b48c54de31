"""Language modelling and common-sense reasoning, zero-shot: the paper's table 2, and held-out prose.

Nine of the ten tasks have an offline copy of the paper's own data (`suites.shared.offline`); WikiText has none.
`heldout` is the word perplexity of the embedded corpus' test split, a task of ours, and so is its baseline without any
context.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from pydantic import Field, PositiveInt, field_validator
from transformers import PreTrainedTokenizerBase

from harness.data.corpus import documents
from harness.records.record import Measurement
from suites.interface import Baseline, Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared import offline
from suites.shared.items import Item, hashed_item
from suites.shared.lm_requests import fingerprint
from suites.shared.lmeval import TASKS_ROOT, lm_settings, load_task, perplexity_measurement, run_tasks, task_measurement

SUITE = "language"
HELDOUT = "heldout"
HELDOUT_STAND_IN = "held-out split of the embedded public-domain prose; not a task of the paper"


@dataclass(frozen=True)
class Spec:
    """A task of table 2: lm-eval's definition of it, and the metrics that the paper prints.

    averaged: the metric that enters the average column.
    """

    definition: str
    metrics: tuple[str, ...]
    averaged: str | None


SPECS: dict[str, Spec] = {
    "wikitext": Spec("wikitext/wikitext.yaml", ("word_perplexity",), None),
    "lambada": Spec("lambada/lambada_openai.yaml", ("perplexity", "acc"), "acc"),
    "piqa": Spec("piqa/piqa.yaml", ("acc",), "acc"),
    "hellaswag": Spec("hellaswag/hellaswag.yaml", ("acc_norm",), "acc_norm"),
    "winogrande": Spec("winogrande/default.yaml", ("acc",), "acc"),
    "arc_easy": Spec("arc/arc_easy.yaml", ("acc",), "acc"),
    "arc_challenge": Spec("arc/arc_challenge.yaml", ("acc",), "acc"),
    "openbookqa": Spec("openbookqa/openbookqa.yaml", ("acc",), "acc"),
    "social_iqa": Spec("siqa/siqa.yaml", ("acc",), "acc"),
    "boolq": Spec("super_glue/boolq/default.yaml", ("acc",), "acc"),
}
AVERAGED = tuple(task for task, spec in SPECS.items() if spec.averaged)


class Config(SuiteConfig):
    """What to measure.

    tasks: of SPECS, and `heldout`. limit: documents of each task at most; lm-eval's tasks take the first ones,
    heldout takes them evenly over its sources. offline: read the fetched copies (true), the Hub (false), or the
    copies where there are any (null). heldout_words: words of each held-out document that are read, from its
    beginning; null is all.
    """

    tasks: list[str] = Field(default=list(SPECS), min_length=1)
    limit: PositiveInt | None = None
    offline: bool | None = None
    heldout_words: PositiveInt | None = None

    @field_validator("tasks")
    @classmethod
    def _known_and_once(cls, tasks: list[str]) -> list[str]:
        for task in tasks:
            if task not in SPECS and task != HELDOUT:
                raise ValueError(f"unknown task {task!r}; known: {', '.join([*SPECS, HELDOUT])}")
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"{tasks} names one twice; a run has one value of a metric, name each once")
        return tasks


@register_suite(SUITE, title="language modelling and common-sense reasoning, zero-shot: the paper's table 2")
class Language(Suite):
    """Perplexity and accuracy on lm-eval's own tasks, and word perplexity of the embedded corpus' held-out prose."""

    Config = Config

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """The measurements of every task, and the average column when all nine of its tasks are there.

        Raises ValueError naming the task whose data cannot be had, before anything is measured.
        """
        self.check(config)
        loaded = {task: load(task, config.offline) for task in config.tasks if task != HELDOUT}
        found: list[Measurement] = []
        for task in config.tasks:
            progress(f"{SUITE}: {task}")
            if task == HELDOUT:
                found.append(heldout(lm, config))
                continue
            definition, data = loaded[task]
            samples = run_tasks(lm, [definition], config.limit)[task]
            settings = {"data": data, **lm_settings(lm)}
            found += [task_measurement(samples, metric, settings, suite=SUITE) for metric in SPECS[task].metrics]
        columns = [m for m in found if m.task in AVERAGED and m.metric == SPECS[m.task].averaged]
        if len(columns) == len(AVERAGED):
            found.append(average(columns))
        return found

    def check(self, config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """ValueError when offline data are asked for that are not there; nothing is loaded."""
        if not config.offline:
            return
        for task in config.tasks:
            if task != HELDOUT and task not in offline.SOURCES:
                raise ValueError(
                    f"tasks: {task} has no offline copy; leave it out, or set offline: null and reach the Hub"
                )
            if task != HELDOUT and not offline.available():
                raise ValueError(f"offline: true, but the language tasks are not on this machine; {offline.REMEDY}")

    def prefetch(
        self, config: Config, tokenizer: PreTrainedTokenizerBase | None, progress: Progress = silent
    ) -> Iterator[Item]:
        """Loads every task once: from the Hub, whose cache keeps it, or from the offline copy, which is checked."""
        for task in config.tasks:
            if task != HELDOUT:
                yield hashed_item(f"{SUITE} {task}", partial(documents_sha256, task, config.offline))

    def baselines(self, config: Config) -> list[Baseline]:
        """Return the unigram frequencies where the held-out prose is measured."""
        if HELDOUT not in config.tasks:
            return []
        return [Baseline("unigram", "unigram frequencies", lambda tokenizer: [unigram_baseline(tokenizer, config)])]


def documents_sha256(task: str, use_offline: bool | None) -> str:
    """The hash of a task's documents, once they are on this machine. Raises ValueError when they cannot be had."""
    definition, _ = load(task, use_offline)
    return fingerprint(definition.eval_docs)


def load(task: str, use_offline: bool | None) -> tuple[Task, str]:
    """A task with its data, and where these are from."""
    spec = SPECS[task]
    copied = task in offline.SOURCES
    if use_offline or (use_offline is None and copied and offline.available()):
        return load_task(TASKS_ROOT / spec.definition, task=task, **offline.overrides(task)), "offline copy"
    try:
        return load_task(TASKS_ROOT / spec.definition, task=task), "Hub"
    except (OSError, ValueError) as error:
        remedy = f"{offline.REMEDY} and set offline: null or true" if copied else "leave it out of tasks"
        raise ValueError(f"tasks: {task} cannot be read from the Hub ({first_line(error)}); {remedy}") from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def average(columns: list[Measurement]) -> Measurement:
    """The paper's Avg.: the plain mean of the nine accuracies, errors added as of independent sets."""
    variance = sum((m.stderr or 0.0) ** 2 for m in columns)
    limits = [m.limit for m in columns if m.limit is not None]
    return Measurement(
        suite=SUITE,
        task="avg",
        metric="acc",
        value=sum(m.value for m in columns) / len(columns),
        stderr=None if any(m.stderr is None for m in columns) else math.sqrt(variance) / len(columns),
        n=sum(m.n for m in columns),
        limit=max(limits, default=None),
        settings={"of": {m.task: {"metric": m.metric, **m.settings} for m in columns}},
    )


def heldout_texts(config: Config) -> tuple[list[str], int]:
    """The held-out documents as they are scored, and how many there are in all."""
    texts = [document.text for document in documents("test")]
    count = min(config.limit or len(texts), len(texts))
    picked = [texts[i * len(texts) // count] for i in range(count)]
    return [beginning(text, config.heldout_words) for text in picked], len(texts)


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` texts, the last one shorter."""
    texts = iter(texts)
    while batch := list(islice(texts, size)):
        yield batch


def beginning(text: str, words: int | None) -> str:
    """The first so many words of a text, spacing untouched."""
    if words is None:
        return text
    return text[: max(word.end() for word in islice(re.finditer(r"\S+", text), words))]


def heldout_stand_in(config: Config) -> str:
    """Why `heldout` is not the paper's, and how much of each document it reads where not all of it."""
    if config.heldout_words is None:
        return HELDOUT_STAND_IN
    return f"{HELDOUT_STAND_IN}; first {config.heldout_words} words of each document"


def heldout_measurement(
    nll: list[float], texts: list[str], total: int, config: Config, reader: dict[str, Any]
) -> Measurement:
    return perplexity_measurement(
        "word_perplexity",
        nll,
        [len(text.split()) for text in texts],
        suite=SUITE,
        task=HELDOUT,
        stand_in=heldout_stand_in(config),
        limit=len(texts) if len(texts) < total else None,
        settings={
            "items_sha256": fingerprint(texts),
            "data": "embedded corpus, test split",
            "heldout_words": config.heldout_words,
            **reader,
        },
    )


def heldout(lm: LM, config: Config) -> Measurement:
    """Word perplexity of the held-out documents, each read alone from its beginning."""
    texts, total = heldout_texts(config)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i, (HELDOUT, i, 1)) for i, text in enumerate(texts)]
    nll = [-float(value) for value in lm.loglikelihood_rolling(requests)]
    return heldout_measurement(nll, texts, total, config, lm_settings(lm))


def unigram_baseline(tokenizer: PreTrainedTokenizerBase, config: Config) -> Measurement:
    """`heldout` of a model without context: token frequencies of the train split, one added to each (Laplace)."""
    counts: Counter[int] = Counter()
    for batch in batched((document.text for document in documents("train")), 64):
        counts.update(chain.from_iterable(tokenizer(batch, add_special_tokens=False)["input_ids"]))
    smoothed = np.array([counts[token] + 1 for token in range(len(tokenizer))], dtype=np.float64)
    loss = -np.log(smoothed / smoothed.sum())
    texts, total = heldout_texts(config)
    nll = [float(loss[tokenizer.encode(text, add_special_tokens=False)].sum()) for text in texts]
    return heldout_measurement(nll, texts, total, config, {})
