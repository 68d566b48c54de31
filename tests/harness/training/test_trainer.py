"""The trainer: skipped steps, spikes, metrics, checkpoints in the background, and refusals before training."""

import math
from collections import Counter
from concurrent.futures import wait
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.experiments.run_config import RunConfig
from harness.lm.load import load_trained
from harness.model.language_model import build_model
from harness.run_folder import RunFolder
from harness.training import batches, checkpoint
from harness.training.batches import Rows, step_rows
from harness.training.device import ceiling
from harness.training.schedule import position
from harness.training.train import train
from harness.training.trainer import Trainer, TrainingInterrupted, TrainingStopped
from tests.harness.training.tiny import after, make_bad, metrics_lines, recall_config, run_config


def test_a_step_that_is_not_finite_leaves_the_weights_and_the_moments_and_is_counted(
    tmp_path: Path, small_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(run_config(small_data, "attention", checkpoint_every=4), tmp_path)
    make_bad(trainer, {2, 3})
    before: dict[str, Tensor] = {}
    for metrics in trainer.steps():
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        if metrics["step"] in (3, 4):
            assert math.isnan(metrics["loss"]) and all(torch.equal(weights[name], before[name]) for name in weights)
        before = weights
        if metrics["step"] == 6:
            break
    assert metrics["skipped"] == 2 and len(trainer.recent_losses) == 4 and math.isfinite(trainer.mean_loss)
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {4}
    for step, message in zip((2, 3), caplog.messages, strict=True):
        assert message.startswith(
            f"step {step}: loss nan, gradient norm nan; skipped, {step - 1} of at most 10; batch: "
        )
    # The count resumes with the run.
    assert Trainer(run_config(small_data, "attention", checkpoint_every=4), tmp_path).skipped == 2


def test_more_steps_that_are_not_finite_than_allowed_stop_the_run(tmp_path: Path, small_data: Path) -> None:
    trainer = Trainer(run_config(small_data, "attention", max_skipped=2, checkpoint_every=4), tmp_path)
    make_bad(trainer, {1, 5, 7})
    message = (
        r"step 7: loss nan.*2 steps were skipped before, as many as train.max_skipped allows; last good checkpoint: "
    )
    with pytest.raises(TrainingStopped, match=message + r".*step_00000004.pt; batch: seed 0, rows"):
        list(trainer.steps())
    # With more allowed it is the same run, and it resumes.
    again = Trainer(run_config(small_data, "attention", max_skipped=3, checkpoint_every=4), tmp_path)
    assert (again.step, again.skipped) == (4, 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path, small_data: Path) -> None:
    trainer = Trainer(run_config(small_data, "attention", max_skipped=0), tmp_path)
    steps = trainer.steps()
    for _ in range(6):
        next(steps)
    with torch.no_grad():
        trainer.model.blocks[0].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(TrainingStopped, match=r"step 6: loss nan.*last good checkpoint: .*step_00000005.pt; batch: "):
        next(steps)
    assert RunFolder(tmp_path).read_summary() is None


def test_spikes_are_counted_within_a_phase(tmp_path: Path, small_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(run_config(small_data, "attention", steps=40), tmp_path)
    trainer.recent_losses = [1.0, 1.1] * 15
    trainer.step = 4  # the first step of the second phase: there is nothing to compare with
    trainer.train_step()
    assert trainer.spikes == 0
    trainer.recent_losses, trainer.step = [1.0, 1.1] * 15, 34
    assert trainer.train_step()["spikes"] == 1
    assert "is a spike; the last ones were" in caplog.messages[-1]


def test_metrics_say_how_fast_how_large_and_how_long_it_waited(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, steps=3)
    train(config, tmp_path)
    (line,) = metrics_lines(tmp_path)
    flops = build_model(config.model, 0).cost(128).flops_per_token
    assert line["flops_per_second"] == pytest.approx(line["tokens_per_second"] * flops)
    # A model this small stays below the rate of matrix products, even one that was measured on a busy CPU.
    assert line["mfu"] == pytest.approx(line["flops_per_second"] / ceiling(torch.device("cpu"), torch.float32, 1))
    assert 2**20 < line["memory_bytes"] < 2**40
    assert line["data_wait_seconds"] >= 0 and (line["skipped"], line["spikes"]) == (0, 0)


def test_a_share_of_the_ceiling_above_1_is_measured_anew_and_never_shown(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(run_config(small_data, "attention"), tmp_path)
    trainer.ceiling = 1.0  # as if the device had been busy
    rates = iter([2.0, 1e18])
    monkeypatch.setattr("harness.training.trainer.matmul_rate", lambda *_: next(rates))
    assert math.isnan(trainer.train_step()["mfu"]) and trainer.ceiling == 2.0
    assert 0 < trainer.train_step()["mfu"] < 1 and trainer.ceiling == 1e18 and not caplog.messages
    trainer.ceiling = 1.0
    monkeypatch.setattr("harness.training.trainer.matmul_rate", lambda *_: 1.0)
    assert all(math.isnan(trainer.train_step()["mfu"]) for _ in range(3))
    assert len(caplog.messages) == 1 and "no MFU: " in caplog.text and "in 4 measurements" in caplog.text


def test_a_run_of_which_no_step_was_finite_fails_however_short_it_is(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, "attention", steps=3)
    trainer = Trainer(config, tmp_path)
    make_bad(trainer, {0, 1, 2})
    message = "finite in none of 3 steps, so nothing was trained; lower train.lr, or try the mixer with `run.py check"
    with pytest.raises(TrainingStopped, match=message):
        list(trainer.steps())
    with pytest.raises(TrainingStopped, match=message):  # starting again does not make it finished
        train(config, tmp_path)
    assert RunFolder(tmp_path).read_summary() is None


def accuracies(run_dir: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key[:8] == "accuracy"} for line in metrics_lines(run_dir)]


def test_recall_is_scored_before_each_update_and_logged_as_the_mean_since_the_last_line(tmp_path: Path) -> None:
    config = recall_config()
    train(config, tmp_path / "logged")
    trainer = Trainer(config, tmp_path / "by hand")
    right, asked = Counter(), Counter()
    for step in range(10):
        rows, at = step_rows(config, step, trainer.tokenizer, None), position(config.data, 0, step)
        with torch.no_grad():
            hits = trainer.model(rows.inputs)[0].argmax(-1) == rows.targets
        right[at.bare.task] += int((hits & rows.counted).sum())
        asked[at.bare.task] += int(rows.counted.sum())
        assert asked[at.bare.task] % (16 * at.bare.of.pairs) == 0
        metrics = trainer.train_step()
    expected = {f"accuracy/{task}": right[task] / asked[task] for task in asked}
    assert {key: metrics[key] for key in metrics if key[:8] == "accuracy"} == expected
    assert set(expected) == {"accuracy/mqar@2", "accuracy/mqar@4"}
    lines = accuracies(tmp_path / "logged")
    assert lines[0] == expected and len(lines) == 3
    trainer.train_step()
    assert len(trainer.answers) == 1  # the count begins anew


def test_accuracies_of_a_run_that_is_stopped_anywhere_are_those_of_one_that_is_not(tmp_path: Path) -> None:
    config = recall_config()
    whole = train(config, tmp_path / "whole")
    for call in (3, 5, 9):
        with pytest.raises(TrainingInterrupted):
            train(config, tmp_path / "stopped", stop=after(call))
    trainer = Trainer(config, tmp_path / "stopped")
    for metrics in trainer.steps():  # killed after step 25: 22 to 25 are repeated
        if metrics["step"] == 25:
            break
    assert train(config, tmp_path / "stopped").weights_sha256 == whole.weights_sha256
    assert accuracies(tmp_path / "stopped")[-1] == accuracies(tmp_path / "whole")[-1]
    once, again = ({line["step"]: line["loss"] for line in metrics_lines(tmp_path / n)} for n in ("whole", "stopped"))
    assert again.items() <= once.items() and 30 in again


def test_a_jump_from_one_difficulty_to_another_is_no_spike(tmp_path: Path) -> None:
    trainer = Trainer(recall_config(), tmp_path)
    trainer.recent_losses, trainer.step = [1.0, 1.1] * 15, 25
    assert trainer.train_step()["spikes"] == 0


def test_accumulation_does_not_change_the_step(tmp_path: Path, small_data: Path) -> None:
    once = train(run_config(small_data, steps=3), tmp_path / "once")
    pieces = train(run_config(small_data, steps=3, accumulation=4), tmp_path / "pieces")
    # The same sums in another order: fp32's 6e-8 over three optimiser steps.
    assert abs(once.train_loss - pieces.train_loss) < 1e-4
    a, b = (load_trained(tmp_path / name)[0].state_dict() for name in ("once", "pieces"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_training_continues_while_a_checkpoint_is_written(
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
    # The state at that moment, not after the two steps since.
    assert content["step"] == 1 and checkpoint.digest(content["model"]) == weights != trainer.weights_sha256()
    assert {float(state["step"]) for state in content["optimizer"]["state"].values()} == {1.0}


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
        # The next step raises it, long before the next checkpoint would.
        with pytest.raises(OSError, match=r"step_00000001.pt: cannot be written .*; free space or fix the permissions"):
            trainer.train_step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["index.json", "step_00000000.pt"]
    checkpoint.load(tmp_path / "checkpoints" / "step_00000000.pt")


def test_an_unfinished_checkpoint_is_ignored(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, "attention")
    stopped = Trainer(config, tmp_path)
    for metrics in stopped.steps():
        if metrics["step"] == 6:
            break
    (tmp_path / "checkpoints" / "step_00000010.pt").write_bytes(b"half of it")
    assert Trainer(config, tmp_path).step == 5


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, "attention", steps=5), tmp_path)
    (tmp_path / "train.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="made by another configuration"):
        Trainer(run_config(small_data, "attention", steps=5, lr=2e-3), tmp_path)


def test_an_error_of_reading_ahead_comes_with_the_step_that_needs_the_rows(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: RunConfig, step: int, *rest: Any) -> Rows:
        if step == 2:
            raise OSError("shard is gone")
        return step_rows(config, step, *rest)

    monkeypatch.setattr(batches, "step_rows", broken)
    steps = Trainer(run_config(small_data), tmp_path).steps()
    assert [next(steps)["step"], next(steps)["step"]] == [1, 2]
    with pytest.raises(OSError, match="shard is gone"):
        next(steps)


def test_a_model_with_fewer_tokens_than_bare_ids_is_refused(tmp_path: Path) -> None:
    config = recall_config()
    small = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 31})})
    with pytest.raises(ValueError, match="vocab_size: 31 is too small for the 32 tokens of 'ids:32'; set"):
        Trainer(small, tmp_path)


def test_the_model_must_take_the_tokenizers_vocabulary(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data)
    small = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 1000})})
    with pytest.raises(ValueError, match=r"vocab_size: 1000 is too small .*set it to at least 4096"):
        Trainer(small, tmp_path)
