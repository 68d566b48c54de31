"""Rows of a step: the same global batch for any number of processes, every window once per epoch, read ahead."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data import mqar, synthetic
from harness.data.prepare import prepare
from harness.data.shards import TokenData
from harness.data.tokenizer import load_tokenizer
from harness.experiments.expand import expand
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import DataConfig, Experiment
from harness.training import batches
from harness.training.batches import BatchLoader, Rows, data_sha256, open_data, step_rows
from harness.training.distributed import ALONE, World
from harness.training.schedule import position
from harness.training.trainer import Trainer
from tests.harness.training.tiny import PHASE, recall_config, run_config

ROWS, SEQ_LEN = 64, 31


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_no_window_is_lost_or_repeated_in_an_epoch_at_any_world_size(small_data: Path, size: int) -> None:
    tokenizer, data = load_tokenizer(), TokenData(small_data)
    windows = data.windows("train", SEQ_LEN)
    steps = -(-windows // ROWS)
    content = {
        "name": "epoch",
        "preset": "cpu-600k",
        "mixers": ["attention"],
        "data": {
            "source": str(small_data),
            "phases": [{"tokens": steps * ROWS * SEQ_LEN, "seq_len": SEQ_LEN, "rows": {"text": ROWS}}],
        },
    }
    experiment = Experiment.model_validate(content)
    (config,) = expand(experiment, len(tokenizer), data_sha256(experiment.data)).runs
    read = []
    for step in range(steps):
        whole = step_rows(config, step, tokenizer, data)
        shares = [step_rows(config, step, tokenizer, data, World(rank, size, rank)) for rank in range(size)]
        assert all(
            torch.equal(torch.cat(parts), each) for parts, each in zip(zip(*shares, strict=True), whole, strict=True)
        )
        read += [(row[0], *targets) for row, targets in zip(whole.inputs.tolist(), whole.targets.tolist(), strict=True)]
    stream = data.tokens("train")
    expected = Counter(tuple(stream[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1].tolist()) for i in range(windows))
    assert Counter(read[:windows]) == expected


def test_rows_are_a_function_of_seed_and_number_and_ask_only_for_values_they_gave(small_data: Path) -> None:
    tokenizer = load_tokenizer()
    data = open_data(DataConfig(source=str(small_data), phases=[PHASE]))
    for task in ("text", "mqar"):
        tokens, counted = synthetic.rows(task, 0, 3, 4, 128, tokenizer, data)
        again, _ = synthetic.rows(task, 0, 5, 1, 128, tokenizer, data)
        assert tokens.shape == (4, 129) and counted.shape == (4, 128)
        assert torch.equal(tokens[2:3], again) and not torch.equal(tokens[1], tokens[2])
        assert counted.any(1).all()
    tokens, counted = synthetic.rows("mqar", 0, 0, 8, 128, tokenizer, data)
    for row, mask in zip(tokens.tolist(), counted.tolist(), strict=True):
        for index, asked in enumerate(mask, start=1):
            if asked:
                marker = row[index - 2]
                pairs = row[1 : row.index(marker)]
                assert dict(zip(pairs[::2], pairs[1::2], strict=True))[row[index - 1]] == row[index]


def test_rows_are_read_ahead_by_a_thread_and_are_those_of_the_step(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(run_config(small_data), tmp_path)
    expected = {step: step_rows(trainer.config, step, trainer.tokenizer, trainer.data) for step in range(12)}
    read: list[tuple[int, bool]] = []

    def recorded(config: RunConfig, step: int, *rest: Any) -> Rows:
        read.append((step, threading.current_thread() is threading.main_thread()))
        return step_rows(config, step, *rest)

    monkeypatch.setattr(batches, "step_rows", recorded)
    rows = BatchLoader(trainer.config, trainer.tokenizer, trainer.data, ALONE)
    for step in (0, 1, 2, 7, 11, 3):  # steps may go back, and nothing is read past the end
        assert all(torch.equal(a, b) for a, b in zip(rows.rows(step), expected[step], strict=True))
    rows._thread.shutdown()
    assert read == [(step, False) for step in (0, 1, 2, 3, 7, 8, 11, 3, 4)]


def test_rows_of_recall_are_those_drawn_for_the_step_and_are_shared_in_order_of_rank() -> None:
    config = recall_config()
    tokenizer, seen = load_tokenizer("ids:32"), set()
    assert open_data(config.data) is None
    for step in range(config.data.steps):
        at = position(config.data, config.seed, step)
        whole = step_rows(config, step, tokenizer, None)
        assert whole.inputs.shape == whole.targets.shape == (16, at.seq_len)
        assert (whole.counted.sum(1) == at.bare.of.pairs).all()
        numbers = at.bare.numbers(0, 16)
        drawn = mqar.draw(at.bare.of.pairs, at.seq_len, 32, "separated", "train 0 0", numbers)
        for ours, expected in zip(whole, (drawn.inputs, drawn.targets, drawn.counted), strict=True):
            assert (ours.numpy() == expected).all()
        shares = [step_rows(config, step, tokenizer, None, World(r, 4, r)) for r in range(4)]
        for parts, each in zip(zip(*shares, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(parts), each)
        seen |= {tuple(row) for row in whole.inputs.tolist()}
    assert len(seen) == 140 + 96  # the second epoch reads the same examples
    other = step_rows(config.model_copy(update={"seed": 1}), 0, tokenizer, None)
    assert not {tuple(row) for row in other.inputs.tolist()} & seen


def test_synthetic_data_are_identified_by_their_ids_and_by_the_definition_of_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = recall_config().data
    first = data_sha256(data)
    assert data_sha256(data.model_copy(update={"tokenizer": "ids:34"})) != first
    tracking = {"state_tracking": "parity", "steps": 2, "rows": 4, "lengths": [2, 4]}
    other = DataConfig(source="synthetic", tokenizer=data.tokenizer, phases=[tracking])
    assert data_sha256(other) != first
    monkeypatch.setattr(mqar, "DEFINITION", "mqar 2")
    assert data_sha256(data) != first


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*run data prepare"):
        open_data(DataConfig(source=str(tmp_path / "nowhere"), phases=[PHASE]))


def test_a_flipped_bit_in_a_shard_is_found(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"Text number {i}, and some more."}) + "\n" for i in range(400)))
    folder = prepare(source, "embedded", tmp_path / "out").folder
    shard = max(folder.glob("train*"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{shard.name}.*data prepare again"):
        open_data(DataConfig(source=str(folder), phases=[PHASE]))


def test_shares_in_order_of_rank_are_the_rows_of_the_step(small_data: Path) -> None:
    config = run_config(small_data)
    tokenizer, data = load_tokenizer(), open_data(config.data)
    for step in (1, 5):
        whole = step_rows(config, step, tokenizer, data)
        for size in (2, 4):
            shares = [step_rows(config, step, tokenizer, data, World(r, size, r)) for r in range(size)]
            for parts, each in zip(zip(*shares, strict=True), whole, strict=True):
                assert torch.equal(torch.cat(parts), each)
