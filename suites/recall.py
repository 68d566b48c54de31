"""Recall from context, as harness.data.synthetic trains it: mqar, overwrite, protect and interference in words of the
model's vocabulary.

A sample lists writes of values to keys and then names one key; the model recalls when the most likely next token, out
of its whole vocabulary, is the value written to that key last. `overwrite` asks for rewritten keys and `protect` for
the protected ones. In training they ask for all, so that no model learns to keep only those.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from pydantic import Field, PositiveInt, field_validator, model_validator
from transformers import PreTrainedTokenizerBase

from harness.data.synthetic import TASKS, Words, recall_words, sample_text
from harness.records.record import Measurement
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared.lm_requests import check_distinct, fingerprint, mean_measurement, tokenizer_of


class Config(SuiteConfig):
    """Difficulties of every task, one that has none being left out: pairs of mqar, rewrites of overwrite, writes of
    protect, shared of interference. samples: of each difficulty. seed: of the samples."""

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


@register_suite("recall", title="recall from context: mqar, overwrite, protect, interference in the model's words")
class Recall(Suite):
    """How often the most likely next token is the value that the context wrote to a key last."""

    Config = Config

    def check(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the tokenizer has too few words, or a difficulty cannot be drawn from them."""
        words = recall_words(tokenizer)
        for task, difficulty in config.difficulties:
            questions(words, task, difficulty, 1, config.seed)

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `acc` of every task at every difficulty, and `stale` of overwrite.

        `stale` is the fraction of samples whose most likely next token is an overwritten value. A measurement's length
        is its difficulty. Raises ValueError if the model's vocabulary has too few words that are single tokens.
        """
        words = recall_words(tokenizer_of(lm, self.name))
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
                mean_measurement(metric, scores, suite=self.name, task=task, length=difficulty, settings=settings)
                for metric, scores in found.items()
            ]
        return results
