"""Rows of state-tracking tasks on bare token ids: parity, modular arithmetic, and composition of permutations.

Every task reads a word of symbols and names the state that it leaves:

    parity             bits; the state is the parity of their sum
    modular            digits 0 … 4 with + - × between them, × binding tighter; the state is the value modulo 5
    modular_brackets   an expression with brackets and unary minus, then =; the value modulo 5
    swaps              transpositions of five elements; the state is their product
    s3, a5, s5         any elements of the group; the state is their product

The answer is asked for after each symbol of parity and of the permutations, after each digit of `modular` (the value of
what has been read), and at the = alone of `modular_brackets`, whose prefixes have no value. Parity and permutations are
those of Grazzi et al. (arXiv 2411.12537) and Merrill et al. (arXiv 2404.08819); the arithmetic is that of Delétang et
al. (arXiv 2207.02098), which Mamba-3 (arXiv 2603.15569, table 5b) takes over.

Ids: a bit, digit or group element is its number, counted from 0; the elements of a group are sorted as tuples. Answers
are the ids of the state. Behind the digits follow + - × ( ) =.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from harness.data.order import uniform

Task = Literal["parity", "modular", "modular_brackets", "swaps", "s3", "a5", "s5"]
TASKS: tuple[Task, ...] = get_args(Task)
Ids = NDArray[np.int64]

DEFINITION = "state tracking 1"
"""Identifies what `draw` returns. Give it another name whenever the same arguments come to draw other rows."""
MODULUS = 5
PLUS, MINUS, TIMES, OPEN, CLOSE, EQUALS = range(MODULUS, MODULUS + 6)


class Drawn(NamedTuple):
    """R rows of T tokens. inputs: [R, T]. targets: [R, T], 0 where nothing is asked. counted: [R, T] bool, where an
    answer is asked for."""

    inputs: Ids
    targets: Ids
    counted: NDArray[np.bool_]


def states(task: Task) -> int:
    """Number of states. Chance is counted as one in so many, as in the papers, though × makes 0 likelier than that."""
    if task == "parity":
        return 2
    return MODULUS if task in ("modular", "modular_brackets") else len(_group("s5" if task == "swaps" else task)[0])


def fewest_ids(task: Task) -> int:
    """Size of the smallest vocabulary that holds the task's symbols and answers."""
    return EQUALS + 1 if task in ("modular", "modular_brackets") else states(task)


def shortest_row(task: Task) -> int:
    """Fewest tokens of a row."""
    return 2 if task == "modular_brackets" else 1


def draw(task: Task, length: int, stream: str, numbers: Ids) -> Drawn:
    """The rows of these numbers, [R], each of `length` tokens, at least `shortest_row(task)`.

    A row is a pure function of its number and the other arguments. stream: names an endless sequence of rows, such as
    "test 0".
    """
    u = uniform(f"{DEFINITION} {task} {length} {stream}", numbers, length)
    if task == "parity":
        inputs = (u * 2).astype(np.int64)
        return Drawn(inputs, inputs.cumsum(axis=1) % 2, np.ones_like(inputs, bool))
    if task == "modular":
        return _modular(u)
    if task == "modular_brackets":
        rows = [_expression(row) for row in u]
        inputs, targets = np.array([tokens for tokens, _ in rows]), np.zeros((len(rows), length), np.int64)
        targets[:, -1] = [value for _, value in rows]
        counted = np.zeros_like(inputs, bool)
        counted[:, -1] = True
        return Drawn(inputs, targets, counted)
    elements, table = _group("s5" if task == "swaps" else task)
    symbols = np.arange(len(elements))
    if task == "swaps":
        moved = [sum(a != i for i, a in enumerate(element)) for element in elements]
        symbols = symbols[np.array(moved) == 2]
    inputs = symbols[(u * len(symbols)).astype(np.int64)]
    targets, state = np.empty_like(inputs), np.zeros(len(inputs), np.int64)  # element 0 is the identity
    for t in range(length):
        state = table[inputs[:, t], state]
        targets[:, t] = state
    return Drawn(inputs, targets, np.ones_like(inputs, bool))


@cache
def _group(name: Task) -> tuple[list[tuple[int, ...]], Ids]:
    """The elements of a permutation group, sorted, and its table: [a, b] is the number of a after b."""
    size = 3 if name == "s3" else 5
    elements = sorted(p for p in permutations(range(size)) if name != "a5" or _even(p))
    number = {element: index for index, element in enumerate(elements)}
    return elements, np.array([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])


def _even(permutation: tuple[int, ...]) -> bool:
    size = len(permutation)
    return sum(permutation[i] > permutation[j] for i in range(size) for j in range(i + 1, size)) % 2 == 0


def _modular(u: NDArray[np.float64]) -> Drawn:
    """Digits at even places, operators at odd ones. The value so far is `total` plus the product that is still open."""
    inputs = np.empty(u.shape, np.int64)
    inputs[:, ::2] = u[:, ::2] * MODULUS
    inputs[:, 1::2] = PLUS + (u[:, 1::2] * 3).astype(np.int64)
    targets, counted = np.zeros_like(inputs), np.zeros_like(inputs, bool)
    counted[:, ::2] = True
    total, product = np.zeros(len(inputs), np.int64), inputs[:, 0]
    targets[:, 0] = product
    for t in range(2, inputs.shape[1], 2):
        operator, digit = inputs[:, t - 1], inputs[:, t]
        times = operator == TIMES
        total = np.where(times, total, (total + product) % MODULUS)
        product = np.where(times, product * digit, np.where(operator == MINUS, -digit, digit)) % MODULUS
        targets[:, t] = (total + product) % MODULUS
    return Drawn(inputs, targets, counted)


_VALUE: dict[int, Callable[[int, int], int]] = {
    PLUS: lambda a, b: a + b,
    MINUS: lambda a, b: a - b,
    TIMES: lambda a, b: a * b,
}


def _expression(u: NDArray[np.float64]) -> tuple[list[int], int]:
    """A random expression that fills all but the last of len(u) tokens, =, and its value modulo 5.

    1 token: a digit. 2: minus and a digit. 3, 4: those in brackets. More: (left operator right), split uniformly.
    """
    left_over = iter(u)

    def pick(size: int) -> int:
        return int(next(left_over) * size)

    def expand(length: int) -> tuple[list[int], int]:
        if length == 1:
            digit = pick(MODULUS)
            return [digit], digit
        if length == 2:
            tokens, value = expand(1)
            return [MINUS, *tokens], -value % MODULUS
        if length < 5:
            tokens, value = expand(length - 2)
            return [OPEN, *tokens, CLOSE], value
        size = 1 + pick(length - 4)
        operator = PLUS + pick(3)
        left, a = expand(size)
        right, b = expand(length - 3 - size)
        return [OPEN, *left, operator, *right, CLOSE], _VALUE[operator](a, b) % MODULUS

    tokens, value = expand(len(u) - 1)
    return [*tokens, EQUALS], value
