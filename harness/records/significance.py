"""Many comparisons at once, sample sizes that settle a difference, and tests of the paper's printed numbers.

`stats.py` compares two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy.special import nctdtr, ndtr, ndtri, stdtrit

from harness.records.stats import ALPHA, Comparison, finite, proportion_floor

POWER = 0.8
"""Probability that a difference of the given size is found significant at two-sided ALPHA."""

Row = TypeVar("Row")


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust p-values for multiple comparisons (Holm 1979, Scand. J. Stat. 6), in the given order.

    Rejecting those below α makes any false rejection in the family with probability at most α, whatever their
    dependence. The family is the last axis, [..., m]. Raises ValueError if a p-value is not in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: {p[~((p >= 0) & (p <= 1))][0]} is not in [0, 1]; leave out what was not tested")
    m = p.shape[-1]
    order = np.argsort(p, axis=-1)
    raised = np.take_along_axis(p, order, -1) * (m - np.arange(m))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(raised, axis=-1), 1), -1)
    return adjusted


def pairwise(rows: Sequence[Row], compare: Callable[[Row, Row], Comparison]) -> np.ndarray:
    """p-values of all pairs of rows of a column, adjusted by Holm: [rows, rows], symmetric, 1 on the diagonal.

    The family is all pairs, not only those with the best row: only the data tell which row is best, and the best and
    the worst of many equal rows lie far apart. A pair that cannot be tested gets 1.
    """
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    tested = {(i, j): p for i, j in pairs if (p := compare(rows[i], rows[j]).p) is not None}
    adjusted = np.ones((len(rows), len(rows)))
    for (i, j), p in zip(tested, holm(list(tested.values())), strict=True):
        adjusted[i, j] = adjusted[j, i] = p
    return adjusted


def tiers(values: Sequence[float], adjusted: np.ndarray, higher_is_better: bool) -> list[int | None]:
    """Tiers of the rows of a column: 0, 1 or None.

    Tier 0 is the best row and all rows not significantly worse than it; tier 1 is the same among the others; None is
    the rest. A tier is assigned only if some row is significantly worse than its best row. With probability at least
    1 - ALPHA, no row is declared worse than a row that it equals.

    adjusted: p-values from `pairwise`. Raises ValueError if there are no values or one is not finite.
    """
    order = np.argsort(finite("values", values), kind="stable")
    rest = [int(i) for i in (order[::-1] if higher_is_better else order)]
    assigned: list[int | None] = [None] * len(rest)
    for tier in (0, 1):
        worse = [i for i in rest[1:] if adjusted[rest[0], i] < ALPHA]
        if not worse:
            break
        for i in rest:
            assigned[i] = None if i in worse else tier
        rest = worse
    return assigned


def items_to_settle_paired(gap: float, discordance: float, level: float = ALPHA) -> int | float:
    """Number of items that McNemar's test needs to find a gap between two runs, at a two-sided level and POWER.

    gap: difference δ of the two accuracies. discordance: share ψ of items that only one of the two solves. Both are
    fractions. Miettinen (1968, Biometrics 24): (z_α √ψ + z_β √(ψ - δ²))² / δ². Infinite if the gap is 0. Raises
    ValueError unless |gap| ≤ discordance ≤ 1.
    """
    if not abs(gap) <= discordance <= 1:
        raise ValueError(f"discordance: {discordance} with a gap of {gap}; give fractions, the gap not the larger")
    if gap == 0:
        return math.inf
    z = z_of(level)
    return math.ceil((z * math.sqrt(discordance) + Z_POWER * math.sqrt(discordance - gap**2)) ** 2 / gap**2)


def items_to_settle(p: float, q: float, level: float = ALPHA) -> int | float:
    """Number of items per run that the unpaired test of two proportions needs, at a two-sided level and POWER.

    (z_α √(2 p̄ (1 - p̄)) + z_β √(p (1 - p) + q (1 - q)))² / (p - q)². Infinite if p equals q. Raises ValueError unless
    both are fractions.
    """
    shares("p, q", [p, q])
    if p == q:
        return math.inf
    mean = (p + q) / 2
    spread = z_of(level) * math.sqrt(2 * mean * (1 - mean)) + Z_POWER * math.sqrt(p * (1 - p) + q * (1 - q))
    return math.ceil(spread**2 / (p - q) ** 2)


def seeds_to_settle(gap: float, sd: float, paired: bool = False, level: float = ALPHA) -> int | float:
    """Number of seeds per mixer that the t-test over seeds needs to find a gap, at a two-sided level and POWER.

    At least 2; infinite if the gap is 0. sd: standard deviation over seeds of one mixer, or of the pairs' differences
    if paired. With the standard deviation of the items' differences, the paired form also gives the number of items
    for continuous scores. Raises ValueError if gap or sd is not finite, or sd is negative.
    """
    if not (math.isfinite(gap) and math.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd: {sd} with a gap of {gap}; give finite numbers, a standard deviation from 0")
    if gap == 0 or sd == 0:
        return math.inf if gap == 0 else 2
    samples = 1 if paired else 2
    normal = samples * ((z_of(level) + Z_POWER) * sd / gap) ** 2
    if normal > 1e6:  # t differs from the normal distribution by less than one seed in a million
        return math.ceil(normal) if math.isfinite(normal) else math.inf
    k = max(2, math.floor(normal))
    while t_power(abs(gap) / sd * math.sqrt(k / samples), samples * (k - 1), level) < POWER:
        k += 1
    return k


def t_power(shift: float, df: float, level: float = ALPHA) -> float:
    """Power of the two-sided t-test at a level for a difference of `shift` standard errors."""
    bound = float(stdtrit(df, 1 - level / 2))
    return float(1 - nctdtr(df, shift, bound) + nctdtr(df, shift, -bound))


def z_of(level: float) -> float:
    """Standard deviations of the normal distribution that a two-sided test at this level asks for."""
    return float(ndtri(1 - level / 2))


Z_LEVEL, Z_POWER = z_of(ALPHA), float(ndtri(POWER))


def proportion_stderr(p: float, n: int) -> float:
    """Binomial standard error √(p (1 - p) / n), but at least `stats.proportion_floor`.

    Raises ValueError if p is not a fraction or n is less than 1.
    """
    (share,) = shares("p", [p])
    if n < 1:
        raise ValueError(f"n: {n} samples; a proportion has at least one")
    return max(math.sqrt(share * (1 - share) / n), proportion_floor(n))


def printed_gap(a: float | Sequence[float], b: float | Sequence[float], n: int | Sequence[int]) -> Comparison:
    """Compare two printed accuracies of n samples each, or the averages of two rows' tasks with n[t] samples each.

    a, b: fractions. Scores by item are not published, so what two mixers have in common on the items does not cancel.
    The test treats them as independent samples (z with the errors of `proportion_stderr`), which is conservative as
    long as mixers tend to solve the same items. Each printed number comes from one training run; variation over seeds
    is not included. Raises ValueError if a, b and n differ in length or a value is not a fraction.
    """
    lists = [np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (a, b, n)]
    if len({v.size for v in lists}) != 1:
        raise ValueError(f"n: {lists[2].size} sizes for {lists[0].size} and {lists[1].size} numbers; give one per task")
    p, q = shares("a", lists[0]), shares("b", lists[1])
    errors = [proportion_stderr(x, int(size)) for v in (p, q) for x, size in zip(v, lists[2], strict=True)]
    delta, stderr = float(p.mean() - q.mean()), math.hypot(*errors) / p.size
    half, level = Z_LEVEL * stderr, 2 * float(ndtr(-abs(delta) / stderr))
    return Comparison(delta, delta - half, delta + half, level, "z of unpaired proportions", int(lists[2].sum()))


def shares(name: str, values: Sequence[float]) -> np.ndarray:
    """Values as float64 [n]. Raises ValueError if one is not in [0, 1]."""
    x = finite(name, values)
    outside = x[(x < 0) | (x > 1)]
    if outside.size:
        raise ValueError(f"{name}: {outside[0]} is not a proportion; give fractions, 0.5 for 50%")
    return x
