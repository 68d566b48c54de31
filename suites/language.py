"""Language modelling and common-sense reasoning, zero-shot: the paper's table 2, and held-out prose.

Nine of the ten tasks have an offline copy of the paper's own data (`suites.shared.offline`); WikiText has none.
`heldout`, a task of our own, is the word perplexity of the embedded corpus' test split; its baseline is a
unigram model. Both are read in windows of a model's length, as lm-eval's HFLM reads documents; `wikitext_whole` reads
WikiText in one go instead.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from pydantic import Field, PositiveInt, field_validator

from harness.data.corpus import documents
from harness.lm.mixer_lm import require_finite
from harness.records.record import Measurement
from mixers.identity import Neutral
from suites.interface import Baseline, Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared import offline
from suites.shared.items import Item, hashed_item
from suites.shared.lm_requests import Windowed, fingerprint
from suites.shared.lmeval import TASKS_ROOT, lm_settings, load_task, perplexity_measurement, run_tasks, task_measurement

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedTokenizerBase

SUITE = "language"
HELDOUT, WHOLE = "heldout", "wikitext_whole"
ROLLING = ("wikitext", HELDOUT)
"""Tasks that read documents in windows."""
PROTOCOL = 2
"""Version of the rolling tasks. In version 1 runs of ours read documents in one go."""
HELDOUT_STAND_IN = "held-out split of the embedded public-domain prose; not a task of the paper"
WHOLE_STAND_IN = "WikiText's documents read in one go, not in windows; not a task of the paper"


@dataclass(frozen=True)
class Spec:
    """A task of table 2.

    definition: lm-eval's YAML file. metrics: those that the paper prints. averaged: the one in the average column.
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
    """Options of the language suite."""

    tasks: list[str] = Field(default=list(SPECS), min_length=1)
    """Tasks of table 2, `heldout` and `wikitext_whole`."""
    max_length: Annotated[PositiveInt | None, Neutral(None)] = None
    """Tokens of the windows of `wikitext` and `heldout`. null: the training length of a run, the max_length of others.

    An lm-eval model other than ours has the windows of its own max_length, which must agree.
    """
    limit: PositiveInt | None = None
    """Documents per task at most. lm-eval's tasks take the first ones; heldout takes them evenly over its sources."""
    offline: bool | None = None
    """Read the fetched copies (true), the Hub (false), or copies where there are any and the Hub elsewhere (null)."""
    heldout_words: PositiveInt | None = None
    """Words to read of each held-out document, from its beginning; null reads all."""

    @field_validator("tasks")
    @classmethod
    def _known_and_once(cls, tasks: list[str]) -> list[str]:
        for task in tasks:
            if task not in (known := (*SPECS, HELDOUT, WHOLE)):
                raise ValueError(f"unknown task {task!r}; known: {', '.join(known)}")
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"{tasks} names one twice; name each once")
        return tasks


@register_suite(SUITE, title="language modelling and common-sense reasoning, zero-shot: the paper's table 2")
class Language(Suite):
    """Perplexity and accuracy on lm-eval's own tasks, and word perplexity of the embedded corpus' held-out prose."""

    Config = Config

    def protocol_versions(self, config: Config) -> dict[str, int]:
        """Return the version of the tasks that read documents in windows."""
        return {task: PROTOCOL for task in config.tasks if task in ROLLING}

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return the measurements of every task, and the average if all nine of its tasks are among them.

        Raises ValueError that names the task whose data are missing, before anything is measured.
        """
        self.check(config)
        readers = {task: reader(lm, task, config) for task in config.tasks if task in (*ROLLING, WHOLE)}
        loaded = {task: load(task, config.offline) for task in config.tasks if task != HELDOUT}
        measurements: list[Measurement] = []
        for task in config.tasks:
            progress(f"{SUITE}: {task}")
            if task == HELDOUT:
                measurements.append(heldout(*readers[task], config))
                continue
            definition, data = loaded[task]
            reading, settings = readers.get(task, (lm, lm_settings(lm)))
            samples = run_tasks(reading, [definition], config.limit)[task]
            fields = {"suite": SUITE, "stand_in": WHOLE_STAND_IN if task == WHOLE else None}
            settings = {"data": data, **settings}
            metrics = spec_of(task).metrics
            measurements += [task_measurement(samples, metric, settings, **fields) for metric in metrics]
        columns = [m for m in measurements if m.task in AVERAGED and m.metric == SPECS[m.task].averaged]
        if len(columns) == len(AVERAGED):
            measurements.append(average(columns))
        return measurements

    def check(self, config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Raise ValueError if `offline: true` asks for data that are not on this machine. Loads nothing."""
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
        """Load every task once, from the Hub into its cache, or from the offline copy, whose hash is checked."""
        for task in config.tasks:
            if task != HELDOUT:
                yield hashed_item(f"{SUITE} {task}", partial(documents_sha256, task, config.offline))

    def baselines(self, config: Config) -> list[Baseline]:
        """Return the unigram frequencies where the held-out prose is measured."""
        if HELDOUT not in config.tasks:
            return []
        return [Baseline("unigram", "unigram frequencies", lambda tokenizer: [unigram_baseline(tokenizer, config)])]


