"""The order of windows: a permutation per epoch, unrelated between seeds and epochs, the same however it is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.order import permute, sample_order


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
