"""RULER's thirteen tasks, with the continuous needle score beside the accuracy.

The paper's are S-NIAH-1/2/3 and MK-NIAH-1. Samples are made once for a tokenizer, task, length, seed and options, and
kept with their hash under the project's cache (`suites.ruler.samples`); what they say is in `suites.ruler.tasks`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from lm_eval.api.model import LM
from pydantic import Field, PositiveInt, field_validator

from harness.data.tokenizer import tokenizer_hash
from harness.files import cache_dir, file_sha256
from harness.records.record import Measurement
from harness.records.units import unit_name
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.ruler.haystack import COPY, COPY_STAND_IN, HUB, STAND_IN, Source, Unreachable
from suites.ruler.samples import Steps, prompts, read_samples, write_samples
from suites.ruler.tasks import SPECS, VERSION, Sample
from suites.shared.items import Item, hashed_item
from suites.shared.lm_requests import (
    check_distinct,
    check_prompt_length,
    contains,
    fingerprint,
    generate,
    mean_measurement,
    tokenizer_of,
)
from suites.shared.needle import Probe, needle_measurements

Task = Literal[
    "s_niah_1",
    "s_niah_2",
    "s_niah_3",
    "mk_niah_1",
    "mk_niah_2",
    "mk_niah_3",
    "mv_niah",
    "mq_niah",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
]
T = TypeVar("T")

PAPER_SAMPLES = 500


class Config(SuiteConfig):
    """What to measure of RULER.

    tasks, lengths: each task at each length in tokens, answer included; no lengths are the paper's, which differ by
    task, and 4096 for tasks that it leaves out. samples: of each, the paper's being 500. seed: of the samples.
    max_new_tokens: kept free for the answer; null is RULER's own number for each task. generate: also generate and
    score by substring, beside the log-likelihood of the answers. haystack: what the essay tasks hide needles in; qa_1's
    passages are the Hub's, or a stand-in where it does not answer. steps: how finely a context is made to fill its
    length; `lm_eval` grows essays by 500 words, noise and needles by 5 lines (25 from 4096 on), the rest by 10 lines,
    words or documents (fwe: a 32nd of the length), which leaves up to a fifth of 2048 empty and is what the paper's
    numbers were measured with, `unit` by one.
    """

    tasks: list[Task] = Field(default=["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"], min_length=1)
    lengths: list[PositiveInt] | None = Field(default=None, min_length=1)
    samples: PositiveInt = PAPER_SAMPLES
    seed: int = 0
    max_new_tokens: PositiveInt | None = None
    generate: bool = True
    haystack: Source = "paul_graham"
    steps: Steps = "lm_eval"

    @field_validator("tasks", "lengths")
    @classmethod
    def _each_once(cls, values: list[Any] | None) -> list[Any] | None:
        return values and check_distinct(values)

    def pairs(self) -> list[tuple[Task, int]]:
        """Every task with each of its lengths."""
        return [(task, length) for task in self.tasks for length in self.lengths or SPECS[task].lengths]

    def room(self, task: str) -> int:
        """Tokens kept free for the answers of a task."""
        return self.max_new_tokens or SPECS[task].max_new_tokens


@register_suite("ruler", title="RULER's needles, variable tracking, counting and questions, by context length")
class Ruler(Suite):
    """RULER at each length of context: accuracy by substring, and how likely the needle makes its answer."""

    Config = Config

    def units(self, config: Config) -> dict[str, Config]:
        """Return each length alone, with the samples that it has among the others."""
        tasks: dict[int, list[Task]] = {}
        for task, length in config.pairs():
            tasks.setdefault(length, []).append(task)
        return {
            unit_name(self.name, length): config.model_copy(update={"tasks": at_length, "lengths": [length]})
            for length, at_length in sorted(tasks.items())
        }

    def check(self, config: Config, tokenizer: Any) -> None:
        """Raise ValueError if a task does not fit a length, or its haystack or passages are missing. Keeps nothing."""
        for task, length in config.pairs():

            def first(source: str, task: str = task, length: int = length) -> list[Sample]:
                found = read_samples(sample_file(task, length, source, config, tokenizer))
                return found or draw(task, length, source, config, tokenizer, 1)

            from_sources(task, config, first)

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `contains` (with `generate`) and needle_logprob of each task and length.

        Tasks whose needles can be taken out get needle_gain as well.
        """
        tokenizer = tokenizer_of(lm, self.name)
        check_prompt_length(lm, "ruler.lengths", max(length for _, length in config.pairs()))
        # Everything is drawn before anything is measured, so a length that cannot be met costs no time on the model.
        drawn = {pair: samples(*pair, config, tokenizer, progress) for pair in config.pairs()}
        results = []
        for (task, length), (source, found) in drawn.items():
            progress(f"ruler {task}@{length}: {len(found)} samples")
            results += score(lm, task, length, source, found, config)
        return results

    def prefetch(self, config: Config, tokenizer: Any, progress: Progress = silent) -> Iterator[Item]:
        """Freezes the samples of every task and length, which also brings what they are made from."""
        for task, length in config.pairs():

            def freeze(task: str = task, length: int = length) -> str:
                if tokenizer is None:
                    raise ValueError("its samples are sized with the tokenizer; get that first")
                source, _ = samples(task, length, config, tokenizer, progress)
                if source == COPY:
                    progress(f"ruler {task}@{length}: the Hub does not answer; {COPY_STAND_IN}")
                return file_sha256(sample_file(task, length, source, config, tokenizer))

            yield hashed_item(f"ruler {task}@{length}", freeze)


