"""Errors of numbers, and whether two numbers differ by more than them.

Seeds and samples are both drawn at random. The score of item i under seed s is taken to be

    y_si = μ + S_s + I_i + E_si        with variances σ_S², σ_I², σ_E², k seeds, n items,

so the mean over both has the variance σ_S²/k + σ_I²/n + σ_E²/kn. The items' part is not divided by k: every seed is
scored on the same items, and more seeds do not make the items more. The variance is estimated in two parts that add:

    seeds     sd²/k of the seeds' means, k ≥ 2: expects σ_S²/k + σ_E²/kn
    samples   of a number: the sampling variance of one run, averaged over the runs: expects (σ_I² + σ_E²)/n
              of a difference item by item: sd²/n of the items' differences, averaged over seeds: σ_I²/n + σ_E²/kn,
              where σ_I² is what is left of the items once what two mixers share has cancelled

The sum is too wide by σ_E²/n or σ_E²/kn, never too narrow. With one seed σ_S² is unknown and left out: such an error
says nothing about another seed of the same mixer. Degrees of freedom are Satterthwaite's, so two seeds are not trusted
as twenty are. Of an average over tasks the parts are those of its tasks' means, whose items are independent.

What a table says of many comparisons at once is in `significance.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

ALPHA = 0.05
"""Two-sided level at which two numbers count as different; intervals cover 1 - ALPHA."""

BOOTSTRAP_FROM = 30
"""Items from which the bootstrap is used. The widest mean that it can draw from fewer may lie inside the interval."""

REACH, STEPS = 16, 20
"""The bootstrap's grid: to 16 standard errors either side, where the worst outlier that n scores can hold, √n standard
deviations away, would have to be drawn 16 times; and at least 20 steps in the standard deviation of a score, which
widen an interval by less than 0.1%."""

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
    standard error, None where unknown. items: samples behind each seed's value, the fewest where seeds differ.
    """

    value: float
    seeds: int
    sd: float | None
    seeds_part: Part | None
    samples_part: Part | None
    items: int

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.seeds_part, self.samples_part) if part is not None]

    @property
    def stderr(self) -> float | None:
        """Standard error, None where neither seeds nor samples give one."""
        return math.sqrt(total(self.parts).variance) if self.parts else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t-interval at level ALPHA from the parts that are known; None where none is."""
        return around(self.value, total(self.parts)) if self.parts else None


@dataclass(frozen=True)
class Comparison:
    """a - b, its interval at level ALPHA and its two-sided p.

    low, high: None where the data do not vary, so that nothing says how far off the difference may be.
    p: None where no test is possible; `test` then begins with "none" and says why.
    test: the test that gave p. n: items compared or, where the test is over seeds alone, seeds; the fewer of a's and
    b's where they are not paired.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int


def finite(name: str, values: Sequence[float]) -> np.ndarray:
    """Values as float64 [n], or ValueError where there are none or one is no finite number."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name}: {'none' if x.size == 0 else f'shape {x.shape}'}; give a list of at least one number")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(f"{name}: number {bad[0] + 1} of {x.size} is {x[bad[0]]}; leave out runs that have no result")
    return x


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


def total(parts: Sequence[Part]) -> Part:
    """The sum of variances, with Satterthwaite's degrees of freedom."""
    variance = sum(part.variance for part in parts)
    known = [part for part in parts if part.variance > 0]
    # Relative to the sum, so that the squares of tiny variances do not vanish.
    share = sum((part.variance / variance) ** 2 / part.df for part in known)
    return Part(variance, 1 / share if known else sum(part.df for part in parts))


def around(value: float, error: Part) -> tuple[float, float]:
    half = float(stdtrit(error.df, 1 - ALPHA / 2)) * math.sqrt(error.variance)
    return value - half, value + half


def seeds_part(values: np.ndarray) -> Part | None:
    """The seeds' part of the squared standard error of the mean of values, one a seed; None with one seed."""
    k = len(values)
    return Part(float(values.var(ddof=1)) / k, k - 1) if k > 1 else None


