"""Rows of state tracking: pure functions of their number, whose answers an independent calculation confirms."""

import hashlib
from itertools import permutations

import numpy as np
import pytest

from harness.data import state_tracking
from harness.data.state_tracking import TASKS, Task, draw, fewest_ids, shortest_row, states

NUMBERS = np.arange(200)
SYMBOLS = "01234+-*()="
SYMMETRIC = sorted(permutations(range(5)))
ELEMENTS = {
    "s3": sorted(permutations(range(3))),
    # The determinant of a permutation's matrix is its sign.
    "a5": [p for p in SYMMETRIC if np.linalg.det(np.eye(5)[list(p)]) > 0],
    "s5": SYMMETRIC,
    "swaps": SYMMETRIC,
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [2, 19])
def test_a_row_is_a_function_of_its_number_and_its_symbols_fit_the_vocabulary(task: Task, length: int) -> None:
    whole = draw(task, length, "train 0", NUMBERS)
    shuffled = np.random.default_rng(0).permutation(NUMBERS)
    for part in (shuffled[:1], shuffled[1:70], shuffled[70:]):
        for ours, expected in zip(draw(task, length, "train 0", part), whole, strict=True):
            assert (ours == expected[part]).all()
    assert (draw(task, length, "train 1", NUMBERS).inputs != whole.inputs).any()
    assert whole.inputs.shape == (200, length) and 0 <= whole.inputs.min() <= whole.inputs.max() < fewest_ids(task)
    assert 0 <= whole.targets.min() <= whole.targets.max() < states(task)
    assert (whole.counted == whole.counted[0]).all()  # an answer is asked for at the same places of all rows


def test_parity_counts_the_ones_read() -> None:
    drawn = draw("parity", 30, "test 0", NUMBERS)
    assert (drawn.targets == np.cumsum(drawn.inputs, axis=1) % 2).all() and drawn.counted.all()
    assert drawn.inputs.mean() == pytest.approx(0.5, abs=0.03)  # 6,000 bits: four standard errors


@pytest.mark.parametrize("length", [1, 2, 21, 40])
def test_arithmetic_without_brackets_is_worth_what_python_makes_of_it_after_every_digit(length: int) -> None:
    drawn = draw("modular", length, "test 0", NUMBERS)
    for row, answers in zip(drawn.inputs.tolist(), drawn.targets, strict=True):
        text = "".join(SYMBOLS[token] for token in row)
        assert [eval(text[:end]) % 5 for end in range(1, length + 1, 2)] == answers[::2].tolist()
    assert drawn.counted[:, ::2].all() and not drawn.counted[:, 1::2].any()


@pytest.mark.parametrize("length", [*range(2, 14), 40])
def test_arithmetic_with_brackets_is_worth_what_python_makes_of_it(length: int) -> None:
    drawn = draw("modular_brackets", length, "test 0", NUMBERS)
    for row, answers in zip(drawn.inputs.tolist(), drawn.targets.tolist(), strict=True):
        text = "".join(SYMBOLS[token] for token in row)
        assert text.endswith("=") and len(text) == length and eval(text[:-1]) % 5 == answers[-1]
    assert drawn.counted[:, -1].all() and not drawn.counted[:, :-1].any()


@pytest.mark.parametrize("task", ["swaps", "s3", "a5", "s5"])
def test_permutations_move_a_row_of_things_as_their_product_does(task: Task) -> None:
    elements, drawn = ELEMENTS[task], draw(task, 12, "test 0", NUMBERS)
    assert len(elements) == states(task)
    for row, answers in zip(drawn.inputs.tolist(), drawn.targets.tolist(), strict=True):
        matrix = np.eye(len(elements[0]))
        for symbol, answer in zip(row, answers, strict=True):
            matrix = np.eye(len(matrix))[:, list(elements[symbol])] @ matrix  # sends basis vector i to p(i)
            assert (matrix == np.eye(len(matrix))[:, list(elements[answer])]).all()
    if task == "swaps":
        moved = {sum(a != i for i, a in enumerate(elements[symbol])) for symbol in np.unique(drawn.inputs)}
        assert moved == {2} and len(np.unique(drawn.inputs)) == 10


def test_rows_do_not_change_without_a_new_definition() -> None:
    drawn = [draw(task, max(9, shortest_row(task)), "frozen", np.arange(4)) for task in TASKS]
    content = [part.astype(int).tolist() for each in drawn for part in each]
    digest = hashlib.sha256(repr(content).encode()).hexdigest()
    assert (state_tracking.DEFINITION, digest[:16]) == ("state tracking 1", "058566c22d2eca97")