def samples(
    task: str, length: int, config: Config, tokenizer: Any, progress: Progress = silent
) -> tuple[str, list[Sample]]:
    """The source of a task's samples at a length, and the samples: those kept, else drawn anew and kept."""

    def get(source: str) -> list[Sample]:
        path = sample_file(task, length, source, config, tokenizer)
        found = read_samples(path, progress)
        if found is None:
            found = draw(task, length, source, config, tokenizer, config.samples)
            if path is not None:
                write_samples(path, found, progress)
        return found

    return from_sources(task, config, get)


def from_sources(task: str, config: Config, get: Callable[[str], T]) -> tuple[str, T]:
    """What the first source of a task's haystack or passages that can be reached gives, and that source."""
    spec = SPECS[task]
    sources: Sequence[str] = (config.haystack if spec.hay == "essay" else spec.hay,)
    if spec.family == "qa":
        sources = (HUB, COPY) if spec.hay == "squad" else (HUB,)
    for source in sources[:-1]:
        try:
            return source, get(source)
        except Unreachable:
            continue
    return sources[-1], get(sources[-1])


def draw(task: str, length: int, source: str, config: Config, tokenizer: Any, n: int) -> list[Sample]:
    return prompts(
        task, length, n, config.seed, tokenizer, source=source, max_new_tokens=config.room(task), steps=config.steps
    )


def sample_file(task: str, length: int, source: str, config: Config, tokenizer: Any) -> Path | None:
    """Where the samples lie, its name telling apart whatever would give others; None for a tokenizer without a hash."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return None
    identity = [VERSION, task, length, config.seed, source, config.room(task), config.steps, config.samples]
    digest = hashlib.sha256(json.dumps([*identity, tokenizer_hash(tokenizer)]).encode()).hexdigest()
    return cache_dir() / "ruler" / f"{task}-{length}-{digest[:16]}.jsonl"


def matched(task: str, text: str, answers: Sequence[str]) -> float:
    """RULER's score of an answer, ignoring case: the fraction of the gold answers that it contains (string_match_all),
    of qa whether it contains any (string_match_part).

    Any, as in NVIDIA's; lm-eval 0.4.13 takes the fraction of qa's gold answers, too.
    """
    if SPECS[task].family == "qa":
        return contains(text, answers)
    return sum(contains(text, [answer]) for answer in answers) / len(answers)


def settled(task: str, answers: Sequence[str]) -> list[list[str]]:
    """Lists of strings of which a text needs all of one for the full score of `matched`."""
    return [[answer] for answer in answers] if SPECS[task].family == "qa" else [list(answers)]


def stand_in(task: str, source: str) -> str | None:
    """Why samples from a source are not RULER's own, if they are not."""
    if SPECS[task].family == "qa":
        return COPY_STAND_IN if source == COPY else None
    return STAND_IN if SPECS[task].hay == "essay" and source == "corpus" else None


def score(lm: LM, task: str, length: int, source: str, found: list[Sample], config: Config) -> list[Measurement]:
    """The measurements of one task at one length."""
    spec = SPECS[task]
    tokens = [sample.tokens for sample in found]
    rest = {
        "suite": "ruler",
        "length": length,
        "stand_in": stand_in(task, source),
        "limit": config.samples if config.samples < PAPER_SAMPLES else None,
        "settings": {
            "prompts": f"ruler-{spec.family}-{VERSION}",
            "items_sha256": fingerprint([sample.prompt, sample.without, *sample.answers] for sample in found),
            "seed": config.seed,
            "max_new_tokens": config.room(task),
            "haystack": f"{spec.hay}, {source}" if spec.family == "qa" else source,
            "steps": config.steps,
            "prompt_tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        },
    }
    results = []
    if config.generate:
        questions = [sample.prompt for sample in found]
        enough = [settled(task, sample.answers) for sample in found]
        texts = generate(lm, task, questions, until=[], max_new_tokens=config.room(task), enough=enough)
        scores = [matched(task, text, sample.answers) for text, sample in zip(texts, found, strict=True)]
        results.append(mean_measurement("contains", scores, task=task, **rest))
    probes = [Probe(sample.prompt, sample.without, sample.continuation) for sample in found]
    return results + needle_measurements(lm, probes, task, **rest)
