"""Corrections, marks, sample sizes and the paper's gaps: textbook figures, properties, error rates by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import bdtr

from harness.records.published import published, task_sizes
from harness.records.significance import (
    holm,
    items_to_settle,
    items_to_settle_paired,
    pairwise,
    printed_gap,
    proportion_stderr,
    seeds_to_settle,
    t_power,
    tiers,
)
from harness.records.stats import Comparison, difference, estimate, paired, proportion_floor


def above(rate: float, trials: int) -> float:
    """Three standard deviations of a rate that is measured over so many trials: one run of 700 is off by more."""
    return 3 * math.sqrt(rate * (1 - rate) / trials)


def given_p(p: dict[frozenset[str], float]):
    """A comparison of which only p is known."""
    return lambda a, b: Comparison(0.0, None, None, p[frozenset((a, b))], "given", 1)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == pytest.approx([0.03]) and holm([]).size == 0
    table = [[0.01, 0.04], [0.9, 0.2]]
    assert holm(table) == pytest.approx(np.array([holm(row) for row in table]))
    for bad in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=f"p_values: {bad} is not in"):
            holm([0.5, bad])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_holm_keeps_the_order_raises_every_p_and_does_not_depend_on_the_order_given(p, random):
    adjusted = holm(p)
    assert ((adjusted >= p) & (adjusted <= 1)).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-15).sum() >= 1  # the smallest is Bonferroni's
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    order = random.sample(range(len(p)), len(p))
    assert holm([p[i] for i in order]) == pytest.approx(adjusted[order])


def test_a_stricter_level_needs_more_and_its_power_is_kept():
    for level in (0.05, 0.01, 0.05 / 15):
        k = seeds_to_settle(0.8, 1.0, level=level)
        assert t_power(0.8 * math.sqrt(k / 2), 2 * (k - 1), level) >= 0.8
        assert t_power(0.8 * math.sqrt((k - 1) / 2), 2 * (k - 2), level) < 0.8
    # (z_level + 0.8416)² in the limit of a small gap: 1.960 and 2.935 standard deviations.
    ratio = items_to_settle(0.5001, 0.5, 0.05 / 15) / items_to_settle(0.5001, 0.5)
    assert ratio == pytest.approx(((2.935 + 0.8416) / (1.960 + 0.8416)) ** 2, rel=1e-3)
    paired_ratio = items_to_settle_paired(0.0001, 0.5, 0.05 / 15) / items_to_settle_paired(0.0001, 0.5)
    assert paired_ratio == pytest.approx(ratio, rel=1e-3)


def test_rows_are_compared_in_all_pairs_and_one_that_cannot_be_tested_is_not_told_apart():
    p = {frozenset("ab"): 0.01, frozenset("ac"): 0.02, frozenset("bc"): None}
    adjusted = pairwise("abc", given_p(p))
    assert adjusted == pytest.approx(np.array([[1, 0.02, 0.02], [0.02, 1, 1], [0.02, 1, 1]]))
    assert pairwise(["alone"], given_p({})).tolist() == [[1.0]]


def test_tiers_are_the_best_and_the_best_of_the_rest():
    values, adjusted = [0.9, 0.85, 0.6, 0.4], np.ones((4, 4))
    assert tiers(values, adjusted, True) == [None] * 4
    for i, j in ((0, 2), (0, 3), (1, 3)):
        adjusted[i, j] = adjusted[j, i] = 0.04
    # The third and fourth are worse than the first; nothing is worse than the third, so there is no second tier.
    assert tiers(values, adjusted, True) == [0, 0, None, None]
    adjusted[2, 3] = adjusted[3, 2] = 0.04
    assert tiers(values, adjusted, True) == [0, 0, 1, None]
    # Where low is best the fourth leads alone, and of the others the second cannot be told apart from the third.
    assert tiers(values, adjusted, False) == [None, 1, 1, 0]
    adjusted[1, 2] = adjusted[2, 1] = 0.04
    assert tiers(values, adjusted, False) == [None, None, 1, 0]
    assert tiers([0.5], np.ones((1, 1)), True) == [None]


def simulate(tables: int, draw, compare) -> tuple[float, float]:
    """How often a table of equal rows has a row declared worse: by `pairwise` and `tiers`, and by comparing the best
    with each other row at 5% uncorrected. Tier 0 is given only where a row is."""
    rng, marked, naive = np.random.default_rng(0), 0, 0
    for _ in range(tables):
        rows = draw(rng)
        values = [float(np.mean(row)) for row in rows]
        marked += 0 in tiers(values, pairwise(rows, compare), True)
        best = int(np.argmax(values))
        naive += any(compare(rows[best], row).p < 0.05 for i, row in enumerate(rows) if i != best)
    return marked / tables, naive / tables


def test_of_equal_rows_of_0_1_scores_one_is_declared_worse_in_one_table_of_twenty():
    def draw(rng):
        difficulty = rng.random(200)
        return list((rng.random((5, 200)) < difficulty).astype(float))

    rate, naive = simulate(2000, draw, paired)
    # Whole items make the exact test a little cautious; Holm over ten correlated pairs a little more.
    assert 0.01 < rate < 0.05 + above(0.05, 2000)
    # What the correction is for.
    assert naive > 0.1


def test_of_equal_rows_of_continuous_scores_one_is_declared_worse_in_one_table_of_twenty():
    def draw(rng):
        return list(rng.normal(size=40) + rng.normal(size=(4, 40)))

    rate, naive = simulate(1000, draw, paired)
    assert 0.01 < rate < 0.05 + above(0.05, 1000)
    assert naive > 0.1


def test_of_equal_rows_of_few_seeds_one_is_declared_worse_in_one_table_of_twenty():
    def compare(a, b):
        return difference(*(estimate(row, [None] * 3, [1] * 3) for row in (a, b)))

    rate, naive = simulate(2000, lambda rng: list(rng.normal(size=(5, 3))), compare)
    assert 0.005 < rate < 0.05 + above(0.05, 2000)
    assert naive > 0.1


def test_rows_that_are_worse_do_not_loosen_the_error_among_the_best():
    """Three equal rows above three that are far worse, 2000 tables of 500 items at once; McNemar's p as `paired`'s."""
    rng = np.random.default_rng(1)
    tables, items = 2000, 500
    level = np.array([0.7, 0.7, 0.7, 0.3, 0.2, 0.1])
    wins = np.empty((tables, 6, 6))
    right = rng.random((tables, 6, items)) < level[:, None]
    values = right.mean(axis=2)
    for i in range(6):
        for j in range(6):
            wins[:, i, j] = (right[:, i] & ~right[:, j]).sum(axis=1)
    i, j = np.tril_indices(6, -1)
    few, all_ = np.minimum(wins[:, i, j], wins[:, j, i]), wins[:, i, j] + wins[:, j, i]
    p = np.minimum(1, 2 * bdtr(few, all_.astype(int), 0.5))
    assert p[0, 0] == pytest.approx(paired(*right[0, [0, 1]].astype(float)).p)
    wrong = 0
    for value, row in zip(values, holm(p), strict=True):
        adjusted = np.ones((6, 6))
        adjusted[i, j] = adjusted[j, i] = row
        found = tiers(value, adjusted, True)
        assert found[5] is None and 0 in found[:3]
        wrong += found[:3] != [0, 0, 0]
    assert 0.01 < wrong / tables < 0.05 + above(0.05, tables)


def test_seeds_and_items_to_settle_are_the_textbooks():
    # Two-sided 5%, power 80%: Cohen's d of 1, 0.8, 0.5 and 0.2.
    assert [seeds_to_settle(d, 1.0) for d in (1.0, 0.8, 0.5, 0.2)] == [17, 26, 64, 394]
    assert [seeds_to_settle(d, 1.0, paired=True) for d in (1.0, 0.8, 0.5, 0.2)] == [10, 15, 34, 199]
    # Proportions of 10% against 20%, and 50% against 60%, without continuity correction.
    assert (items_to_settle(0.1, 0.2), items_to_settle(0.6, 0.5)) == (199, 388)
    # By hand: (1.960 √0.3 + 0.8416 √0.29)² / 0.01 = 233.1.
    assert items_to_settle_paired(0.1, 0.3) == items_to_settle_paired(-0.1, 0.3) == 234


def test_no_number_settles_a_gap_of_nothing_and_two_seeds_settle_the_obvious():
    assert seeds_to_settle(0.0, 1.0) == items_to_settle(0.3, 0.3) == items_to_settle_paired(0.0, 0.2) == math.inf
    assert seeds_to_settle(100.0, 1.0) == seeds_to_settle(1.0, 0.0) == 2
    # Where t gives way to the normal distribution there is no step: 2 (2.8016 / 0.004)² is 981,108.2 before t.
    assert seeds_to_settle(0.004, 1.0) == pytest.approx(981_108, abs=2)
    assert seeds_to_settle(0.0039, 1.0) == math.ceil(2 * (2.801585 / 0.0039) ** 2)


def test_what_cannot_be_is_refused_before_a_sample_size_is_named():
    for call, complaint in (
        (lambda: items_to_settle_paired(0.3, 0.2), "discordance: 0.2 with a gap of 0.3"),
        (lambda: items_to_settle_paired(math.nan, 0.2), "discordance: 0.2 with a gap of nan"),
        (lambda: items_to_settle(50.0, 60.0), "p, q: 50.0 is not a proportion; give fractions"),
        (lambda: seeds_to_settle(1.0, -1.0), "sd: -1.0"),
        (lambda: seeds_to_settle(math.nan, 1.0), "gap of nan"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()


def test_so_many_items_and_seeds_find_the_gap_in_eight_cases_of_ten():
    rng, trials = np.random.default_rng(2), 3000
    n = items_to_settle_paired(0.05, 0.15)
    only_a, only_b, _ = rng.multinomial(n, [0.10, 0.05, 0.85], trials).T
    found = 2 * bdtr(np.minimum(only_a, only_b), only_a + only_b, 0.5) < 0.05
    # The exact test is cautious, some two points of power at about 65 items that tell apart.
    assert 0.75 < found.mean() < 0.8 + above(0.8, trials)
    k = seeds_to_settle(0.8, 1.0)
    x, y = rng.normal(0.8, 1, (trials, k)), rng.normal(size=(trials, k))
    found = scipy.stats.ttest_ind(x, y, axis=1).pvalue < 0.05
    # The next whole seed gives up to 1.5 points more than was asked for.
    assert 0.8 - above(0.8, trials) < found.mean() < 0.815 + above(0.8, trials)


def test_a_printed_proportion_is_never_certain():
    assert proportion_stderr(0.93, 500) == pytest.approx(math.sqrt(0.93 * 0.07 / 500))
    assert proportion_stderr(1.0, 500) == proportion_stderr(0.0, 500) == proportion_floor(500)
    with pytest.raises(ValueError, match="n: 0 samples"):
        proportion_stderr(0.5, 0)
    with pytest.raises(ValueError, match="a: 93.0 is not a proportion; give fractions"):
        printed_gap(93.0, 89.0, 500)


def test_printed_gaps_by_hand():
    # 93.0 against 89.0 of 500: 4 ± 1.96 · 1.8055 points, z = 2.2154.
    found = printed_gap(0.93, 0.89, 500)
    assert (found.p, found.low, found.high) == pytest.approx((0.02673, 0.00461, 0.07539), abs=1e-5)
    assert found.test == "z of unpaired proportions" and found.n == 500
    # Two tasks: the errors' squares add and halve twice.
    both = printed_gap([0.93, 0.5], [0.89, 0.5], [500, 1000])
    stderr = math.sqrt(0.018055**2 + 2 * 0.25 / 1000) / 2
    assert (both.difference, both.high) == pytest.approx((0.02, 0.02 + 1.96 * stderr), abs=1e-5)
    with pytest.raises(ValueError, match="n: 1 sizes for 2 and 2 numbers"):
        printed_gap([0.5, 0.5], [0.5, 0.5], 500)


def test_equal_proportions_are_printed_apart_in_one_case_of_twenty():
    rng = np.random.default_rng(3)
    for level in (0.5, 0.95):
        drawn = rng.binomial(500, level, (2000, 2)) / 500
        wrong = np.mean([printed_gap(a, b, 500).p < 0.05 for a, b in drawn])
        assert abs(wrong - 0.05) < above(0.05, 2000)
    # Near 100% the error never falls below that of one dissenter, and the test becomes cautious.
    drawn = rng.binomial(500, 0.998, (2000, 2)) / 500
    assert np.mean([printed_gap(a, b, 500).p < 0.05 for a, b in drawn]) < 0.05


def test_what_the_papers_own_numbers_tell_apart():
    frame = published("table3")
    column = frame[(frame["task"] == "s_niah_3") & (frame["length"] == 2048) & (frame["layout"] == "recurrent")]
    values = dict(zip(column["mixer"], column["value"], strict=True))
    n = task_sizes()["s_niah_3"]
    adjusted = pairwise(list(values.values()), lambda a, b: printed_gap(a, b, n))
    marks = dict(zip(values, tiers(list(values.values()), adjusted, True), strict=True))
    # 89.8 for gdn2 before 72.4, 63.2, 54.2, 38.6 and 35.6: seven points and more against errors of two.
    assert {m: t for m, t in marks.items() if t is not None} == {"gdn2": 0, "mamba3_mimo": 1}
