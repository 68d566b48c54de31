"""The order of windows: a permutation per epoch, unrelated between seeds and epochs, the same however it is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.order import permute, sample_order, uniform


@settings(deadline=None)
@given(st.integers(1, 3000), st.text(max_size=5))
def test_permute_is_a_permutation_of_any_size(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(-(2**70), 2**70), st.integers(0, 5), st.integers(1, 60), st.data())
def test_an_epoch_reads_every_window_once_however_it_is_sliced(windows, seed, epoch, batch, draw):
    whole = sample_order(windows, seed, epoch * windows, windows)
    assert sorted(whole.tolist()) == list(range(windows))
    long = sample_order(windows, seed, 0, (epoch + 1) * windows)
    assert long[epoch * windows :].tolist() == whole.tolist()
    step = draw.draw(st.integers(0, len(long) // batch))
    part = sample_order(windows, seed, step * batch, batch)
    assert part[: len(long) - step * batch].tolist() == long[step * batch : (step + 1) * batch].tolist()


def test_orders_of_epochs_and_seeds_are_unrelated():
    orders = [sample_order(1000, seed, epoch * 1000, 1000) for seed in range(5) for epoch in range(5)]
    for i, a in enumerate(orders):
        for b in [np.arange(1000), *orders[:i]]:
            # Matches of two random permutations are Poisson with mean 1: 13 or more has probability 6e-11.
            assert (a == b).sum() < 13
            # The rank correlation has standard deviation 1/sqrt(999) = 0.032; 5 of them.
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.16


def test_first_window_of_an_epoch_is_uniform():
    first = np.array([permute(np.zeros(1, np.int64), 10, f"{seed} 0")[0] for seed in range(2000)])
    # 200 expected in each of 10 cells, standard deviation 13.4; 5 of them.
    assert (np.abs(np.bincount(first, minlength=10) - 200) < 67).all()


@settings(deadline=None)
@given(st.text(max_size=5), st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(1, 40))
def test_random_numbers_depend_on_key_and_number_alone(key, numbers, count):
    whole = uniform(key, np.array(numbers), count + 3)
    for row, number in zip(whole, numbers, strict=True):
        assert (uniform(key, np.array([number]), count) == row[:count]).all()
    assert whole.min() >= 0 and whole.max() < 1


def test_random_numbers_are_uniform_and_unrelated_to_their_neighbours():
    u = uniform("test", np.arange(20_000), 5)
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    # Chi-square with 19 degrees of freedom, 99.9% below 43.8.
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8
    pairs = [u[:, :2], u[:-1, :1], uniform("other", np.arange(20_000), 1)]
    for a, b in ((pairs[0][:, 0], pairs[0][:, 1]), (pairs[1][:, 0], u[1:, 0]), (u[:, 0], pairs[2][:, 0])):
        # A correlation of 20,000 independent pairs has a standard deviation of 0.007.
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
