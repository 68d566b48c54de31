"""Pseudo-random orders and numbers that depend on a key and a position alone, however they are split over calls."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


def sample_order(windows: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """The window that each of the samples start … start + count - 1 reads, [count].

    Sample g reads window π(g mod windows), where π is the permutation of epoch g // windows. This is a pure function of
    its arguments: samples may be split over steps, devices and calls in any way. Memory does not grow with `windows`.
    """
    epochs, positions = np.divmod(np.arange(start, start + count, dtype=np.int64), windows)
    order = np.empty(count, np.int64)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        order[chosen] = permute(positions[chosen], windows, f"{seed} {epoch}")
    return order


def permute(positions: NDArray[np.int64], size: int, key: str, rounds: int = 6) -> NDArray[np.int64]:
    """Map each of `positions` by the pseudo-random permutation of 0 … size - 1 that `key` selects.

    A balanced Feistel network over the next even number of bits, applied repeatedly until the value is in range
    (cycle walking; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * rounds), dtype="<u8").astype(np.uint64)
    values = positions.astype(np.uint64)
    todo = np.arange(len(values))
    while len(todo):
        left, right = values[todo] >> half, values[todo] & mask
        for k in keys:
            left, right = right, left ^ (mix(right + k) & mask)
        values[todo] = (left << half) | right
        todo = todo[values[todo] >= size]
    return values.astype(np.int64)


def uniform(key: str, numbers: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """`count` random numbers in [0, 1) for each of `numbers`, [len(numbers), count].

    A row is a pure function of (key, its number): SplitMix64's sequence from a start that the two select.
    """
    start = np.frombuffer(hashlib.shake_256(key.encode()).digest(8), dtype="<u8").astype(np.uint64)
    rows = mix(start + numbers.astype(np.uint64) * GAMMA)
    bits = mix(rows[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GAMMA)
    return (bits >> np.uint64(11)) * 2.0**-53


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
