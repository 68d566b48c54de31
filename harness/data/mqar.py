"""Rows of multi-query associative recall (MQAR) on bare token ids, drawn in bulk for training and for scoring.

A row lists `pairs` keys, each with its value, and later names every key once more; the answer to such a question is the
key's value. With N ids, 0 is the filler, 1 … N/2 - 1 are keys and N/2 … N - 1 are values. A row has no key and no value
twice. The task, with its two protocols, that of the paper and a stricter one:

    zoology    Zoology (arXiv 2312.04927), in the form of its public code without random fillers. Behind the listing
               follow slots of two tokens: a question and a filler, or two fillers. Slots are drawn without replacement
               with p(slot g) ∝ g^-0.99, g = 1, 2, …; the first slot drawn goes to the first listed key, and so on.
    separated  The slots begin one filler later, so that no question directly follows the listing, and each key has the
               same distribution of slots wherever it is listed.

In both, answers are targets and stand nowhere else in the row's second part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.order import uniform

Protocol = Literal["zoology", "separated"]
Ids = NDArray[np.int64]

FILLER = 0
POWER = 0.01
"""Zoology's `power_a`: slot g = 1, 2, … has a probability proportional to g^(POWER - 1)."""
DEFINITION = "mqar 1"
"""Identifies what `draw` returns. Give it another name whenever the same arguments come to draw other rows."""


@dataclass(frozen=True)
class Drawn:
    """R rows of T tokens with P pairs each.

    inputs: [R, T]. targets: [R, T], the answer at each question and the filler elsewhere. questions: [R, P], the
    position of the question about each pair, by the pair's place in the listing.
    """

    inputs: Ids
    targets: Ids
    questions: Ids

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which targets are answers, [R, T]."""
        return self.targets != FILLER

    @property
    def distances(self) -> Ids:
        """Tokens from each pair's value to its question, [R, P]."""
        return self.questions - np.arange(1, 2 * self.questions.shape[1], 2)


def shortest_row(pairs: int) -> int:
    """Fewest tokens of a row: the listing, and a slot of two tokens for each question."""
    return 4 * pairs


def fewest_ids(pairs: int) -> int:
    """Size of the smallest vocabulary with a filler and enough keys; it has enough values, too."""
    return 2 * (pairs + 1)


def draw(pairs: int, seq_len: int, vocab: int, protocol: Protocol, stream: str, numbers: Ids) -> Drawn:
    """The rows of these numbers, [R]. Each is a pure function of its number and the other arguments.

    pairs, seq_len, vocab: at least 1, `shortest_row(pairs)` and `fewest_ids(pairs)`. stream: names an endless sequence
    of rows, such as "test 0".
    """
    slots, keys = (seq_len - 2 * pairs) // 2, vocab // 2 - 1
    u = uniform(f"{DEFINITION} {protocol} {pairs} {seq_len} {vocab} {stream}", numbers, 3 * pairs + slots)
    of_keys, of_values, of_order, of_slots = np.split(u, [pairs, 2 * pairs, 3 * pairs], axis=1)
    key, value = 1 + distinct(of_keys, keys), vocab // 2 + distinct(of_values, vocab - vocab // 2)
    slot = successive(of_slots, np.arange(1, slots + 1) ** (POWER - 1.0), pairs)
    questions = 2 * pairs + 2 * slot
    if protocol == "separated":
        questions = 1 + np.take_along_axis(questions, of_order.argsort(axis=1), axis=1)
    inputs, targets = np.full((2, len(numbers), seq_len), FILLER, np.int64)
    inputs[:, : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = key, value
    np.put_along_axis(inputs, questions, key, axis=1)
    np.put_along_axis(targets, questions, value, axis=1)
    return Drawn(inputs, targets, questions)


def distinct(u: NDArray[np.float64], size: int) -> Ids:
    """Uniform draws without replacement from 0 … size - 1, one row of them for each row of `u`, [R, P].

    The first P steps of the Fisher-Yates shuffle. u: independent uniform numbers in [0, 1).
    """
    pool, rows = np.tile(np.arange(size), (len(u), 1)), np.arange(len(u))
    for step in range(u.shape[1]):
        at = step + (u[:, step] * (size - step)).astype(np.int64)
        pool[rows, at], pool[:, step] = pool[:, step].copy(), pool[rows, at]
    return pool[:, : u.shape[1]].copy()


def successive(u: NDArray[np.float64], weights: NDArray[np.float64], count: int) -> Ids:
    """Draws without replacement where each takes one of those left with a probability proportional to its weight.

    Exponential clocks of rate `weights` ring in this order (Efraimidis and Spirakis, Weighted Random Sampling, 2006).
    u: independent uniform numbers in [0, 1), [R, len(weights)]. Returns indices [R, count] in the order drawn.
    """
    return (-np.log1p(-u) / weights).argsort(axis=1, kind="stable")[:, :count]
