"""Recall from context, as harness.data.synthetic trains it: mqar, overwrite, protect and interference in words of the
model's vocabulary.

A sample lists writes of values to keys and then names one key; the model recalls when the most likely next token, out
of its whole vocabulary, is the value written to that key last. `overwrite` asks for rewritten keys and `protect` for
the protected ones. In training they ask for all, so that no model learns to keep only those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from transformers import PreTrainedTokenizerBase

from harness.data.synthetic import TASKS, Words, recall_words, sample_text
from harness.records.store import Measurement
from suites.shared.lm_requests import check_distinct, fingerprint, mean_measurement, tokenizer_of

SUITE = "recall"


class Config(BaseModel):
    """Difficulties of every task, one that has none being left out: pairs of mqar, rewrites of overwrite, writes of
    protect, shared of interference. samples: of each difficulty. seed: of the samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: list[PositiveInt] = Field(default=[4, 8, 16, 32])
    rewrites: list[PositiveInt] = []
    writes: list[PositiveInt] = []
    shared: list[PositiveInt] = []
    samples: PositiveInt = 500
    seed: int = 0

    _each_once = field_validator("pairs", "rewrites", "writes", "shared")(check_distinct)

    @model_validator(mode="after")
    def _something(self) -> Config:
        if not self.difficulties:
            raise ValueError("pairs, rewrites, writes, shared: all are empty; give one of them a difficulty")
        return self

    @property
    def difficulties(self) -> list[tuple[str, int]]:
        """(task, difficulty) of all that is asked, in the order of the tasks."""
        of = {"mqar": self.pairs, "overwrite": self.rewrites, "protect": self.writes, "interference": self.shared}
        return [(task, difficulty) for task, difficulties in of.items() for difficulty in difficulties]


@dataclass(frozen=True)
class Question:
    """context: listing and key. answer: its value. old: values that the key had before, for a task that rewrites."""

    context: str
    answer: str
    old: tuple[str, ...] = ()


def questions(words: Words, task: str, difficulty: int, count: int, seed: int) -> list[Question]:
    """`count` samples of a task, a function of the arguments alone."""
    drawn = []
    for index in range(count):
        rng = Random(f"{task} evaluation {seed} {difficulty} {index}")
        sample = TASKS[task].draw(rng, words, difficulty)
        key = rng.choice(sample.asked)
        old = tuple(sample_text([value]) for value in sample.old_values(key))
        drawn.append(Question(sample_text([*sample.listing, *key]), sample_text([sample.answers[key]]), old))
    return drawn


def check(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError when the tokenizer has too few words, or a difficulty cannot be drawn from them."""
    words = recall_words(tokenizer)
    for task, difficulty in config.difficulties:
        questions(words, task, difficulty, 1, config.seed)


def run(lm: LM, config: Config, progress: Callable[[str], None] = lambda message: None) -> list[Measurement]:
    """`acc` of every task at every difficulty, which the measurements carry as their length, on any lm-eval model; of
    overwrite also `stale`, how often the most likely next token is a value that was overwritten.

    Raises ValueError when the model's vocabulary has too few words that are single tokens.
    """
    words = recall_words(tokenizer_of(lm, SUITE))
    results = []
    for task, difficulty in config.difficulties:
        progress(f"recall {task}@{difficulty}: {config.samples} samples")
        drawn = questions(words, task, difficulty, config.samples, config.seed)
        candidates = [(i, text) for i, question in enumerate(drawn) for text in (question.answer, *question.old)]
        instances = [
            Instance("loglikelihood", {}, (drawn[i].context, text), at, (task, at, 1))
            for at, (i, text) in enumerate(candidates)
        ]
        acc, stale = [0.0] * len(drawn), [0.0] * len(drawn)
        for (i, text), (_, greedy) in zip(candidates, lm.loglikelihood(instances), strict=True):
            if greedy:
                (acc if text == drawn[i].answer else stale)[i] = 1.0
        items = [(question.context, question.answer, *question.old) for question in drawn]
        settings = {"items_sha256": fingerprint(items), "length_unit": TASKS[task].unit}
        found = {"acc": acc, "stale": stale} if task == "overwrite" else {"acc": acc}
        results += [
            mean_measurement(metric, scores, suite=SUITE, task=task, length=difficulty, settings=settings)
            for metric, scores in found.items()
        ]
    return results
