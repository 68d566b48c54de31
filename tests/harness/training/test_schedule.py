"""The schedule: phases and sets of rows in order, exact tokens, the same for every process and after every stop."""

from pathlib import Path

import numpy as np
import pytest

from harness.experiments.data import DataConfig
from harness.training.schedule import pieces, position
from tests.harness.training.tiny import run_config


def test_phases_follow_one_another_and_no_row_is_read_twice() -> None:
    first = {"tokens": 200, "seq_len": 20, "rows": {"text": 3, "mqar": 1}}
    second = {"tokens": 190, "seq_len": 40, "rows": {"text": 2}}
    config = DataConfig(phases=[first, second])
    assert (config.steps, config.tokens, config.seq_len) == (3 + 3, 240 + 240, 40)
    positions = [position(config, 0, step) for step in range(6)]
    assert [p.tokens for p in positions] == [80, 160, 240, 320, 400, 480]
    assert [p.rows["text"] for p in positions] == [0, 3, 6, 9, 11, 13]
    assert [p.seq_len for p in positions] == [20, 20, 20, 40, 40, 40]
    assert [p.step_tokens for p in positions] == [80] * 6
    with pytest.raises(ValueError, match="step: 6 is past the last of 6 steps"):
        position(config, 0, 6)


def test_pieces_of_several_processes_are_no_larger_than_those_of_one(small_data: Path) -> None:
    config = run_config(small_data, accumulation=4)
    assert [pieces(config.data, config.train, size) for size in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ValueError, match="3 processes with train.accumulation 4 cut a step into 6 .*has 4 rows"):
        pieces(config.data, config.train, 3)


SETS = [{"pairs": 2, "seq_len": 16, "examples": 50}, {"pairs": 4, "seq_len": 32, "examples": 16}]
PHASE = {"mqar": SETS, "rows": 16, "epochs": 3}


def recall(**changes: object) -> DataConfig:
    return DataConfig(source="synthetic", tokenizer="ids:64", phases=[PHASE | changes, PHASE])


def test_sets_take_turns_as_often_as_their_examples_need_in_another_order_every_epoch() -> None:
    data = recall()
    positions = [position(data, 0, step) for step in range(data.steps)]
    assert data.steps == 2 * 3 * (4 + 1)
    pairs = [at.bare.of.pairs for at in positions]
    epochs = [tuple(pairs[start : start + 5]) for start in range(0, data.steps, 5)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {(2, 2, 2, 2, 4)} and len(set(epochs)) > 1
    assert [at.first for at in positions] == [0] * 15 + [15] * 15
    assert [position(data, 1, step).bare.of.pairs for step in range(data.steps)] != pairs
    with pytest.raises(ValueError, match="step: 30 is past the last of 30 steps"):
        position(data, 0, 30)


def test_tokens_are_exact_where_lengths_vary_from_step_to_step() -> None:
    data = recall()
    seen = 0
    for step in range(data.steps):
        at = position(data, 0, step)
        assert at.seq_len == at.bare.of.seq_len and at.step_tokens == 16 * at.seq_len
        seen += at.step_tokens
        assert at.tokens == seen
    assert seen == data.tokens


def test_every_epoch_reads_the_same_examples_in_another_order_and_fills_its_last_step_with_the_first() -> None:
    data, read = recall(), {}
    for step in range(data.steps):
        bare = position(data, 0, step).bare
        whole = bare.numbers(0, 16)
        shares = [bare.numbers(begin, begin + 4) for begin in range(0, 16, 4)]
        assert (np.concatenate(shares) == whole).all()
        read.setdefault((bare.stream, bare.of.pairs), []).append(whole)
    assert len({stream for stream, _ in read}) == 2  # phases with the same sets draw different rows
    for (_, pairs), steps in read.items():
        examples, numbers = {2: 50, 4: 16}[pairs], np.concatenate(steps)
        epochs = numbers.reshape(3, -1)
        for epoch in epochs:
            assert sorted(epoch[:examples]) == list(range(examples))
            assert (epoch[examples:] == epoch[: len(epoch) - examples]).all()
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_losses_of_one_set_are_alike_and_those_of_several_are_not() -> None:
    assert not position(recall(), 0, 0).alike
    assert position(recall(mqar=SETS[:1]), 0, 0).alike
    assert position(DataConfig(phases=[{"tokens": 1, "seq_len": 8, "rows": {"text": 1}}]), 0, 0).alike


def test_a_step_is_named_by_its_rows() -> None:
    assert str(position(recall(mqar=SETS[1:]), 0, 2)) == "16 rows of mqar@4, step 2 of that set"
    text = DataConfig(phases=[{"tokens": 64, "seq_len": 8, "rows": {"text": 4}}])
    assert str(position(text, 0, 1)) == "rows {'text': 4} from {'text': 4}"


TRACKING = {"state_tracking": "parity", "steps": 200, "rows": 8, "lengths": [3, 40], "curriculum": 0.5}


def tracking(**changes: object) -> DataConfig:
    return DataConfig(source="synthetic", tokenizer="ids:8", phases=[TRACKING | changes, TRACKING | {"steps": 3}])


def test_lengths_of_state_tracking_grow_to_their_full_range_and_stay_within_it() -> None:
    data = tracking()
    lengths = [position(data, 0, step).seq_len for step in range(200)]
    assert min(lengths) == 3 and max(lengths[100:]) == 40 and max(lengths[:50]) <= 3 + 37 // 2
    assert sum(lengths[100:]) / 100 == pytest.approx(21.5, abs=4)  # uniform on 3 … 40: 1.1 is a standard error
    assert [position(data, 1, step).seq_len for step in range(200)] == lengths  # alike for every seed
    assert max(position(tracking(curriculum=0), 0, step).seq_len for step in range(20)) > 22


def test_tokens_of_state_tracking_are_exact_and_every_step_reads_rows_of_its_own() -> None:
    data, seen, numbers = tracking(), 0, set()
    for step in range(data.steps):
        at = position(data, 0, step)
        seen += at.step_tokens
        assert at.tokens == seen and at.first == (0 if step < 200 else 200)
        numbers.add((at.bare.stream, at.bare.number))
    assert seen == data.tokens == sum(sum(phase.tokens_by_length.values()) for phase in data.phases)
    assert len(numbers) == data.steps == 203 and not at.alike
    assert str(at) == f"8 rows of parity in {at.seq_len} tokens, step 2"
    inputs, targets, counted = at.bare.draw(0, 8, 8)
    assert inputs.shape == targets.shape == counted.shape == (8, at.seq_len)
    assert (at.bare.draw(2, 5, 8)[0] == inputs[2:5]).all()
