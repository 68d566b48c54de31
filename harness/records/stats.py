"""Standard errors of numbers, and tests of the difference between two numbers.

Seeds and samples are both random. The model for the score of item i under seed s is

    y_si = μ + S_s + I_i + E_si        with variances σ_S², σ_I², σ_E², k seeds, n items,

so the mean over both has variance σ_S²/k + σ_I²/n + σ_E²/kn. The items' part is not divided by k: every seed is scored
on the same items, so more seeds do not add items. The variance is estimated as a sum of two parts:

    seeds     sd²/k of the seeds' means, k ≥ 2; expectation σ_S²/k + σ_E²/kn
    samples   for one number: the sampling variance of a run, averaged over runs; expectation (σ_I² + σ_E²)/n
              for a difference item by item: sd²/n of the items' differences, averaged over seeds; expectation
              σ_I²/n + σ_E²/kn, where σ_I² is the item variance that the two mixers do not share

The sum is too large by σ_E²/n or σ_E²/kn, never too small. With one seed, σ_S² is unknown and left out: such an error
says nothing about another seed of the same mixer. Degrees of freedom are Satterthwaite's, so two seeds count for less
than twenty. For an average over tasks, the parts are those of the tasks' means, whose items are independent.

`significance.py` handles many comparisons at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

from harness.records.metrics import METRICS

ALPHA = 0.05
"""Two-sided significance level; intervals cover 1 - ALPHA."""

BOOTSTRAP_FROM = 30
"""Fewest items for the bootstrap. With fewer, even its most extreme mean may lie inside the interval."""

REACH, STEPS = 16, 20
"""The bootstrap's grid reaches REACH standard errors to either side and has at least STEPS steps per standard deviation
of a score. The worst outlier among n scores lies √n standard deviations away; to leave the grid, it would have to be
drawn 16 times. Steps this small widen an interval by less than 0.1%."""

Scores = Sequence[Sequence[float]]
"""Per-sample scores of one row's runs, [seeds][items]."""


@dataclass(frozen=True)
class Part:
    """A component of a variance, with the degrees of freedom of its estimate."""

    variance: float
    df: float


@dataclass(frozen=True)
class Estimate:
    """A number with its error.

    sd: standard deviation over seeds, None with one seed. seeds_part, samples_part: parts of the squared standard
    error, None if unknown. items: samples per seed, the fewest if seeds differ.
    """

    value: float
    seeds: int
    sd: float | None
    seeds_part: Part | None
    samples_part: Part | None
    items: int

    @property
    def parts(self) -> list[Part]:
        """The known parts of the squared standard error."""
        return [part for part in (self.seeds_part, self.samples_part) if part is not None]

    @property
    def stderr(self) -> float | None:
        """Standard error; None if neither seeds nor samples give one."""
        return math.sqrt(total(self.parts).variance) if self.parts else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """t-interval at level ALPHA from the known parts; None if no part is known."""
        return around(self.value, total(self.parts)) if self.parts else None


@dataclass(frozen=True)
class Comparison:
    """The difference a - b, its interval at level ALPHA and its two-sided p-value.

    low, high: None if the data do not vary, so that the error of the difference is unknown.
    p: None if no test is possible; `test` then begins with "none" and gives the reason.
    test: the test that gave p. n: number of items compared, or of seeds if the test is over seeds alone; if a and b are
    not paired, the smaller of their numbers.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int


def finite(name: str, values: Sequence[float]) -> np.ndarray:
    """Values as float64 [n]. Raises ValueError if there are none or one is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name}: {'none' if x.size == 0 else f'shape {x.shape}'}; give a list of at least one number")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(f"{name}: number {bad[0] + 1} of {x.size} is {x[bad[0]]}; leave out runs that have no result")
    return x