def spec_of(task: str) -> Spec:
    """Return the specification of a task of lm-eval's."""
    return SPECS["wikitext" if task == WHOLE else task]


def reader(lm: LM, task: str, config: Config) -> tuple[LM, dict[str, Any]]:
    """Return a model that reads the documents of a rolling task as `config` has it, and the settings of its reading.

    Settings: `bos`, whether one BOS comes before a document, or `twice` if the tokenizer adds another one, as HFLM
    lets it; `max_length`, the tokens of a window, null for documents read in one go. Raises ValueError for a model
    that cannot read so.
    """
    if hasattr(lm, "rolling_length"):
        window = None if task == WHOLE else config.max_length or lm.rolling_length
        if window is None and task != WHOLE:
            raise ValueError(f"max_length: null, and the model states no length for {task}; set one, such as 2048")
        return Windowed(lm, window), {"bos": True, "max_length": window}
    own, kind = lm_settings(lm), type(lm).__name__
    if task == WHOLE:
        raise ValueError(f"tasks: {WHOLE}: {kind} reads documents in windows of its max_length; use wikitext")
    if config.max_length not in (None, own["max_length"]):
        raise ValueError(
            f"max_length: {config.max_length}, but {kind} reads windows of {own['max_length']}; load it with "
            f"max_length={config.max_length} (--lm-args)"
        )
    return lm, {"bos": "twice" if own["bos"] else True, "max_length": own["max_length"]}


def documents_sha256(task: str, use_offline: bool | None) -> str:
    """Load a task and return the hash of its documents. Raises ValueError if they cannot be had."""
    definition, _ = load(task, use_offline)
    return fingerprint(definition.eval_docs)


def load(task: str, use_offline: bool | None) -> tuple[Task, str]:
    """Return a task with its data, and their source. Raises ValueError if they cannot be had."""
    spec = spec_of(task)
    copied = task in offline.SOURCES
    if use_offline or (use_offline is None and copied and offline.available()):
        return load_task(TASKS_ROOT / spec.definition, task=task, **offline.overrides(task)), "offline copy"
    try:
        return load_task(TASKS_ROOT / spec.definition, task=task), "Hub"
    except (OSError, ValueError) as error:
        remedy = f"{offline.REMEDY} and set offline: null or true" if copied else "leave it out of tasks"
        raise ValueError(f"tasks: {task} cannot be read from the Hub ({first_line(error)}); {remedy}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def average(columns: list[Measurement]) -> Measurement:
    """Return the paper's Avg.: the plain mean of nine accuracies, with their errors taken as independent."""
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
    """Return the held-out documents as they are scored, and the number of all of them."""
    texts = [document.text for document in documents("test")]
    count = min(config.limit or len(texts), len(texts))
    picked = [texts[i * len(texts) // count] for i in range(count)]
    return [beginning(text, config.heldout_words) for text in picked], len(texts)


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lists of `size` texts; the last one may be shorter."""
    texts = iter(texts)
    while batch := list(islice(texts, size)):
        yield batch


def beginning(text: str, words: int | None) -> str:
    """Return the first `words` words of a text with their spacing, or all of it."""
    if words is None:
        return text
    return text[: max(word.end() for word in islice(re.finditer(r"\S+", text), words))]


def heldout_stand_in(config: Config) -> str:
    """Say why `heldout` is not a measurement of the paper's, and how much of each document it reads."""
    if config.heldout_words is None:
        return HELDOUT_STAND_IN
    return f"{HELDOUT_STAND_IN}; first {config.heldout_words} words of each document"


def heldout_measurement(
    nll: list[float], texts: list[str], total: int, config: Config, reader: dict[str, Any]
) -> Measurement:
    """Return the word perplexity of the held-out texts from their negative log-likelihoods, in nats.

    total: number of all held-out documents. reader: settings of the model that read them.
    """
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


def heldout(lm: LM, settings: dict[str, Any], config: Config) -> Measurement:
    """Measure the word perplexity of the held-out documents, each read alone from its beginning.

    settings: of the reading, as `reader` returns them.
    """
    texts, total = heldout_texts(config)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i, (HELDOUT, i, 1)) for i, text in enumerate(texts)]
    values = [float(value) for value in lm.loglikelihood_rolling(requests)]
    require_finite(requests, values)
    return heldout_measurement([-value for value in values], texts, total, config, settings)


def unigram_baseline(tokenizer: PreTrainedTokenizerBase, config: Config) -> Measurement:
    """Measure `heldout` with token frequencies of the train split, each count plus one (Laplace smoothing)."""
    counts: Counter[int] = Counter()
    for batch in batched((document.text for document in documents("train")), 64):
        counts.update(chain.from_iterable(tokenizer(batch, add_special_tokens=False)["input_ids"]))
    smoothed = np.array([counts[token] + 1 for token in range(len(tokenizer))], dtype=np.float64)
    loss = -np.log(smoothed / smoothed.sum())
    texts, total = heldout_texts(config)
    nll = [float(loss[tokenizer.encode(text, add_special_tokens=False)].sum()) for text in texts]
    return heldout_measurement(nll, texts, total, config, {})
