"""Standard errors and tests of differences, against scipy, worked examples and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.records.stats import (
    BOOTSTRAP_FROM,
    Estimate,
    average,
    average_difference,
    bootstrap_distribution,
    difference,
    estimate,
    lies_within,
    mean_stderr,
    paired,
    perplexity,
    proportion_floor,
)


def above(rate: float, trials: int) -> float:
    """Three standard deviations of a rate that is measured over so many trials: one run of 700 is off by more."""
    return 3 * math.sqrt(rate * (1 - rate) / trials)


def seeds_alone(values: Sequence[float]) -> Estimate:
    """One number a seed, whose sampling errors are not known."""
    return estimate(values, [None] * len(values), [1] * len(values))


def test_the_error_of_a_mean_is_scipys():
    x = np.random.default_rng(0).normal(size=37)
    mean, stderr = mean_stderr(x)
    assert mean == pytest.approx(x.mean(), rel=1e-12)
    assert stderr == pytest.approx(scipy.stats.sem(x), rel=1e-12)  # the same formula in another order of operations
    assert mean_stderr([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="samples: none"):
        mean_stderr([])


def test_perplexity_of_documents_of_equal_weight_by_hand():
    # Losses 1 and 3: mean 2, sd √2, standard error 1.
    value, stderr, scores = perplexity([1.0, 3.0], [1, 1])
    assert value == pytest.approx(math.e**2)
    assert stderr == pytest.approx(math.e**2)
    assert scores == pytest.approx((1.0, 3.0))


def test_perplexity_weighs_documents_by_their_words():
    value, _, scores = perplexity([10.0, 90.0], [10, 30])
    assert value == pytest.approx(math.exp(100 / 40))
    assert np.mean(scores) == pytest.approx(100 / 40)
    # Documents that are all as predictable a word leave no error, whatever their lengths.
    _, stderr, _ = perplexity([10.0, 40.0, 50.0], [5, 20, 25])
    assert stderr == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_a_perplexity_is_what_a_bootstrap_over_documents_gives():
    rng = np.random.default_rng(1)
    words = rng.integers(50, 400, 200)
    nll = words * rng.normal(3.0, 0.3, 200)
    _, stderr, _ = perplexity(nll, words)
    draws = rng.integers(0, 200, (4000, 200))
    values = np.exp(nll[draws].sum(1) / words[draws].sum(1))
    # 4000 draws know a standard deviation to about 1.1%; 5% is over four of those.
    assert stderr == pytest.approx(values.std(ddof=1), rel=0.05)


def test_perplexity_of_one_document_has_no_error_and_bad_units_are_refused():
    assert perplexity([2.0], [1])[1] is None
    for nll, units in [([], []), ([1.0], [1, 2]), ([1.0], [0])]:
        with pytest.raises(ValueError, match="nll, units"):
            perplexity(nll, units)


def test_seeds_and_samples_add_as_variances_by_hand():
    # Seeds 0.4, 0.5, 0.6: sd 0.1, variance of their mean 0.01/3. Samples: mean of 0.01², 0.02², 0.02².
    e = estimate([0.4, 0.5, 0.6], [0.01, 0.02, 0.02], [100, 50, 100])
    assert (e.value, e.seeds, e.sd) == pytest.approx((0.5, 3, 0.1))
    assert e.seeds_part.variance == pytest.approx(0.01 / 3) and e.seeds_part.df == 2
    assert e.samples_part.variance == pytest.approx(0.0003) and e.samples_part.df == 49
    assert e.stderr == pytest.approx(math.sqrt(0.01 / 3 + 0.0003))


def test_one_seed_has_its_sampling_error_and_no_spread():
    e = estimate([0.5], [0.02], [100])
    assert e.stderr == pytest.approx(0.02) and e.sd is None and e.seeds_part is None
    assert estimate([0.5], [None], [100]).stderr is None
    # A seed without a sampling error leaves what the seeds themselves say.
    assert estimate([0.4, 0.6], [None, 0.1], [9, 9]).stderr == pytest.approx(scipy.stats.sem([0.4, 0.6]))


def test_one_number_a_seed_has_scipys_t_interval_and_one_seed_has_none():
    x = [0.40, 0.45, 0.47, 0.41]
    e = seeds_alone(x)
    expected = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert e.interval == pytest.approx((expected.low, expected.high))
    assert (e.value, e.sd) == pytest.approx((np.mean(x), np.std(x, ddof=1)))
    one = seeds_alone([0.4])
    assert one.interval is None and one.sd is None
    assert seeds_alone([0.4, 0.4]).interval == (0.4, 0.4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_by_its_place(bad):
    for call in (
        lambda: paired([0.0, bad], [1.0, 1.0]),
        lambda: estimate([0.5, bad], [None, None], [1, 1]),
        lambda: average_difference([[[0.5, bad]]], [[[0.5, 0.5]]]),
    ):
        with pytest.raises(ValueError, match=f"number 2 of 2 is {bad}"):
            call()


def test_unpaired_difference_is_welchs_t():
    rng = np.random.default_rng(2)
    x, y = rng.normal(0.3, 1.0, 40), rng.normal(0.0, 2.0, 25)
    estimates = [estimate([v.mean()], [scipy.stats.sem(v)], [v.size]) for v in (x, y)]
    diff = difference(*estimates)
    expected = scipy.stats.ttest_ind(x, y, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert diff.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (diff.low, diff.high) == pytest.approx((interval.low, interval.high))
    assert (diff.test, diff.n) == ("Welch's t", 25)


def test_difference_over_seeds_alone_is_welchs_t():
    x, y = [0.40, 0.45, 0.47], [0.30, 0.31, 0.36]
    expected = scipy.stats.ttest_ind(x, y, equal_var=False).pvalue
    found = difference(seeds_alone(x), seeds_alone(y))
    assert found.p == pytest.approx(expected, rel=1e-9) and found.n == 3


def test_seeds_without_spread_are_not_tested():
    level = difference(seeds_alone([0.5, 0.5]), seeds_alone([0.4, 0.4]))
    assert level.p is None and level.difference == pytest.approx(0.1) and level.test.startswith("none: no spread")


def matched(only_a: int, only_b: int, both: int, neither: int) -> tuple[list[float], list[float]]:
    """0/1 scores with so many items of each kind."""
    kinds = [(1.0, 0.0)] * only_a + [(0.0, 1.0)] * only_b + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    a, b = zip(*kinds, strict=True)
    return list(a), list(b)


def test_mcnemar_by_hand():
    # Of 12 items that tell the two apart, a solves 10: twice the tail (1 + 12 + 66) / 2^12.
    found = paired(*matched(10, 2, 50, 38))
    assert found.p == pytest.approx(2 * 79 / 4096) and found.test == "exact McNemar"
    assert (found.difference, found.n) == (pytest.approx(0.08), 100)
    # Bonett and Price: shares 11/102 and 3/102, so 8/102 ± 1.96 √((14/102 - (8/102)²) / 102).
    half = 1.959964 * math.sqrt((14 / 102 - (8 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((8 / 102 - half, 8 / 102 + half), abs=1e-6)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_the_items_that_tell_apart(only_a, only_b):
    if only_a + only_b:
        expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue
        assert paired(*matched(only_a, only_b, 5, 5)).p == pytest.approx(expected, abs=1e-9)


def test_scores_that_agree_on_every_item_still_have_an_interval():
    same = paired([1.0] * 500, [1.0] * 500)
    assert (same.difference, same.p) == (0.0, 1.0)
    # One dissenter on each side of 502: √2 / 502, which is 0.3 points.
    assert (-same.low, same.high) == pytest.approx((1.96 * math.sqrt(2) / 502,) * 2, rel=1e-3)
    one = paired([1.0], [0.0])
    assert one.p == 1.0 and one.low < 0 < one.difference == one.high == 1.0
    opposed = paired([1.0] * 500, [0.0] * 500)
    assert opposed.p < 1e-100 and 0.97 < opposed.low < opposed.high == 1.0


def test_few_continuous_scores_are_compared_by_the_paired_t():
    rng = np.random.default_rng(7)
    x, y = rng.normal(0.3, 1.0, BOOTSTRAP_FROM - 1), rng.normal(size=BOOTSTRAP_FROM - 1)
    found, expected = paired(x, y), scipy.stats.ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert found.test == "paired t" and paired([*x, 0.1], [*y, 0.2]).test == "paired bootstrap"


def test_continuous_differences_that_are_all_equal_have_their_sign_and_no_interval():
    x = np.random.default_rng(8).random(10)
    shifted = paired(x + 0.1, x)
    assert shifted.p == 2 / 2**10 and shifted.low is None and shifted.test.startswith("sign test")
    assert paired(x, x).p == 1.0 and paired([0.3], [0.2]).p == 1.0
    assert paired(np.full(40, 0.3), np.full(40, 0.3)).p == 1.0


def test_runs_of_different_items_are_not_paired():
    with pytest.raises(ValueError, match="2 scores, but a has 3; pair runs on the same items"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 scores, but a has 3"):
        average_difference([[[1.0, 2.0, 3.0]]], [[[1.0, 2.0]]])
    with pytest.raises(ValueError, match="a: none"):
        paired([], [])


def test_the_bootstrap_distribution_is_that_of_every_possible_draw():
    d = np.array([0.0, 1.0, 3.0, 7.0])
    means = np.array([np.mean(draw) for draw in itertools.product(d, repeat=4)]) - d.mean()
    grid, cdf = bootstrap_distribution(d)
    # Means are a quarter apart, and the grid smears each by less than a tenth: halfway the distributions are the same.
    for x in np.arange(-2.625, 4.3, 0.25):
        assert np.interp(x, grid, cdf) == pytest.approx((means < x).mean(), abs=1e-12)


@pytest.mark.parametrize("n", [40, 500, 3000])
def test_the_bootstrap_is_what_scipys_draws_approach(n):
    rng = np.random.default_rng(9)
    x, y = rng.exponential(size=n), rng.exponential(0.8, size=n)
    found, stderr = paired(x, y), scipy.stats.sem(x - y)
    level = scipy.stats.norm.cdf(math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.025, n - 1))
    draws = scipy.stats.bootstrap(
        (x - y,), np.mean, n_resamples=20_000, method="percentile", confidence_level=1 - 2 * level, rng=rng, batch=1000
    ).confidence_interval
    # A quantile at 2.5% of 20,000 normal draws is known to √(0.025 · 0.975 / 20,000) / 0.058 = 0.019 standard errors.
    assert (found.low, found.high) == pytest.approx((draws.low, draws.high), abs=4 * 0.019 * stderr)


def test_the_bootstrap_of_many_samples_is_the_paired_t_and_its_p_fits_its_interval():
    rng = np.random.default_rng(10)
    items, noise = rng.normal(size=2000), rng.normal(size=(2, 2000))
    for shift in (0.03, 0.06, 0.09):
        x, y = items + noise[0] + shift, items + noise[1]
        found = paired(x, y)
        # Of 2000 normal differences: skewness and kurtosis of the sample move a p of 1e-3 by some percents.
        assert found.p == pytest.approx(scipy.stats.ttest_rel(x, y).pvalue, rel=0.1)
        # Shifted such that the interval begins at 0, p is the level; 0.1% for interpolation on the grid.
        assert paired(x - found.low, y).p == pytest.approx(0.05, rel=1e-3)


def test_one_wild_score_does_not_break_the_bootstrap():
    d = np.zeros(1000)
    d[0] = 1e6
    found = paired(d, np.zeros(1000))
    # The outlier is drawn 0, 1, 2 … times (Poisson), so means are 0, 1000, 2000 …; 0 in 36.8 of 100 cases, of which
    # half count as below 0, and p is twice that.
    assert (found.low, found.high) == pytest.approx((0.0, 3000.0), abs=20)
    assert found.p == pytest.approx(0.368, rel=0.05)


@pytest.mark.parametrize("n", [BOOTSTRAP_FROM, 100])
def test_the_bootstraps_interval_covers_the_truth_as_often_as_it_says(n):
    rng = np.random.default_rng(11)
    trials, missed = 1500, 0
    for _ in range(trials):
        items = rng.normal(size=n)
        found = paired(items + rng.normal(0.5, 1.0, n), items + rng.normal(0.0, 0.5, n))
        missed += not found.low <= 0.5 <= found.high
    assert abs(missed / trials - 0.05) < above(0.05, trials)


@pytest.mark.parametrize("n", [50, 500])
def test_the_interval_of_matched_proportions_covers_the_truth_as_often_as_it_says(n):
    rng = np.random.default_rng(12)
    trials, missed = 2000, 0
    for _ in range(trials):
        kind = rng.random(n)
        # 9% of the items only a solves, 4% only b: the truth is 5 points.
        found = paired((kind < 0.6) * 1.0, ((kind >= 0.09) & (kind < 0.64)) * 1.0)
        missed += not found.low <= 0.05 <= found.high
    # Whole items make a Wald interval's coverage step by a percent or two at n = 50; it must not miss more often.
    assert 0.02 < missed / trials < 0.05 + above(0.05, trials)


pairs = arrays(np.float64, st.tuples(st.just(2), st.integers(1, 60)), elements=st.floats(-1e3, 1e3, width=32))


@settings(deadline=None)  # the first transform of a size takes longer
@given(pairs, st.randoms(use_true_random=False))
def test_a_comparison_turns_round_with_its_sides_and_does_not_depend_on_the_order_of_items(scores, random):
    a, b = scores
    forth, back = paired(a, b), paired(b, a)
    order = random.sample(range(a.size), a.size)
    mixed = paired(a[order], b[order])
    assert 0 <= forth.p <= 1 and forth.test == back.test == mixed.test
    assert back.difference == -forth.difference
    assert back.p == pytest.approx(forth.p, abs=1e-6) and mixed.p == pytest.approx(forth.p, abs=1e-6)
    if forth.low is not None:
        close = {"rel": 1e-6, "abs": 1e-6 * (1 + forth.high - forth.low)}
        assert (-back.high, -back.low) == pytest.approx((forth.low, forth.high), **close)
        assert (mixed.low, mixed.high) == pytest.approx((forth.low, forth.high), **close)
        assert forth.low <= forth.difference <= forth.high


def test_paired_difference_sees_what_the_unpaired_does_not():
    rng = np.random.default_rng(3)
    items = rng.normal(size=60)
    x, y = items + rng.normal(0.2, 0.2, 60), items + rng.normal(0.0, 0.2, 60)
    a, b = (estimate([v.mean()], [scipy.stats.sem(v)], [60]) for v in (x, y))
    assert difference(a, b, ([x], [y])) == paired(x, y)
    # What the items have in common cancels.
    assert difference(a, b, ([x], [y])).p < 0.05 < difference(a, b).p


def test_pairing_items_keeps_the_spread_of_the_seeds():
    # Every item moves with its seed: pairing over many items must not hide that three seeds differ by 0.2.
    items = np.random.default_rng(4).normal(size=500)
    noise = np.random.default_rng(5).normal(0, 0.01, (6, 500))
    x = [items + shift + n for shift, n in zip((0.0, 0.2, 0.4), noise[:3], strict=True)]
    y = [items + shift + n for shift, n in zip((-0.1, 0.1, 0.3), noise[3:], strict=True)]
    a, b = (estimate([s.mean() for s in v], [scipy.stats.sem(s) for s in v], [500] * 3) for v in (x, y))
    diff = difference(a, b, (x, y))
    # Seeds' parts 0.2²/3 each, with 2 degrees of freedom each, so 4; the items add less than 1e-6.
    half = scipy.stats.t.ppf(0.975, 4) * math.sqrt(2 * 0.04 / 3)
    assert (diff.high - diff.low) / 2 == pytest.approx(half, rel=0.03)
    assert diff.test == "t over seeds and paired items" and diff.n == 500
    assert diff.p > 0.05


def test_all_right_against_all_wrong_depends_on_how_many():
    for n, expected in ((2, False), (500, True)):
        a, b = (estimate([v], [proportion_floor(n)], [n]) for v in (1.0, 0.0))
        assert (difference(a, b, ([np.ones(n)], [np.zeros(n)])).p < 0.05) is expected


def test_without_an_error_nothing_is_significant():
    known, unknown = estimate([0.9], [0.01], [100]), estimate([0.1], [None], [100])
    found = difference(known, unknown)
    assert found.p is None and found.low is None and found.test == "none: an error is not known"


def test_combined_degrees_of_freedom_are_satterthwaites():
    a = estimate([0.4, 0.6], [0.1, 0.1], [101, 101])
    diff = difference(a, estimate([0.0], [0.2], [101]))
    df = 0.06**2 / (0.01**2 / 1 + 0.01**2 / 100 + 0.04**2 / 100)
    assert diff.p == pytest.approx(2 * scipy.stats.t.sf(0.5 / math.sqrt(0.06), df))


def test_an_average_over_tasks_adds_their_samples_and_keeps_its_seeds_together_by_hand():
    # Seeds average 0.5 and 0.7: sd 0.2/√2. Samples: (0.02² + (0.01² + 0.03²)/2) / 2².
    e = average([[0.4, 0.8], [0.6, 0.6]], [[0.02, 0.02], [0.01, 0.03]], [[100, 100], [50, 50]])
    assert (e.value, e.seeds, e.sd, e.items) == (pytest.approx(0.6), 2, pytest.approx(0.2 / math.sqrt(2)), 150)
    assert e.seeds_part.variance == pytest.approx(0.01) and e.samples_part.variance == pytest.approx(0.0009 / 4)
    # One task is no average: the same as `estimate`.
    assert average([[0.4, 0.6]], [[0.1, 0.1]], [[9, 9]]) == estimate([0.4, 0.6], [0.1, 0.1], [9, 9])
    assert average([[0.4], [0.6]], [[0.1], [None]], [[9], [9]]).stderr is None
    with pytest.raises(ValueError, match=r"\[2, 1\] seeds by task"):
        average([[0.4, 0.6], [0.4]], [[0.1, 0.1], [0.1]], [[9, 9], [9]])


def test_the_difference_of_averages_is_that_of_a_bootstrap_within_tasks():
    rng = np.random.default_rng(13)
    a, b = [], []
    for n, shift in ((50, 0.3), (400, 0.0), (1000, -0.1)):
        items = rng.normal(0, 2, n)
        a.append([items + rng.normal(shift, 1, n)])
        b.append([items + rng.normal(0, 1, n)])
    found = average_difference(a, b)
    d = [x[0] - y[0] for x, y in zip(a, b, strict=True)]
    means = sum(v[rng.integers(0, v.size, (4000, v.size))].mean(axis=1) for v in d) / 3
    assert found.difference == pytest.approx(np.mean([v.mean() for v in d]))
    assert (found.test, found.n) == ("t over paired items of 3 tasks", 1450)
    # 4000 draws know a standard deviation to 1.1%, and t against z at some 80 degrees of freedom is 1.5%.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * means.std(), rel=0.06)


def test_a_task_that_both_solve_does_not_make_an_average_certain():
    solved = [[1.0] * 100]
    found = average_difference([solved, [[1.0, 0.0] * 50]], [solved, [[1.0, 0.0] * 50]])
    # Two dissenters in each task of 102: √(2 · 2) / 102 / 2.
    assert found.p == 1.0 and found.high == pytest.approx(scipy.stats.t.ppf(0.975, 198) / 102, rel=1e-6)
    still = [[0.25] * 100]
    assert average_difference([still], [still]).p is None


def test_the_interval_over_seeds_and_items_covers_the_mixers_difference():
    """Two mixers with random seeds, items and interactions: too wide by the interactions, never too narrow."""
    rng = np.random.default_rng(14)
    trials, items, seeds, missed = 1500, 60, 4, 0
    for _ in range(trials):
        hard = rng.normal(size=items)
        a, b = (
            hard + rng.normal(0, 0.3, items) + rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 0.5, (seeds, items))
            for _ in "ab"
        )
        found = average_difference([a], [b])
        missed += not found.low <= 0 <= found.high
    assert 0.01 < missed / trials < 0.05 + above(0.05, trials)


@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_models_differ_in_one_comparison_of_twenty_at_most(by_item, seeds):
    """Two mixers of one quality, items shared, seeds random: the false-positive rate is at most the nominal 5%."""
    rng = np.random.default_rng(6)
    trials, items, wrong = 1000, 40, 0
    for _ in range(trials):
        difficulty = rng.normal(size=items)
        spread = 0.3 if seeds > 1 else 0.0  # with one seed the test is about these two models, not their mixers
        rows = [[difficulty + rng.normal(0, spread) + rng.normal(size=items) for _ in range(seeds)] for _ in "ab"]
        a, b = (estimate([s.mean() for s in r], [mean_stderr(s)[1] for s in r], [items] * seeds) for r in rows)
        scores = (rows[0], rows[1]) if by_item else None
        diff = difference(a, b, scores)
        wrong += diff.p < 0.05
    assert wrong / trials < 0.05 + above(0.05, trials)
    if by_item and seeds == 1:  # here the test is the bootstrap, which is not a conservative one
        assert wrong / trials > 0.05 - above(0.05, trials)


@pytest.mark.parametrize(
    ("interval", "inside"),
    [
        ((1, 2), True),
        ((-2, -1), False),
        ((4, 5), False),
        ((-1, 1), None),
        ((2, 4), None),
        ((0, 1), None),
        ((-1, 5), None),
    ],
)
def test_an_interval_that_reaches_a_bound_neither_lies_within_nor_outside(interval, inside):
    assert lies_within(*interval, 0, 3) is inside