def estimate(values: Sequence[float], stderrs: Sequence[float | None], counts: Sequence[int]) -> Estimate:
    """Combine the runs of one row, a value a seed, with their sampling errors and sample counts."""
    if not len(values) == len(stderrs) == len(counts) > 0:
        raise ValueError(f"values: {len(values)} with {len(stderrs)} errors and {len(counts)} counts; give one a seed")
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
    """The mean over tasks of their scores, each task counting alike; arguments are [tasks][seeds].

    The tasks' items are independent, so the samples' part is the sum of their variances over tasks². A seed moves its
    tasks together, so the seeds' part is that of the seeds' averages. items: those of all tasks.
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
    """Compare the scores of one run with those of another on the same items in the same order.

    0/1 scores: McNemar's exact test on the items that only one solves; the interval is Bonett and Price's (2012, Stat.
    Methods Med. Res. 21), a Wald interval with one more item on each side. The test keeps its level at any number of
    such items and is cautious where they are few; p may then exceed ALPHA though the interval excludes 0.
    Other scores: from BOOTSTRAP_FROM items the bootstrap of the mean difference (`bootstrap`), below it the paired
    t-test. Where all differences are the same, their sign is all there is to test, and there is no interval.
    ValueError where lengths differ or a score is not finite.
    """
    x, y = finite("a", a), finite("b", b)
    if x.size != y.size:
        raise ValueError(f"b: {y.size} scores beside {x.size} of a; pair runs on the same items")
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
    return bool(np.isin(x, (0.0, 1.0)).all())


def constant(d: np.ndarray, *scores: np.ndarray) -> bool:
    """Whether differences vary by no more than rounding of the scores."""
    return float(np.ptp(d)) <= 1e-12 * max(float(np.abs(s).max()) for s in scores)


def mcnemar(d: np.ndarray) -> Comparison:
    """d: 1 where only a is right, -1 where only b is, 0 where they agree."""
    only_a, only_b = int((d > 0).sum()), int((d < 0).sum())
    p = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    center = (only_a - only_b) / (d.size + 2)
    half = float(ndtri(1 - ALPHA / 2)) * math.sqrt(matched_variance(d))
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Comparison(float(d.mean()), low, high, p, "exact McNemar", d.size)


def matched_variance(d: np.ndarray) -> float:
    """Squared standard error of the mean of d, differences of 0/1 scores on the same items (averaged over seeds, if
    there are several), with one more item on each side: not 0 where no item tells the two apart."""
    n = d.size + 2
    return float((np.square(d).sum() + 2) / n - (d.sum() / n) ** 2) / n


def bootstrap(d: np.ndarray) -> Comparison:
    """The percentile bootstrap of the mean of d, expanded for small n.

    No draws: the mean of n draws from d is distributed as the n-fold convolution of d's own distribution, which the
    Fourier transform gives on a grid. It is what seeded draws approach as they become many, the same at every call,
    and as fast for 10,000 items as for 500. Quantiles are taken at Φ(√(n/(n-1)) t) instead of Φ(z), which makes up for
    the divisor n in the bootstrap's variance (Hesterberg 2015, Am. Stat. 69, "expanded percentile"). p is the level
    at which the interval would begin at 0; below some 1e-11 it is not resolved.
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
    """The distribution of the mean of d.size draws from d, less the mean of d: (grid, cumulative probability).

    A score between two grid points is shared between them such that its mean stays.
    """
    n = d.size
    size = 1 << math.ceil(math.log2(2 * REACH * math.sqrt(n) * STEPS))
    step = 2 * REACH * math.sqrt(n) * float(d.std()) / size
    place = (d - d.mean()) / step
    left = np.floor(place)
    share, left = place - left, left.astype(np.int64)
    mass = np.bincount(left % size, 1 - share, size) + np.bincount((left + 1) % size, share, size)
    sums = np.fft.fftshift(np.fft.irfft(np.fft.rfft(mass / n) ** n, size))
    # Half of a point's probability lies below it. Rounding leaves negative ones of 1e-18, and a cdf must not fall.
    cdf = np.maximum.accumulate(np.cumsum(sums) - sums / 2)
    return (np.arange(size) - size // 2) * (step / n), cdf


def average_difference(a: Sequence[Scores], b: Sequence[Scores]) -> Comparison:
    """Compare the mean over tasks of a's and of b's scores, item by item; each is [tasks][seeds][items].

    Items are drawn within tasks: variances of the tasks' mean differences add, over tasks². The seeds' parts of a's and
    b's averages add to it; seeds of the two are taken as independent, though they may have numbers in common.
    ValueError where tasks, seeds of one row or items of one task differ in number.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"b: {len(b)} tasks beside {len(a)} of a; average the same tasks, at least one")
    sides = [[matrix(name, scores) for scores in side] for name, side in (("a", a), ("b", b))]
    deltas, parts = [], []
    for x, y in zip(*sides, strict=True):
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"b: {y.shape[1]} scores beside {x.shape[1]} of a; pair runs on the same items")
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
    """[seeds, items], or ValueError where seeds have different items or none."""
    if len({len(s) for s in scores}) != 1:
        raise ValueError(f"{name}: seeds of {[len(s) for s in scores]} scores; score every seed on the same items")
    return np.stack([finite(name, s) for s in scores])


def difference(a: Estimate, b: Estimate, scores: tuple[Scores, Scores] | None = None) -> Comparison:
    """Compare a and b, as sharply as is known.

    scores: the per-sample scores of a's and of b's seeds, on the same items in the same order; the difference is then
    in their unit. One seed each: `paired`. More: `average_difference` of the one task. Without scores, or where every
    item differs by the same amount and their spread says nothing, Welch's t with the parts of a and b added.
    """
    if scores is not None:
        one = all(len(s) == 1 for s in scores)
        found = paired(scores[0][0], scores[1][0]) if one else average_difference([scores[0]], [scores[1]])
        if found.p is not None:
            return found
    delta, n = a.value - b.value, min(a.items, b.items)
    if a.stderr is None or b.stderr is None:
        return Comparison(delta, None, None, None, "none: an error is not known", n)
    seeds = a.samples_part is None and b.samples_part is None
    return tested(delta, a.parts + b.parts, "Welch's t", min(a.seeds, b.seeds) if seeds else n)


def tested(delta: float, parts: Sequence[Part], test: str, n: int) -> Comparison:
    """The t-test of a difference of which the parts of the squared error are known."""
    error = total(parts)
    if error.variance == 0:
        return Comparison(delta, None, None, None, f"none: no spread for {test}", n)
    p = 2 * float(stdtr(error.df, -abs(delta) / math.sqrt(error.variance)))
    return Comparison(delta, *around(delta, error), p, test, n)
