"""Errors of numbers, and whether two numbers differ by more than them.

An estimate is a mean over seeds of a mean over samples. Its variance has two parts, and they add:

    seeds     sd² / k over k ≥ 2 seeds: what training another seed would change;
    samples   the sampling variance of one run, averaged over the runs, and not divided by k, since every seed is
              scored on the same items: more seeds do not make the items more.

The seeds' part already holds a little of the samples' part, so the sum errs on the wide side. With one seed the
first part is unknown and left out: such an error says nothing about another seed of the same mixer. Degrees of
freedom are Satterthwaite's, so two seeds are not trusted as twenty are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

ALPHA = 0.05
"""Two-sided level at which two numbers count as different; about two standard errors."""


Scores = Sequence[Sequence[float]]
"""Per-sample scores of the runs of one row, [seeds][items]."""


@dataclass(frozen=True)
class Part:
    """A component of a variance: its value and the degrees of freedom it was estimated with."""

    variance: float
    df: float


@dataclass(frozen=True)
class Estimate:
    """A number with its error.

    sd: standard deviation over seeds, None with one seed. seeds_part, samples_part: the parts of the squared
    standard error, None where unknown.
    """

    value: float
    seeds: int
    sd: float | None
    seeds_part: Part | None
    samples_part: Part | None

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.seeds_part, self.samples_part) if part is not None]

    @property
    def stderr(self) -> float | None:
        """Standard error, None where neither seeds nor samples give one."""
        return math.sqrt(sum(part.variance for part in self.parts)) if self.parts else None


@dataclass(frozen=True)
class Difference:
    """a - b: its standard error, degrees of freedom and two-sided p. paired: compared item by item."""

    value: float
    stderr: float
    df: float
    p: float
    paired: bool


def mean_stderr(samples: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, sd / √n; no error with one sample. ValueError without samples."""
    x = np.asarray(samples, dtype=np.float64)
    if x.size == 0:
        raise ValueError("samples: none; a mean needs at least one")
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else None


def perplexity(nll: Sequence[float], units: Sequence[float]) -> tuple[float, float | None, tuple[float, ...]]:
    """exp(Σ nll / Σ units) over documents: (value, standard error, per-document scores).

    nll: negative log-likelihood of each document in nats. units: what it is divided by: its words, or 1 each.
    The logarithm r = Σ nll / Σ units is a ratio, linearised about itself (the delta method): document i scores
    r + N (nll_i - r · units_i) / Σ units. The scores' mean is r, their standard error that of r, and the
    perplexity's is that times the perplexity. Two models' scores on the same documents may be paired.
    """
    losses, weights = np.asarray(nll, dtype=np.float64), np.asarray(units, dtype=np.float64)
    if losses.shape != weights.shape or losses.size == 0 or not weights.sum() > 0:
        raise ValueError(f"nll, units: {losses.size} losses over {weights.size} units; give one of each a document")
    r = losses.sum() / weights.sum()
    scores = r + losses.size * (losses - r * weights) / weights.sum()
    _, stderr = mean_stderr(scores)
    with np.errstate(over="ignore"):
        value = float(np.exp(r))
    return value, None if stderr is None else value * stderr, tuple(scores.tolist())


def proportion_floor(n: int) -> float:
    """The standard error to report for a proportion of which all n samples agree, where the usual one is 0.

    √(p (1 - p) / n) at p = 1 / (n + 1), one dissenter in one sample more, which is 1 / (n + 1): all right out of 3
    says less than all right out of 500.
    """
    return 1 / (n + 1)


def seeds_part(values: np.ndarray) -> Part | None:
    """The seeds' part of the squared standard error of the mean of values, one a seed; None with one seed."""
    k = len(values)
    return Part(float(values.var(ddof=1)) / k, k - 1) if k > 1 else None


def estimate(values: Sequence[float], stderrs: Sequence[float | None], counts: Sequence[int]) -> Estimate:
    """Combine the runs of one row, a value a seed, with their sampling errors and sample counts."""
    if not len(values) == len(stderrs) == len(counts) > 0:
        raise ValueError(f"values: {len(values)} with {len(stderrs)} errors and {len(counts)} counts; give one a seed")
    x = np.asarray(values, dtype=np.float64)
    k = len(x)
    sd = float(x.std(ddof=1)) if k > 1 else None
    known = [e for e in stderrs if e is not None]
    complete = len(known) == k and min(counts) > 1
    return Estimate(
        value=float(x.mean()),
        seeds=k,
        sd=sd,
        seeds_part=seeds_part(x),
        samples_part=Part(float(np.mean(np.square(known))), min(counts) - 1) if complete else None,
    )


def difference(a: Estimate, b: Estimate, scores: tuple[Scores, Scores] | None = None) -> Difference | None:
    """Test a - b, or None where an error is missing and nothing can be said.

    scores: the per-sample scores of a's and of b's seeds, on the same items in the same order. Then the samples'
    part is that of the items' differences, each averaged over seeds: what the items have in common cancels. The
    difference is then in the scores' unit. Without scores, or where every item differs by the same amount and their
    spread says nothing, the samples' parts of a and b add. The seeds' parts add in every case.
    """
    if scores is not None:
        per_seed = [np.asarray(s, dtype=np.float64) for s in scores]
        per_item = per_seed[0].mean(axis=0) - per_seed[1].mean(axis=0)
        delta, stderr = mean_stderr(per_item)
        if stderr:
            seeds = [seeds_part(s.mean(axis=1)) for s in per_seed]
            return tested(delta, [Part(stderr**2, per_item.size - 1), *filter(None, seeds)], paired=True)
    if a.stderr is None or b.stderr is None:
        return None
    return tested(a.value - b.value, a.parts + b.parts, paired=False)


def tested(delta: float, parts: list[Part], paired: bool) -> Difference | None:
    variance = sum(part.variance for part in parts)
    if not (math.isfinite(delta) and math.isfinite(variance)) or variance == 0:
        return None
    df = variance**2 / sum(part.variance**2 / part.df for part in parts)
    stderr = math.sqrt(variance)
    return Difference(delta, stderr, df, 2 * float(stdtr(df, -abs(delta) / stderr)), paired)


def significantly_better(
    a: Estimate,
    b: Estimate,
    higher_is_better: bool,
    scores: tuple[Scores, Scores] | None = None,
    alpha: float = ALPHA,
) -> bool:
    """Whether a is better than b by more than the error of their difference, at two-sided level alpha."""
    diff = difference(a, b, scores)
    return diff is not None and diff.p < alpha and (diff.value > 0) == higher_is_better