def mean_stderr(samples: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error sd / √n, None with one sample. Raises ValueError without samples."""
    x = np.asarray(samples, dtype=np.float64)
    if x.size == 0:
        raise ValueError("samples: none; a mean needs at least one")
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else None


def perplexity(nll: Sequence[float], units: Sequence[float]) -> tuple[float, float | None, tuple[float, ...]]:
    """exp(Σ nll / Σ units) over documents, as (value, standard error, per-document scores).

    nll: negative log-likelihood of each document in nats. units: divisor per document, its words or 1.

    The ratio r = Σ nll / Σ units is linearised (the delta method): document i of N scores
    r + N (nll_i - r · units_i) / Σ units. These scores have mean r and the standard error of r; the standard error of
    the perplexity is that times the perplexity. Scores of two models on the same documents may be paired.
    Raises ValueError for empty or unequal lists, and for units whose sum is not positive.
    """
    losses, weights = np.asarray(nll, dtype=np.float64), np.asarray(units, dtype=np.float64)
    if losses.shape != weights.shape or losses.size == 0 or not weights.sum() > 0:
        raise ValueError(f"nll, units: {losses.size} losses over {weights.size} units; give one of each per document")
    r = losses.sum() / weights.sum()
    scores = r + losses.size * (losses - r * weights) / weights.sum()
    _, stderr = mean_stderr(scores)
    with np.errstate(over="ignore"):
        value = float(np.exp(r))
    return value, None if stderr is None else value * stderr, tuple(scores.tolist())


def proportion_floor(n: int) -> float:
    """Standard error of a proportion if all n samples agree, so that the usual formula gives 0.

    It is √(p (1 - p) / n) at p = 1 / (n + 1), one dissenter among n + 1 samples, which equals 1 / (n + 1). So 3 right
    answers out of 3 are less certain than 500 out of 500.
    """
    return 1 / (n + 1)


def agreed(metric: str, value: float, stderr: float | None) -> bool:
    """Whether all samples of a recorded proportion scored the same, so that its usual error is 0."""
    return METRICS[metric].percent and stderr == 0 and value in (0.0, 1.0)


def sampling_error(metric: str, value: float, stderr: float | None, n: int) -> float | None:
    """Standard error of a recorded number over its n samples: `proportion_floor` if all agreed, None if not finite."""
    if agreed(metric, value, stderr):
        return proportion_floor(n)
    return stderr if stderr is not None and math.isfinite(stderr) else None


def total(parts: Sequence[Part]) -> Part:
    """Sum of variances, with Satterthwaite's degrees of freedom."""
    variance = sum(part.variance for part in parts)
    known = [part for part in parts if part.variance > 0]
    # Relative to the sum, so that squares of tiny variances do not underflow.
    share = sum((part.variance / variance) ** 2 / part.df for part in known)
    return Part(variance, 1 / share if known else sum(part.df for part in parts))


def around(value: float, error: Part) -> tuple[float, float]:
    """t-interval at level ALPHA."""
    half = float(stdtrit(error.df, 1 - ALPHA / 2)) * math.sqrt(error.variance)
    return value - half, value + half


def lies_within(low: float, high: float, least: float, most: float) -> bool | None:
    """Whether an interval lies within bounds: True inside, False wholly outside, None if it reaches or crosses one."""
    if least < low and high < most:
        return True
    return False if high < least or most < low else None


def seeds_part(values: np.ndarray) -> Part | None:
    """Seeds' part of the squared standard error of the mean of values, one per seed; None with one seed."""
    k = len(values)
    return Part(float(values.var(ddof=1)) / k, k - 1) if k > 1 else None


def estimate(values: Sequence[float], stderrs: Sequence[float | None], counts: Sequence[int]) -> Estimate:
    """Combine the runs of one row: value, sampling error and number of samples per seed.

    Raises ValueError if the lists are empty or differ in length, or a value is not finite.
    """
    if not len(values) == len(stderrs) == len(counts) > 0:
        raise ValueError(
            f"values: {len(values)} with {len(stderrs)} errors and {len(counts)} counts; give one per seed"
        )
    x = finite("values", values)
    known = [e for e in stderrs if e is not None]
    complete = len(known) == x.size and min(counts) > 1
    return Estimate(
        value=float(x.mean()),
        seeds=x.size,
        sd=float(x.std(ddof=1)) if x.size > 1 else None,
        seeds_part=seeds_part(x),
        samples_part=Part(float(np.mean(np.square(known))), min(counts) - 1) if complete else None,
        items=min(counts),
    )


def average(values: Scores, stderrs: Sequence[Sequence[float | None]], counts: Sequence[Sequence[int]]) -> Estimate:
    """Mean over tasks, all with the same weight. Arguments are [tasks][seeds].

    Items of different tasks are independent, so the samples' part is the sum of the tasks' variances over tasks². A
    seed moves all of its tasks together, so the seeds' part is that of the seeds' averages. `items` counts all tasks.
    Raises ValueError if tasks have different numbers of seeds, or there are none.
    """
    if not values or len({len(v) for v in values}) != 1:
        raise ValueError(f"values: {[len(v) for v in values]} seeds by task; average runs that have every task")
    tasks = [estimate(*runs) for runs in zip(values, stderrs, counts, strict=True)]
    seeds = np.mean(values, axis=0)
    samples = [Part(t.samples_part.variance / len(tasks) ** 2, t.samples_part.df) for t in tasks if t.samples_part]
    return Estimate(
        value=float(seeds.mean()),
        seeds=seeds.size,
        sd=float(seeds.std(ddof=1)) if seeds.size > 1 else None,
        seeds_part=seeds_part(seeds),
        samples_part=total(samples) if len(samples) == len(tasks) else None,
        items=sum(t.items for t in tasks),
    )


def paired(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compare the scores of two runs on the same items in the same order.

    0/1 scores: McNemar's exact test on the items that only one run solves, with the interval of Bonett and Price (2012,
    Stat. Methods Med. Res. 21), a Wald interval with one more item on each side. The test keeps its level for any
    number of such items and is conservative for few; p may then exceed ALPHA although the interval excludes 0.
    Other scores: the bootstrap of the mean difference (`bootstrap`) from BOOTSTRAP_FROM items, the paired t-test below.
    If all differences are equal, only their sign can be tested, and there is no interval.
    Raises ValueError if lengths differ or a score is not finite.
    """
    x, y = finite("a", a), finite("b", b)
    if x.size != y.size:
        raise ValueError(f"b: {y.size} scores, but a has {x.size}; pair runs on the same items")
    d = x - y
    if is_binary(x) and is_binary(y):
        return mcnemar(d)
    if constant(d, x, y):
        p = 2.0 ** (1 - d.size) if d.mean() else 1.0
        return Comparison(float(d.mean()), None, None, p, "sign test: all differences equal", d.size)
    if d.size < BOOTSTRAP_FROM:
        return tested(float(d.mean()), [Part(float(d.var(ddof=1)) / d.size, d.size - 1)], "paired t", d.size)
    return bootstrap(d)


def is_binary(x: np.ndarray) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(x, (0.0, 1.0)).all())


def constant(d: np.ndarray, *scores: np.ndarray) -> bool:
    """Whether differences vary by no more than the rounding of the scores."""
    return float(np.ptp(d)) <= 1e-12 * max(float(np.abs(s).max()) for s in scores)


def mcnemar(d: np.ndarray) -> Comparison:
    """McNemar's exact test. d: per item 1 if only a is right, -1 if only b is, 0 if they agree."""
    only_a, only_b = int((d > 0).sum()), int((d < 0).sum())
    p = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    center = (only_a - only_b) / (d.size + 2)
    half = float(ndtri(1 - ALPHA / 2)) * math.sqrt(matched_variance(d))
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Comparison(float(d.mean()), low, high, p, "exact McNemar", d.size)


def matched_variance(d: np.ndarray) -> float:
    """Squared standard error of the mean of d, with one more item on each side: not 0 even if no item tells a from b.

    d: differences of 0/1 scores on the same items, averaged over seeds if there are several.
    """
    n = d.size + 2
    return float((np.square(d).sum() + 2) / n - (d.sum() / n) ** 2) / n


def bootstrap(d: np.ndarray) -> Comparison:
    """Percentile bootstrap of the mean of d, expanded for small n.

    Nothing is drawn: the mean of n draws from d follows the n-fold convolution of d's own distribution, which the
    Fourier transform gives on a grid. It is the limit of many draws, and the same at every call. Quantiles are taken at
    Φ(√(n/(n-1)) t) instead of Φ(z), which corrects for the divisor n in the bootstrap's variance (Hesterberg 2015, Am.
    Stat. 69, "expanded percentile"). p is the level at which the interval would begin at 0; it is not resolved below
    about 1e-11.
    """
    n, mean = d.size, float(d.mean())
    grid, cdf = bootstrap_distribution(d)
    stretch = math.sqrt(n / (n - 1))
    level = float(ndtr(stretch * stdtrit(n - 1, ALPHA / 2)))
    low, high = np.interp([level, 1 - level], cdf, grid)
    below = min(max(float(np.interp(-mean, grid, cdf)), 1e-12), 1 - 1e-12)
    p = 2 * float(stdtr(n - 1, -abs(float(ndtri(below))) / stretch))
    return Comparison(mean, mean + float(low), mean + float(high), p, "paired bootstrap", n)


def bootstrap_distribution(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of the mean of d.size draws from d, minus the mean of d, as (grid, cumulative probability).

    A score between two grid points is split between them so that its mean is kept.
    """
    n = d.size
    size = 1 << math.ceil(math.log2(2 * REACH * math.sqrt(n) * STEPS))
    step = 2 * REACH * math.sqrt(n) * float(d.std()) / size
    position = (d - d.mean()) / step
    left = np.floor(position)
    share, left = position - left, left.astype(np.int64)
    mass = np.bincount(left % size, 1 - share, size) + np.bincount((left + 1) % size, share, size)
    sums = np.fft.fftshift(np.fft.irfft(np.fft.rfft(mass / n) ** n, size))
    # Half of a point's probability lies below it. Rounding leaves probabilities of -1e-18, but a cdf must not fall.
    cdf = np.maximum.accumulate(np.cumsum(sums) - sums / 2)
    return (np.arange(size) - size // 2) * (step / n), cdf


def average_difference(a: Sequence[Scores], b: Sequence[Scores]) -> Comparison:
    """Compare the means over tasks of two rows item by item. Each is [tasks][seeds][items].

    Items are sampled within tasks, so the variances of the tasks' mean differences add up, over tasks². The seeds'
    parts of both averages are added. Seeds of a and b count as independent, even if they have the same number.
    Raises ValueError if a and b differ in tasks, a row's seeds in items, or a task's items between a and b.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"b: {len(b)} tasks, but a has {len(a)}; average the same tasks, at least one")
    sides = [[matrix(name, scores) for scores in side] for name, side in (("a", a), ("b", b))]
    deltas, parts = [], []
    for x, y in zip(*sides, strict=True):
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"b: {y.shape[1]} scores, but a has {x.shape[1]}; pair runs on the same items")
        d = x.mean(axis=0) - y.mean(axis=0)
        deltas.append(d.mean())
        binary = is_binary(x) and is_binary(y)
        if d.size > 1 and (binary or not constant(d, x, y)):
            variance = matched_variance(d) if binary else float(d.var(ddof=1)) / d.size
            parts.append(Part(variance / len(a) ** 2, d.size - 1))
    items, tasks = sum(x.shape[1] for x in sides[0]), len(a)
    if len(parts) < tasks:
        return Comparison(float(np.mean(deltas)), None, None, None, "none: a task's differences do not vary", items)
    seeds = [part for side in sides if (part := seeds_part(np.mean([x.mean(axis=1) for x in side], axis=0)))]
    what = "t over " + ("seeds and " if seeds else "") + "paired items" + (f" of {tasks} tasks" if tasks > 1 else "")
    return tested(float(np.mean(deltas)), parts + seeds, what, items)


