"""Training: the recipe, exact resumption, and what happens when something is wrong."""

import json
import math
import os
import signal
from collections.abc import Callable
from concurrent.futures import wait
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from harness.data import synthetic
from harness.data.prepare import prepare
from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import matched_config
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import DataConfig, TrainConfig
from harness.lm.load import load_trained
from harness.model.language_model import ModelConfig
from harness.run_folder import RunFolder
from harness.training import checkpoint
from harness.training.batches import data_sha256, open_data, position
from harness.training.optim import build_optimizer, decays, learning_rate
from harness.training.train import train
from harness.training.trainer import Trainer, TrainingInterrupted, TrainingStopped

TINY = {
    "gdn2": {"heads": 2, "head_dim": 8},
    "gated_deltanet": {"heads": 2, "head_dim": 8},
    "kda": {"heads": 2, "head_dim": 8},
    "mamba2": {"d_inner": 32, "head_dim": 16, "d_state": 8},
    "mamba3_siso": {"d_inner": 32, "head_dim": 16, "d_state": 8},
    "mamba3_mimo": {"d_inner": 32, "head_dim": 16, "d_state": 8, "rank": 2},
    "attention": {"heads": 2},
}

PHASE = {"tokens": 1, "seq_len": 8, "rows": {"text": 1}}


def run_config(data: Path, mixer: str = "gdn2", steps: int = 12, **training: object) -> RunConfig:
    """A run of a model too small to learn much, on real text and recall rows of 64 tokens."""
    layout = "attention" if mixer == "attention" else "recurrent"
    # Two mixtures, so that stopping and resuming crosses from one to the other.
    mixed = {"tokens": 4 * 4 * 128, "seq_len": 128, "rows": {"text": 2, "mqar": 2}}
    text = {"tokens": (steps - 4) * 4 * 96, "seq_len": 96, "rows": {"text": 4}}
    recipe = {"lr": 1e-3, "checkpoint_every": 5, "threads": 1}
    phases = [mixed, text] if steps > 4 else [mixed | {"tokens": steps * 4 * 128}]
    source = DataConfig(source=str(data), phases=phases)
    return RunConfig(
        label=mixer,
        mixer=mixer,
        layout=layout,
        preset="cpu-600k",
        seed=0,
        model=ModelConfig(
            layout=layout, mixer=mixer, mixer_options=TINY[mixer], d_model=16, mlp_widths=[32, 32], vocab_size=4096
        ),
        data=source,
        data_sha256=data_sha256(source),
        train=TrainConfig(**(recipe | training)),
    )


@pytest.mark.parametrize("mixer", TINY)
def test_a_run_stopped_between_checkpoints_and_resumed_ends_with_the_same_bits(
    mixer: str, tmp_path: Path, small_data: Path
) -> None:
    config = run_config(small_data, mixer)
    whole = train(config, tmp_path / "whole")
    stopped = Trainer(config, tmp_path / "stopped")
    for metrics in stopped.steps():
        if metrics["step"] == 8:  # three steps after the last checkpoint: they are lost and done again
            break
    resumed = train(config, tmp_path / "stopped")
    assert resumed.weights_sha256 == whole.weights_sha256
    steps = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 12]


def test_125m_parameters_take_the_same_path(tmp_path: Path, small_data: Path) -> None:
    """Two steps of a few rows, stopped after the first."""
    source = DataConfig(source=str(small_data), phases=[{"tokens": 2 * 2 * 64, "seq_len": 64, "rows": {"text": 2}}])
    config = run_config(small_data, lr=1e-6).model_copy(
        update={"model": matched_config("125m", "recurrent", "gdn2", vocab_size=4096), "preset": "125m", "data": source}
    )
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path, stop=after(1))
    summary = train(config, tmp_path)
    assert (summary.steps, summary.skipped) == (2, 0) and summary.non_embedding_params > 100e6
    # Its tied head begins by repeating the token that it reads, which costs more than a guess.
    assert math.log(4096) < summary.train_loss < 20
    size = checkpoint.latest(tmp_path).stat().st_size
    assert size == pytest.approx(12 * (summary.non_embedding_params + summary.embedding_params), rel=1e-3)


def after(calls: int) -> Callable[[], bool]:
    """Says yes from the given call on."""
    asked = count(1)
    return lambda: next(asked) >= calls


