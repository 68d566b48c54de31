"""Standard errors and tests of differences, against scipy, worked examples and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from harness.stats import (
    Part,
    difference,
    estimate,
    mean_stderr,
    perplexity,
    proportion_floor,
    significantly_better,
)


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


def test_unpaired_difference_is_welchs_t():
    rng = np.random.default_rng(2)
    x, y = rng.normal(0.3, 1.0, 40), rng.normal(0.0, 2.0, 25)
    estimates = [estimate([v.mean()], [scipy.stats.sem(v)], [v.size]) for v in (x, y)]
    diff = difference(*estimates)
    expected = scipy.stats.ttest_ind(x, y, equal_var=False)
    assert diff.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert diff.df == pytest.approx(expected.df, rel=1e-9)
    assert not diff.paired


def test_difference_over_seeds_alone_is_welchs_t():
    x, y = [0.40, 0.45, 0.47], [0.30, 0.31, 0.36]
    a, b = (estimate(v, [None] * 3, [10] * 3) for v in (x, y))
    assert difference(a, b).p == pytest.approx(scipy.stats.ttest_ind(x, y, equal_var=False).pvalue, rel=1e-9)


def test_paired_difference_is_the_paired_t():
    rng = np.random.default_rng(3)
    items = rng.normal(size=60)
    x, y = items + rng.normal(0.2, 0.2, 60), items + rng.normal(0.0, 0.2, 60)
    a, b = (estimate([v.mean()], [scipy.stats.sem(v)], [60]) for v in (x, y))
    diff = difference(a, b, ([x], [y]))
    assert diff.paired and diff.p == pytest.approx(scipy.stats.ttest_rel(x, y).pvalue, rel=1e-9)
    # What the items have in common cancels: only the paired test sees this difference.
    assert significantly_better(a, b, True, ([x], [y])) and not significantly_better(a, b, True)


def test_pairing_items_keeps_the_spread_of_the_seeds():
    # Every item moves with its seed: pairing over many items must not hide that three seeds differ by 0.2.
    items = np.random.default_rng(4).normal(size=500)
    noise = np.random.default_rng(5).normal(0, 0.01, (6, 500))
    x = [items + shift + n for shift, n in zip((0.0, 0.2, 0.4), noise[:3], strict=True)]
    y = [items + shift + n for shift, n in zip((-0.1, 0.1, 0.3), noise[3:], strict=True)]
    a, b = (estimate([s.mean() for s in v], [scipy.stats.sem(s) for s in v], [500] * 3) for v in (x, y))
    diff = difference(a, b, (x, y))
    # Seeds' parts 0.2²/3 each; the items add less than 1e-6.
    assert diff.stderr == pytest.approx(math.sqrt(2 * 0.04 / 3), rel=0.02)
    assert not significantly_better(a, b, True, (x, y))


def test_all_right_against_all_wrong_depends_on_how_many():
    for n, expected in ((2, False), (500, True)):
        a, b = (estimate([v], [proportion_floor(n)], [n]) for v in (1.0, 0.0))
        assert significantly_better(a, b, True, ([np.ones(n)], [np.zeros(n)])) is expected


def test_the_direction_of_the_metric_decides_who_is_better():
    low, high = estimate([15.0], [0.1], [100]), estimate([16.0], [0.1], [100])
    assert significantly_better(low, high, higher_is_better=False)
    assert not significantly_better(high, low, higher_is_better=False)
    assert significantly_better(high, low, higher_is_better=True)
    assert not significantly_better(low, low, higher_is_better=True)


def test_without_an_error_nothing_is_significant():
    known, unknown = estimate([0.9], [0.01], [100]), estimate([0.1], [None], [100])
    assert difference(known, unknown) is None
    assert not significantly_better(known, unknown, True)
    assert not significantly_better(estimate([math.inf], [0.1], [9]), known, True)


def test_combined_degrees_of_freedom_are_satterthwaites():
    a = estimate([0.4, 0.6], [0.1, 0.1], [101, 101])
    parts = [Part(0.01, 1), Part(0.01, 100), Part(0.04, 100)]
    diff = difference(a, estimate([0.0], [0.2], [101]))
    assert diff.df == pytest.approx(0.06**2 / sum(p.variance**2 / p.df for p in parts))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_models_differ_in_one_comparison_of_twenty_at_most(paired, seeds):
    """Two mixers of one quality, items shared, seeds random: the false-positive rate is at most the nominal 5%."""
    rng = np.random.default_rng(6)
    trials, items, wrong = 1000, 40, 0
    for _ in range(trials):
        difficulty = rng.normal(size=items)
        spread = 0.3 if seeds > 1 else 0.0  # with one seed the test is about these two models, not their mixers
        rows = [[difficulty + rng.normal(0, spread) + rng.normal(size=items) for _ in range(seeds)] for _ in "ab"]
        a, b = (estimate([s.mean() for s in r], [mean_stderr(s)[1] for s in r], [items] * seeds) for r in rows)
        scores = (rows[0], rows[1]) if paired else None
        diff = difference(a, b, scores)
        wrong += diff.p < 0.05
    # 1000 trials at 5% have a standard deviation of 0.7%; three of them above.
    assert wrong / trials < 0.071
    if paired and seeds == 1:  # here the test is the exact paired t, not a conservative one
        assert wrong / trials > 0.029
