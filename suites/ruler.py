"""RULER's needles in a haystack: S-NIAH-1/2/3 and MK-NIAH-1, with the continuous needle score beside the accuracy.

Templates and the way a sample is put together are those of RULER (arXiv 2404.06654; NVIDIA/RULER) as lm-eval 0.4.13
runs it (niah_single_1/2/3, niah_multikey_1). The samples are drawn here: each from its own generator, seeded by task,
length, seed and index, so they depend neither on order nor on process nor on how many are asked for, and a length that
cannot be met is an error. Unlike lm-eval's, a sample's length counts the whole prompt, BOS and answer prefix included.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Literal

from lm_eval.api.model import LM
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from harness.records import Measurement
from suites.haystack import NOISE, STAND_IN, Source, essay_sentences
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

Task = Literal["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"]
Steps = Literal["lm_eval", "unit"]

# RULER's wording for one question with one answer.
TEMPLATE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {key} mentioned in the provided text?"
)
PREFIX = " The special magic {kind} for {key} mentioned in the provided text is"
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
# Percent of the essay's sentences before a needle.
DEPTHS = [round(100 * i / 39) for i in range(40)]
PAPER_SAMPLES = 500
# An essay with fewer words than this is shorter than two needles and hides nothing.
FEWEST_WORDS = 20
# Tokens by which samples of one size differ, generously: what an error's remedy adds to the size it has seen.
SLACK = 32
# Changed whenever the same (task, length, seed) would give other prompts.
VERSION = 1


@dataclass(frozen=True)
class Spec:
    """A task: how its haystack is made, what the needles' values are, and how many needles there are."""

    essay: bool
    kind: Literal["number", "uuid"]
    needles: int = 1


SPECS: dict[str, Spec] = {
    "s_niah_1": Spec(essay=False, kind="number"),
    "s_niah_2": Spec(essay=True, kind="number"),
    "s_niah_3": Spec(essay=True, kind="uuid"),
    "mk_niah_1": Spec(essay=True, kind="number", needles=4),
}