def test_a_run_told_to_stop_after_every_step_ends_with_the_same_bits(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data)
    whole = train(config, tmp_path / "whole")
    for step in range(1, 12):
        with pytest.raises(TrainingInterrupted) as told:
            train(config, tmp_path / "stopped", stop=lambda: True)
        assert (told.value.step, told.value.total) == (step, 12)
        newest = checkpoint.latest(tmp_path / "stopped")
        assert newest is not None and checkpoint.load(newest)["step"] == step
        assert RunFolder(tmp_path / "stopped").read_summary() is None
    # After the last step nothing is left to stop.
    assert train(config, tmp_path / "stopped", stop=lambda: True).weights_sha256 == whole.weights_sha256
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    steps, again = ([(m["step"], m["loss"]) for m in map(json.loads, found)] for found in lines)
    assert steps == again


@pytest.mark.parametrize("file", ["step_00000006.pt", "index.json"])
def test_an_interrupt_while_a_stopped_run_saves_loses_nothing(
    file: str, tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(small_data, "attention")
    whole = train(config, tmp_path / "whole")
    folder, replace = tmp_path / "stopped" / "checkpoints", os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.name == file and list(folder.glob("step_00000006.pt*")):
            os.kill(os.getpid(), signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    # A shell that starts the tests in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", stop=after(6))
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert not list(folder.glob("*.partial"))
    assert Trainer(config, tmp_path / "stopped").step == 6  # what was being written was written to its end
    assert train(config, tmp_path / "stopped").weights_sha256 == whole.weights_sha256


def test_a_finished_run_is_not_trained_again(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, steps=2)
    first = train(config, tmp_path)
    before = (tmp_path / "train.json").stat().st_mtime_ns
    assert train(config, tmp_path) == first
    assert (tmp_path / "train.json").stat().st_mtime_ns == before


def test_the_trained_model_is_the_one_that_was_saved_and_its_loss_has_fallen(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, steps=40, lr=5e-3)
    summary = train(config, tmp_path)
    model, loaded = load_trained(tmp_path)
    assert loaded == config
    assert checkpoint.digest(model.state_dict()) == summary.weights_sha256
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # From ln 4096 = 8.3 nats to well below it within 40 steps; unlearned weights would stay there.
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5 < 8.3
    assert list((tmp_path / "tensorboard").iterdir())


def test_accumulation_does_not_change_the_step(tmp_path: Path, small_data: Path) -> None:
    once = train(run_config(small_data, steps=3), tmp_path / "once")
    pieces = train(run_config(small_data, steps=3, accumulation=4), tmp_path / "pieces")
    # Equal sums in another order: fp32's 6e-8 through three optimiser steps.
    assert abs(once.train_loss - pieces.train_loss) < 1e-4
    a, b = (load_trained(tmp_path / name)[0].state_dict() for name in ("once", "pieces"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path, small_data: Path) -> None:
    trainer = Trainer(run_config(small_data, max_skipped=0), tmp_path)
    steps = trainer.steps()
    for _ in range(6):
        next(steps)
    with torch.no_grad():
        trainer.model.blocks[0].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(TrainingStopped, match=r"step 6: loss nan.*last good checkpoint: .*step_00000005.pt; batch: "):
        next(steps)
    assert RunFolder(tmp_path).read_summary() is None


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_weights_that_are_damaged_are_named_and_not_used(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, steps=5), tmp_path)
    damage(tmp_path / "checkpoints" / "step_00000005.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"step_00000005.pt: damaged.*delete .*train.json and submit"):
        load_trained(tmp_path)


def test_a_run_whose_last_checkpoint_is_damaged_says_so_and_goes_on_from_the_one_before(
    tmp_path: Path, small_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(small_data, "attention")
    whole = train(config, tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", stop=after(10))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("*.pt")) == [
        "step_00000005.pt",
        "step_00000010.pt",
    ]
    damage(tmp_path / "run" / "checkpoints" / "step_00000010.pt")
    # The damaged one must not stand for the newest when the run is stopped again before it gets there.
    with pytest.raises(TrainingInterrupted, match="stopped after step 8 of 12"):
        train(config, tmp_path / "run", stop=after(3))
    (line,) = caplog.messages
    assert "step_00000010.pt: damaged" in line and "from the one before, step_00000005.pt" in line
    again = Trainer(config, tmp_path / "run")
    assert (again.step, again.notes) == (8, [])
    assert train(config, tmp_path / "run").weights_sha256 == whole.weights_sha256


def test_a_checkpoint_that_was_not_finished_is_ignored(tmp_path: Path, small_data: Path) -> None:
    stopped = Trainer(run_config(small_data), tmp_path)
    for metrics in stopped.steps():
        if metrics["step"] == 6:
            break
    (tmp_path / "checkpoints" / "step_00000010.pt").write_bytes(b"half of it")
    assert Trainer(run_config(small_data), tmp_path).step == 5


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, steps=5), tmp_path)
    (tmp_path / "train.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="made by another configuration"):
        Trainer(run_config(small_data, steps=5, lr=2e-3), tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path: Path, small_data: Path) -> None:
    import resource

    trainer = Trainer(run_config(small_data), tmp_path)
    trainer.save()
    trainer.writer.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow past this, as a full disk would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        trainer.step = 1
        trainer.save()
        wait([trainer.writer._writing])
        # The next step says so, long before the next checkpoint would.
        with pytest.raises(OSError, match=r"step_00000001.pt: cannot be written .*; free space or fix the permissions"):
            trainer.train_step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["index.json", "step_00000000.pt"]
    checkpoint.load(tmp_path / "checkpoints" / "step_00000000.pt")


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, held, write = Trainer(run_config(small_data), tmp_path), Event(), checkpoint.save

    def slow(*arguments: Any) -> Path:
        held.wait()
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    trainer.train_step()
    weights = trainer.weights_sha256()
    trainer.save()
    assert trainer.train_step()["step"] == 2 and trainer.train_step()["step"] == 3
    assert checkpoint.latest(tmp_path) is None and trainer.writer.last is None
    held.set()
    trainer.writer.wait()
    assert trainer.writer.last == checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step_00000001.pt"
    content = checkpoint.load(trainer.writer.last)
    # What was then, not what two steps made of it since.
    assert content["step"] == 1 and checkpoint.digest(content["model"]) == weights != trainer.weights_sha256()
    assert {float(state["step"]) for state in content["optimizer"]["state"].values()} == {1.0}


def test_the_model_must_take_the_tokenizers_vocabulary(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data)
    small = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 1000})})
    with pytest.raises(ValueError, match=r"vocab_size: 1000 is too small .*set it to at least 4096"):
        Trainer(small, tmp_path)


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