def matrix(name: str, scores: Scores) -> np.ndarray:
    """Scores as [seeds, items]. Raises ValueError if there are none or seeds differ in their number of items."""
    if len({len(s) for s in scores}) != 1:
        raise ValueError(f"{name}: seeds of {[len(s) for s in scores]} scores; score every seed on the same items")
    return np.stack([finite(name, s) for s in scores])


def difference(a: Estimate, b: Estimate, scores: tuple[Scores, Scores] | None = None) -> Comparison:
    """Compare a and b by the sharpest test that the data allow.

    scores: per-sample scores of a's and b's seeds, on the same items in the same order; the difference is then in their
    unit. With one seed each: `paired`. With more: `average_difference` of the single task. Without scores, or if no
    test over them is possible: Welch's t-test with the parts of a and b added.
    """
    if scores is not None:
        one = all(len(s) == 1 for s in scores)
        by_item = paired(scores[0][0], scores[1][0]) if one else average_difference([scores[0]], [scores[1]])
        if by_item.p is not None:
            return by_item
    delta, n = a.value - b.value, min(a.items, b.items)
    if a.stderr is None or b.stderr is None:
        return Comparison(delta, None, None, None, "none: an error is not known", n)
    seeds = a.samples_part is None and b.samples_part is None
    return tested(delta, a.parts + b.parts, "Welch's t", min(a.seeds, b.seeds) if seeds else n)


def tested(delta: float, parts: Sequence[Part], test: str, n: int) -> Comparison:
    """t-test of a difference from the parts of its squared error."""
    error = total(parts)
    if error.variance == 0:
        return Comparison(delta, None, None, None, f"none: no spread for {test}", n)
    p = 2 * float(stdtr(error.df, -abs(delta) / math.sqrt(error.variance)))
    return Comparison(delta, *around(delta, error), p, test, n)
