"""Tuning: the values that every model of an experiment tries before its reported runs, and how one is chosen.

A trial is an ordinary run: a model with one combination of the grid's values, on a seed of its own and a share of the
tokens, evaluated on data that no report reads. The combination with the best mean over its seeds is chosen. Reported
runs use it on their own seeds, so that having been selected does not flatter them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from harness.experiments.closed import Closed, Seed
from harness.records.metrics import METRICS
from mixers.identity import INCIDENTAL, identity

RECIPE, OPTION = "train", "options"
"""What the fields of a grid begin with: a field of the recipe, or an option of the mixer."""

Values = dict[str, Any]
"""A value for each field of a grid, such as {"train.lr": 0.003}."""


class Choice(Closed):
    """The score by which values are chosen: the mean of a metric of one task, on the suite's validation split."""

    suite: str
    """Suite that measures the trials; it must have a validation split."""

    task: str
    """Task of the suite."""

    metric: str
    """Metric of the task. Its direction says whether more or less is better."""

    lengths: list[PositiveInt] | None = None
    """Lengths or difficulties of the task to average over: those that training saw. All that are measured if left
    out."""

    options: dict[str, Any] = {}
    """Options of the suite for trials, over the experiment's own: fewer lengths, fewer samples."""

    @field_validator("metric")
    @classmethod
    def _declared(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"{metric!r} is not declared by any suite; use one of {', '.join(METRICS)}")
        return metric


class Tuning(Closed):
    """The trials of an experiment: a grid, the seeds to try it on, and the score to choose by."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    """Values to try by field, `train.FIELD` of the recipe or `options.FIELD` of the mixer. Every model tries every
    combination."""

    seeds: list[Seed] = Field(min_length=2)
    """Seeds of the trials, at least two; none may be a seed of the experiment."""

    choose: Choice
    """How values are chosen."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the experiment's tokens that a trial is trained on."""

    preset: str | None = None
    """Scale at which the trials run; the values are then carried over to the experiment's other scales. Left out, every
    scale has trials of its own."""

    @field_validator("grid")
    @classmethod
    def _known_fields(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in grid.items():
            part, dot, field = name.partition(".")
            if part not in (RECIPE, OPTION) or not dot or not field:
                raise ValueError(f"{name!r} is no field; name it {RECIPE}.FIELD or {OPTION}.FIELD")
            if any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"{name}: {values} names one value twice; name each once")
        return grid

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Tuning:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} names one twice; name each once")
        return self

    @property
    def combinations(self) -> list[Values]:
        """Every combination of the grid's values, the last field changing fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


def fields_of(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The values of one part, RECIPE or OPTION, by field name."""
    return {name.partition(".")[2]: value for name, value in values.items() if name.partition(".")[0] == part}


class Candidate(Closed):
    """One combination of values, and the runs that try it."""

    values: dict[str, Any]
    """Value by field of the grid."""

    trials: list[str]
    """Ids of its trials, one per seed."""


class Tuned(Closed):
    """How a reported run gets its tuned values. Part of the run's identity, but for the values themselves."""

    base: str
    """SHA-256 of the run as its experiment states it, without tuning."""

    candidates: list[Candidate]
    """Combinations in the order of the grid."""

    choose: Choice
    """How one of them is chosen."""

    evaluation: str
    """SHA-256 of the options with which the trials are evaluated."""

    share: float
    """Share of the tokens that a trial is trained on."""

    preset: str
    """Scale of the trials."""

    values: Annotated[dict[str, Any] | None, INCIDENTAL] = None
    """The chosen combination; None until the trials are done."""

    @cached_property
    def key(self) -> str:
        """SHA-256 that names the choice. Runs that differ only in seed, or in a scale that it is carried to, share
        it."""
        content = identity(self)
        del content["base"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def run(self) -> str:
        """SHA-256 of the tuned run: what it is without tuning, and how its values are chosen."""
        return hashlib.sha256(f"{self.base} {self.key}".encode()).hexdigest()

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(len(candidate.trials) for candidate in self.candidates)

    @property
    def at_edge(self) -> list[str]:
        """Fields whose chosen value is the least or the largest number that was tried: a wider grid may do better."""
        found = []
        for name, value in (self.values or {}).items():
            tried = {candidate.values[name] for candidate in self.candidates if _is_number(candidate.values[name])}
            if _is_number(value) and len(tried) > 1 and value in (min(tried), max(tried)):
                found.append(name)
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Trial:
    """The outcome of one trial.

    score: the metric in its own unit, None if training diverged. loss: mean training loss of the last steps in nats per
    token, None if it diverged. reason: why it diverged.
    """

    run: str
    score: float | None
    loss: float | None
    reason: str = ""


def choose(candidates: Sequence[Candidate], outcomes: Mapping[str, Trial], metric: str) -> Candidate:
    """The candidate with the best mean score over its trials.

    A trial that diverged is worse than every score, so a candidate with fewer of them wins. Candidates of equal mean,
    such as several that answer everything, are told apart by the lower mean training loss, then by the grid's order.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1

    def rank(candidate: Candidate) -> tuple[int, float, float]:
        trials = [outcomes[run] for run in candidate.trials]
        finite = [t for t in trials if t.score is not None and math.isfinite(t.score)]
        if not finite:
            return len(trials), math.inf, math.inf
        mean = sum(t.score for t in finite if t.score is not None) / len(finite)
        losses = [t.loss for t in finite if t.loss is not None]
        loss = sum(losses) / len(losses) if losses else math.inf
        return len(trials) - len(finite), -sign * mean, loss

    return min(candidates, key=rank)
