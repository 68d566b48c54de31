"""MQAR rows: pure functions of their number, laid out as documented, with the gaps of Zoology's power law."""

import hashlib
from typing import get_args

import numpy as np
import pytest

from harness.data import mqar
from harness.data.mqar import Protocol, distinct, draw, fewest_ids, shortest_row, successive
from harness.data.order import uniform

NUMBERS = np.arange(400)
PROTOCOLS = get_args(Protocol)
SHAPES = [(4, 64, 512), (8, 33, 64), (3, shortest_row(3), fewest_ids(3)), (1, 4, 4)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_a_function_of_its_number_however_rows_are_split(
    shape: tuple[int, int, int], protocol: Protocol
) -> None:
    whole = draw(*shape, protocol, "train 0", NUMBERS)
    shuffled = np.random.default_rng(0).permutation(NUMBERS)
    for part in (shuffled[:1], shuffled[1:150], shuffled[150:]):
        drawn = draw(*shape, protocol, "train 0", part)
        assert (drawn.inputs == whole.inputs[part]).all() and (drawn.targets == whole.targets[part]).all()
        assert (drawn.questions == whole.questions[part]).all()


def test_streams_protocols_and_shapes_have_rows_of_their_own() -> None:
    of = {name: draw(4, 64, 512, "separated", name, NUMBERS).inputs for name in ("train 0", "train 1", "test 0")}
    rows = [tuple(row) for inputs in of.values() for row in inputs.tolist()]
    rows += [tuple(row) for row in draw(4, 64, 512, "zoology", "train 0", NUMBERS).inputs.tolist()]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_key_is_listed_and_asked_once_and_its_value_is_the_target_alone(
    shape: tuple[int, int, int], protocol: Protocol
) -> None:
    pairs, seq_len, vocab = shape
    drawn = draw(*shape, protocol, "test 0", NUMBERS)
    assert drawn.inputs.shape == drawn.targets.shape == (len(NUMBERS), seq_len)
    assert (drawn.counted.sum(axis=1) == pairs).all()
    for row, targets, questions in zip(drawn.inputs.tolist(), drawn.targets.tolist(), drawn.questions, strict=True):
        keys, values, rest = row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], row[2 * pairs :]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < vocab // 2 for key in keys) and all(vocab // 2 <= value < vocab for value in values)
        assert sorted(rest) == [mqar.FILLER] * (len(rest) - pairs) + sorted(keys)
        assert [row[at] for at in questions] == keys and [targets[at] for at in questions] == values
        assert (drawn.counted[0].nonzero()[0] == np.sort(drawn.questions[0])).all()
        slots = (questions - 2 * pairs - (protocol == "separated")) / 2
        assert (slots == slots.astype(int)).all() and slots.min() >= 0 and slots.max() < (seq_len - 2 * pairs) // 2


def test_a_row_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Keys: the Fisher-Yates swaps of [0, 1, 2, 3, 4] at 0 + ⌊5 · 0.9⌋ = 4 and 1 + ⌊4 · 0.1⌋ = 1 give 4 and 1, ids 5 and
    # 2. Values: swaps of [0, …, 5] at 0 and 1 + ⌊5 · 0.7⌋ = 4 give 0 and 4, ids 6 and 10. Clocks -log(1 - u) · g^0.99
    # of the slots g = 1 … 3: 0.693, 0.209 and 0.313, so slots 2 and 3 are drawn, in this order.
    u = np.array([[0.9, 0.1, 0.0, 0.7, 0.6, 0.2, 0.5, 0.1, 0.1]])
    monkeypatch.setattr(mqar, "uniform", lambda key, numbers, count: u[:, :count])
    drawn = draw(2, 10, 12, "zoology", "test 0", np.array([0]))
    assert drawn.inputs.tolist() == [[5, 6, 2, 10, 0, 0, 5, 0, 2, 0]]
    assert drawn.targets.tolist() == [[0, 0, 0, 0, 0, 0, 6, 0, 10, 0]]
    assert drawn.questions.tolist() == [[6, 8]] and drawn.distances.tolist() == [[5, 5]]
    # One filler first, and 0.6 > 0.2 gives the first key the second slot that was drawn.
    drawn = draw(2, 10, 12, "separated", "test 0", np.array([0]))
    assert drawn.inputs.tolist() == [[5, 6, 2, 10, 0, 0, 0, 2, 0, 5]]
    assert drawn.targets.tolist() == [[0, 0, 0, 0, 0, 0, 0, 10, 0, 6]]
    assert drawn.questions.tolist() == [[9, 7]]


def test_slots_follow_the_power_law_as_numpy_draws_them() -> None:
    pairs, slots, rows = 4, 12, 20_000
    weights = np.arange(1, slots + 1) ** (mqar.POWER - 1)
    drawn = draw(pairs, 2 * pairs + 2 * slots, 64, "zoology", "test 0", np.arange(rows))
    ours = (drawn.questions - 2 * pairs) // 2
    generator = np.random.RandomState(0)  # Zoology's generator
    theirs = np.array([generator.choice(slots, pairs, replace=False, p=weights / weights.sum()) for _ in range(rows)])
    for place in range(pairs):
        a, b = (np.bincount(of[:, place], minlength=slots) for of in (ours, theirs))
        # Two samples of one distribution over 12 slots: chi-square with 11 degrees of freedom, 99.9% below 31.3.
        assert ((a - b) ** 2 / (a + b)).sum() < 31.3, place
    # A pair's slot depends on its place in Zoology, and does not in the separated protocol.
    assert ours[:, 0].mean() < 0.8 * ours[:, -1].mean()
    apart = (draw(pairs, 2 * pairs + 2 * slots, 64, "separated", "test 0", np.arange(rows)).questions - 9) // 2
    counts = np.stack([np.bincount(apart[:, place], minlength=slots) for place in range(pairs)])
    expected = counts.sum(axis=0) / pairs
    # Chi-square with 33 degrees of freedom, 99.9% below 63.9.
    assert ((counts - expected) ** 2 / expected).sum() < 63.9
    assert (np.bincount(np.sort(apart, axis=1).ravel()) > 0).all() and drawn.questions.min() == 2 * pairs


def test_draws_without_replacement_are_uniform() -> None:
    drawn = distinct(uniform("test", np.arange(12_000), 2), 4)
    counts = np.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16).reshape(4, 4)
    assert not counts.diagonal().any()
    # 12 ordered pairs, 1,000 expected of each: chi-square with 11 degrees of freedom, 99.9% below 31.3.
    assert (((counts[counts > 0] - 1000) ** 2) / 1000).sum() < 31.3 and (counts > 0).sum() == 12
    assert sorted(distinct(uniform("test", np.arange(1), 5), 5)[0].tolist()) == [0, 1, 2, 3, 4]


def test_a_draw_by_weight_takes_all_of_them_in_the_end() -> None:
    order = successive(uniform("test", np.arange(5), 6), np.arange(1.0, 7), 6)
    assert (np.sort(order, axis=1) == np.arange(6)).all()


def test_rows_are_frozen() -> None:
    # Runs are identified by mqar.DEFINITION: change it together with these hashes.
    digests = {}
    for protocol in PROTOCOLS:
        drawn = draw(8, 64, 512, protocol, "test 0", np.arange(100))
        content = drawn.inputs.astype("<i8").tobytes() + drawn.targets.astype("<i8").tobytes()
        digests[protocol] = hashlib.sha256(content).hexdigest()[:16]
    assert (mqar.DEFINITION, digests) == ("mqar 1", {"zoology": "e908bb569d333dc0", "separated": "d3e8575c833a8f04"})