def test_weight_decay_reaches_matrices_alone() -> None:
    for mixer in ("gdn2", "mamba3_mimo"):
        from harness.model.language_model import build_model

        model = build_model(matched_config("cpu-600k", "recurrent", mixer), 0)
        spared = {name.split(".")[-1] for name, p in model.named_parameters() if not decays(name, p)}
        assert (
            spared
            == {
                "gdn2": {"weight", "A_log", "dt_bias", "bias"},
                "mamba3_mimo": {"weight", "B_bias", "C_bias", "D", "dt_bias"},
            }[mixer]
        )
        norms = [n for n, p in model.named_parameters() if not decays(n, p) and n.endswith("weight")]
        assert all("norm" in name for name in norms)
        groups = build_optimizer(model, TrainConfig()).param_groups
        assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


def test_the_learning_rate_warms_up_over_tokens_and_ends_at_a_tenth() -> None:
    config = TrainConfig(lr=1.0, warmup_ratio=0.1)
    assert learning_rate(config, 5_000, 100_000) == pytest.approx(0.5)
    assert learning_rate(config, 10_000, 100_000) == pytest.approx(1.0)
    assert learning_rate(config, 55_000, 100_000) == pytest.approx(0.55)  # half a cosine, half way
    assert learning_rate(config, 100_000, 100_000) == pytest.approx(0.1)
    assert learning_rate(config, 100_500, 100_000) == pytest.approx(0.1)


def test_rows_are_a_function_of_seed_and_number_and_ask_only_for_what_they_told(small_data: Path) -> None:
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
        for place, asked in enumerate(mask, start=1):
            if asked:
                told = row[1 : place - 1]
                assert dict(zip(told[::2], told[1::2], strict=True))[row[place - 1]] == row[place]


def test_phases_follow_one_another_and_no_row_is_read_twice() -> None:
    first = {"tokens": 200, "seq_len": 20, "rows": {"text": 3, "mqar": 1}}
    second = {"tokens": 190, "seq_len": 40, "rows": {"text": 2}}
    config = DataConfig(phases=[first, second])
    assert (config.steps, config.tokens, config.seq_len) == (3 + 3, 240 + 240, 40)
    places = [position(config, step) for step in range(6)]
    assert [p.tokens for p in places] == [80, 160, 240, 320, 400, 480]
    assert [p.rows["text"] for p in places] == [0, 3, 6, 9, 11, 13]
    assert [p.phase.seq_len for p in places] == [20, 20, 20, 40, 40, 40]
    with pytest.raises(ValueError, match="step: 6 is past the last of 6 steps"):
        position(config, 6)