class Config(BaseModel):
    """What to measure of RULER.

    tasks, lengths: each task at each length in tokens, answer included. samples: of each, the paper's being 500.
    seed: of the samples. max_new_tokens: kept free for the answer. generate: also generate and score by substring,
    beside the needle score. haystack: what the essay tasks hide needles in. steps: how finely a haystack is made to
    fill its length; `lm_eval` grows essays by 500 words and noise by 5 lines (25 from 4096 on), which leaves up to a
    fifth of 2048 empty and is what the paper's numbers were measured with, `unit` by one word or line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[Task] = Field(default=["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"], min_length=1)
    lengths: list[PositiveInt] = Field(min_length=1)
    samples: PositiveInt = PAPER_SAMPLES
    seed: int = 0
    max_new_tokens: PositiveInt = 128
    generate: bool = True
    haystack: Source = "paul_graham"
    steps: Steps = "lm_eval"

    _each_once = field_validator("tasks", "lengths")(each_once)


@dataclass(frozen=True)
class Sample:
    """A prompt and its gold answer.

    without: the prompt with the needle that is asked for removed, the others kept. tokens: what a model reads for
    the prompt, BOS included. depth: the fraction of the context's characters before the needle.
    """

    prompt: str
    without: str
    answer: str
    key: str
    tokens: int
    depth: float


@cache
def key_parts() -> tuple[list[str], list[str]]:
    """Adjectives and nouns of which RULER makes its keys (wonderwords), sorted."""
    from wonderwords import RandomWord

    words = RandomWord()
    return tuple(sorted(set(words.filter(include_categories=[name]))) for name in ("adjective", "noun"))


def draw_keys(rng: Random, count: int) -> list[str]:
    """Distinct keys, adjective-noun."""
    adjectives, nouns = key_parts()
    picked = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}" for i in picked]


def draw_values(rng: Random, kind: str, count: int) -> list[str]:
    """Distinct values: numbers of seven digits, or UUIDs."""
    if kind == "number":
        return [str(value) for value in rng.sample(range(10**6, 10**7), count)]
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def compose(spec: Spec, rng: Random, size: int, haystack: Source, tokenizer: Any) -> Sample:
    """The sample that `rng` gives with a haystack of `size` words (essays) or lines (noise)."""
    keys, values = draw_keys(rng, spec.needles), draw_values(rng, spec.kind, spec.needles)
    asked = rng.randrange(spec.needles)
    if spec.essay:
        hay, joint = essay_sentences(haystack, size), " "
        places = sorted(len(hay) * depth // 100 for depth in rng.sample(DEPTHS, spec.needles))
    else:
        hay, joint = (NOISE,) * size, "\n"
        places = sorted(rng.sample(range(size), spec.needles))
    order = rng.sample(range(spec.needles), spec.needles)
    pieces, start = [], 0
    for place, index in zip(places, order, strict=True):
        pieces += hay[start:place]
        start = place
        if index == asked:
            at = len(pieces)
        pieces.append(NEEDLE.format(kind=spec.kind, key=keys[index], value=values[index]))
    pieces += hay[start:]

    def prompt(parts: list[str]) -> str:
        return (TEMPLATE + PREFIX).format(kind=spec.kind, context=joint.join(parts), key=keys[asked])

    text = prompt(pieces)
    return Sample(
        prompt=text,
        without=prompt(pieces[:at] + pieces[at + 1 :]),
        answer=values[asked],
        key=keys[asked],
        tokens=token_count(tokenizer, text),
        depth=len(joint.join(pieces[:at])) / len(joint.join(pieces)),
    )


def prompts(
    task: Task,
    length: int,
    n: int,
    seed: int,
    tokenizer: Any,
    *,
    max_new_tokens: int = 128,
    haystack: Source = "paul_graham",
    steps: Steps = "lm_eval",
) -> list[Sample]:
    """`n` samples whose prompt and `max_new_tokens` fit in `length` tokens; see Config.

    As in RULER, the size of the haystack is found on one draw, and a sample that turns out longer is shortened step
    by step. Raises ValueError when the smallest haystack does not fit, or an answer not in `max_new_tokens`.
    """
    spec, room = SPECS[task], length - max_new_tokens
    step = 1 if steps == "unit" else 500 if spec.essay else 5 if length < 4096 else 25
    smallest = max(step, FEWEST_WORDS if spec.essay else spec.needles)

    def sample(index: int | str, size: int) -> Sample:
        return compose(spec, Random(f"{task}:{length}:{seed}:{index}"), size, haystack, tokenizer)

    def fitting(index: int | str, largest: int) -> Sample:
        for size in range(largest, smallest - 1, -step):
            if (found := sample(index, size)).tokens <= room:
                break
        else:
            finer = "" if steps == "unit" else ", or steps: unit"
            raise ValueError(
                f"ruler.lengths: {task} does not fit {length} tokens: its smallest prompt takes {found.tokens} and "
                f"{max_new_tokens} are kept for the answer; use a length of at least "
                f"{found.tokens + max_new_tokens + SLACK}, a smaller max_new_tokens{finer}"
            )
        if (answer := len(encode(tokenizer, f" {found.answer}"))) > max_new_tokens:
            raise ValueError(
                f"ruler.max_new_tokens: {max_new_tokens} cannot hold an answer of {task}, {answer} tokens long; "
                f"use at least {answer + SLACK}"
            )
        return found

    fitting("size", smallest)
    fits, exceeds = smallest, smallest + step
    while sample("size", exceeds).tokens <= room:
        fits, exceeds = exceeds, smallest + 2 * (exceeds - smallest)
    while exceeds - fits > step:
        middle = fits + (exceeds - fits) // step // 2 * step
        if sample("size", middle).tokens <= room:
            fits = middle
        else:
            exceeds = middle
    return [fitting(index, fits) for index in range(n)]


def check(config: Config, tokenizer: Any) -> None:
    """ValueError when a task does not fit a length, or the haystack cannot be had."""
    for task in config.tasks:
        for length in config.lengths:
            prompts(
                task,
                length,
                1,
                config.seed,
                tokenizer,
                max_new_tokens=config.max_new_tokens,
                haystack=config.haystack,
                steps=config.steps,
            )


def run(lm: LM, config: Config, progress: Callable[[str], None] = lambda message: None) -> list[Measurement]:
    """`contains` (with `generate`), needle_logprob and needle_gain of each task and length, on any lm-eval model."""
    tokenizer = tokenizer_of(lm, "ruler")
    check_room(lm, "ruler.lengths", max(config.lengths))
    # Everything is drawn before anything is measured, so a length that cannot be met costs no time on the model.
    drawn = {
        (task, length): prompts(
            task,
            length,
            config.samples,
            config.seed,
            tokenizer,
            max_new_tokens=config.max_new_tokens,
            haystack=config.haystack,
            steps=config.steps,
        )
        for task in config.tasks
        for length in config.lengths
    }
    results = []
    for (task, length), samples in drawn.items():
        progress(f"ruler {task}@{length}: {len(samples)} samples")
        results += score(lm, task, length, samples, config)
    return results


def score(lm: LM, task: Task, length: int, samples: list[Sample], config: Config) -> list[Measurement]:
    """The measurements of one task at one length."""
    essay = SPECS[task].essay
    tokens = [sample.tokens for sample in samples]
    rest = {
        "suite": "ruler",
        "length": length,
        "stand_in": STAND_IN if essay and config.haystack == "corpus" else None,
        "limit": config.samples if config.samples < PAPER_SAMPLES else None,
        "settings": {
            "prompts": f"ruler-niah-{VERSION}",
            "items_sha256": fingerprint([sample.prompt, sample.without, sample.answer] for sample in samples),
            "seed": config.seed,
            "max_new_tokens": config.max_new_tokens,
            "haystack": config.haystack if essay else "noise",
            "steps": config.steps,
            "prompt_tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        },
    }
    results = []
    if config.generate:
        questions = [sample.prompt for sample in samples]
        texts = generate(lm, task, questions, until=[], max_new_tokens=config.max_new_tokens)
        found = [contains(text, [sample.answer]) for text, sample in zip(texts, samples, strict=True)]
        results.append(measure("contains", found, task=task, **rest))
    probes = [Probe(sample.prompt, sample.without, f" {sample.answer}") for sample in samples]
    return results + needle_measurements(lm, probes, task, **rest)
