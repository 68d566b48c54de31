"""Recall from context: mqar, overwrite, protect and interference, in words of the model's vocabulary.

The tasks are those that `harness.data.synthetic` trains. A sample writes values to keys and then names one key, after a
marker. The model recalls if its most likely next token, out of the whole vocabulary, is the value last written to that
key.
`overwrite` asks for rewritten keys only and `protect` for protected keys only; in training they ask for all keys, so no
model learns to keep just those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated, Literal

from lm_eval.api.instance import Instance
from pydantic import Field, PositiveInt, field_validator, model_validator

from harness.data.synthetic import TASKS, Questions, question, recall_words, sample_text
from harness.experiments.closed import Seed
from harness.lm.mixer_lm import require_finite
from harness.records.answers import MOST_ANSWERS, kept
from harness.records.record import LENGTH_UNIT, Measurement
from mixers.identity import Neutral
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared.lm_requests import check_distinct, fingerprint, generate, mean_measurement, tokenizer_of

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

Split = Literal["test", "validation"]


class Config(SuiteConfig):
    """Options of the recall suite. A task without difficulties is left out."""

    pairs: list[PositiveInt] = Field(default=[4, 8, 16, 32])
    """Difficulties of mqar: pairs of key and value."""
    rewrites: list[PositiveInt] = []
    """Difficulties of overwrite: times that some keys are rewritten."""
    writes: list[PositiveInt] = []
    """Difficulties of protect: later writes to other keys."""
    shared: list[PositiveInt] = []
    """Difficulties of interference: side of the grids of words that keys are made of."""
    samples: PositiveInt = 500
    """Samples per difficulty."""
    seed: Seed = 0
    """Seed of the samples."""
    split: Annotated[Split, Neutral("test")] = "test"
    """Samples to score: `test` for reports, `validation` for choices such as a learning rate."""

    questions: Annotated[Questions, Neutral("bare")] = "marked"
    """Questions of a key alone (`bare`), or with a marker before it, as training rows have them."""

    _each_once = field_validator("pairs", "rewrites", "writes", "shared")(check_distinct)

    @model_validator(mode="after")
    def _something(self) -> Config:
        if not self.difficulties:
            raise ValueError("pairs, rewrites, writes, shared: all are empty; give one of them a difficulty")
        return self

    @property
    def difficulties(self) -> list[tuple[str, int]]:
        """Every (task, difficulty), in the order of the tasks."""
        by_task = {"mqar": self.pairs, "overwrite": self.rewrites, "protect": self.writes, "interference": self.shared}
        return [(task, difficulty) for task, difficulties in by_task.items() for difficulty in difficulties]


@dataclass(frozen=True)
class Question:
    """A sample: a listing with a question, and the answer.

    context: the listing and the question. answer: the key's value. old: its overwritten values, if the task rewrites.
    """

    context: str
    answer: str
    old: tuple[str, ...] = ()


def questions(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    difficulty: int,
    count: int,
    seed: int,
    split: Split = "test",
    form: Questions = "marked",
) -> list[Question]:
    """Draw `count` samples of a task. They depend on the arguments alone."""
    words = recall_words(tokenizer)
    stream = {"test": "evaluation", "validation": "validation"}[split]
    drawn = []
    for index in range(count):
        rng = Random(f"{task} {stream} {seed} {difficulty} {index}")
        sample = TASKS[task].draw(rng, words, difficulty)
        key = rng.choice(sample.asked)
        old = tuple(sample_text([value]) for value in sample.old_values(key))
        context = sample_text([*sample.listing, *question(tokenizer, key, form)])
        drawn.append(Question(context, sample_text([sample.answers[key]]), old))
    return drawn


def said(lm: LM, task: str, contexts: Sequence[str], known: Sequence[str | None]) -> list[str]:
    """The most likely next word after each context: the known one, or else the one that the model is asked for."""
    unknown = [i for i in range(len(contexts)) if known[i] is None]
    words = generate(lm, f"{task} in words", [contexts[i] for i in unknown], until=[], max_new_tokens=1)
    found = {i: word.strip() for i, word in zip(unknown, words, strict=True)}
    return [found[i] if i in found else str(known[i]).strip() for i in range(len(contexts))]


@register_suite("recall", title="recall from context: mqar, overwrite, protect, interference in the model's words")
class Recall(Suite):
    """How often the most likely next token is the value that the context wrote to a key last."""

    Config = Config

    def check(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the tokenizer has too few words, or a difficulty cannot be drawn from them."""
        for task, difficulty in config.difficulties:
            questions(tokenizer, task, difficulty, 1, config.seed)

    def validation(self, config: Config) -> Config:
        """Return the same tasks with samples of the split `validation`."""
        return config.model_copy(update={"split": "validation"})

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `acc` of every task at every difficulty, and `stale` of overwrite.

        `stale` is the fraction of samples whose most likely next token is an overwritten value. A measurement's length
        is its difficulty. Raises ValueError if the model's vocabulary has too few words that are single tokens, and
        NotFinite with task and sample if a log-likelihood is not finite.
        """
        tokenizer, results = tokenizer_of(lm, self.name), []
        for task, difficulty in config.difficulties:
            progress(f"recall {task}@{difficulty}: {config.samples} samples")
            drawn = questions(tokenizer, task, difficulty, config.samples, config.seed, config.split, config.questions)
            candidates = [(i, text) for i, each in enumerate(drawn) for text in (each.answer, *each.old)]
            instances = [
                Instance("loglikelihood", {}, (drawn[i].context, text), at, (f"{task}@{difficulty}", at, 1))
                for at, (i, text) in enumerate(candidates)
            ]
            answers = lm.loglikelihood(instances)
            require_finite(instances, [value for value, _ in answers])
            acc, stale = [0.0] * len(drawn), [0.0] * len(drawn)
            for (i, text), (_, greedy) in zip(candidates, answers, strict=True):
                if greedy:
                    (acc if text == drawn[i].answer else stale)[i] = 1.0
            words = [each.answer if right else None for each, right in zip(drawn, acc, strict=True)]
            answers = kept(
                (each.context for each in drawn),
                (each.answer.strip() for each in drawn),
                said(lm, f"{task}@{difficulty}", [each.context for each in drawn[:MOST_ANSWERS]], words),
            )
            items = [(each.context, each.answer, *each.old) for each in drawn]
            settings = {"items_sha256": fingerprint(items), LENGTH_UNIT: TASKS[task].unit}
            scored = {"acc": acc, "stale": stale} if task == "overwrite" else {"acc": acc}
            results += [
                mean_measurement(
                    metric,
                    scores,
                    suite=self.name,
                    task=task,
                    length=difficulty,
                    settings=settings,
                    answers=answers if metric == "acc" else None,
                )
                for metric, scores in scored.items()
            ]
        return results
