"""Training of a run: exact resumption, what it leaves in its folder, and what it says when something is wrong."""

import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.experiments.matching import matched_config
from harness.experiments.schema import DataConfig
from harness.lm.load import load_trained
from harness.run_folder import RunFolder
from harness.training import checkpoint
from harness.training.distributed import World
from harness.training.train import _reported, train
from harness.training.trainer import Trainer, TrainingInterrupted
from tests.harness.training.tiny import TINY, after, make_bad, metrics_lines, run_config


@pytest.fixture(scope="module")
def attention_weights(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the weights of a run with attention that nothing interrupts."""
    return train(run_config(small_data, "attention"), tmp_path_factory.mktemp("whole")).weights_sha256


@pytest.mark.parametrize("mixer", TINY)
def test_a_run_stopped_between_checkpoints_and_resumed_ends_with_the_same_bits(
    mixer: str, tmp_path: Path, small_data: Path
) -> None:
    config = run_config(small_data, mixer, steps=8)
    whole = train(config, tmp_path / "whole")
    stopped = Trainer(config, tmp_path / "stopped")
    for metrics in stopped.steps():
        if metrics["step"] == 7:  # two steps after the last checkpoint: they are lost and repeated
            break
    resumed = train(config, tmp_path / "stopped")
    assert resumed.weights_sha256 == whole.weights_sha256
    starts = {name: RunFolder(tmp_path / name).read_history("train") for name in ("whole", "stopped")}
    assert [start["reached"] for start in starts["whole"]] == [0]
    assert [start["reached"] for start in starts["stopped"]] == [5]
    assert [line["step"] for line in metrics_lines(tmp_path / "stopped")] == [8]


def test_a_run_told_to_stop_after_every_step_ends_with_the_same_bits(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.train.LOG_EVERY", 2)
    config = run_config(small_data, steps=6)
    whole = train(config, tmp_path / "whole")
    for step in range(1, 6):
        with pytest.raises(TrainingInterrupted) as told:
            train(config, tmp_path / "stopped", stop=lambda: True)
        assert (told.value.step, told.value.total) == (step, 6)
        newest = checkpoint.latest(tmp_path / "stopped")
        assert newest is not None and checkpoint.load(newest)["step"] == step
        assert RunFolder(tmp_path / "stopped").read_summary() is None
    # After the last step nothing is left to stop.
    assert train(config, tmp_path / "stopped", stop=lambda: True).weights_sha256 == whole.weights_sha256
    once, resumed = ([(m["step"], m["loss"]) for m in metrics_lines(tmp_path / name)] for name in ("whole", "stopped"))
    assert once == resumed and [step for step, _ in once] == [2, 4, 6]


@pytest.mark.parametrize("file", ["step_00000006.pt", "index.json"])
def test_an_interrupt_while_a_stopped_run_saves_loses_nothing(
    file: str, attention_weights: str, tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(small_data, "attention")
    folder, replace = tmp_path / "stopped" / "checkpoints", os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.name == file and list(folder.glob("*step_00000006.pt*")):
            os.kill(os.getpid(), signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    # Tests that a shell starts in the background ignore interrupts by default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", stop=after(6))
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert not list(folder.glob("*.partial"))
    assert Trainer(config, tmp_path / "stopped").step == 6  # the write in progress was completed
    assert train(config, tmp_path / "stopped").weights_sha256 == attention_weights


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_whose_last_checkpoint_is_damaged_says_so_and_resumes_from_the_one_before(
    attention_weights: str, tmp_path: Path, small_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(small_data, "attention")
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", stop=after(10))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("*.pt")) == [
        "step_00000005.pt",
        "step_00000010.pt",
    ]
    damage(tmp_path / "run" / "checkpoints" / "step_00000010.pt")
    # Stopped again before it reaches that step, the run must not take the damaged one for the newest.
    with pytest.raises(TrainingInterrupted, match="stopped after step 8 of 12"):
        train(config, tmp_path / "run", stop=after(3))
    (line,) = caplog.messages
    assert "step_00000010.pt: damaged" in line and "from the one before, step_00000005.pt" in line
    again = Trainer(config, tmp_path / "run")
    assert (again.step, again.notes) == (8, [])
    assert train(config, tmp_path / "run").weights_sha256 == attention_weights


def test_weights_that_are_damaged_are_named_and_not_used(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, "attention", steps=5), tmp_path)
    damage(tmp_path / "checkpoints" / "step_00000005.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"step_00000005.pt: damaged.*delete .*train.json and submit"):
        load_trained(tmp_path)


@pytest.mark.long
def test_125m_parameters_take_the_same_path(tmp_path: Path, small_data: Path) -> None:
    """Two steps of two rows, stopped after the first."""
    source = DataConfig(source=str(small_data), phases=[{"tokens": 2 * 2 * 64, "seq_len": 64, "rows": {"text": 2}}])
    config = run_config(small_data, lr=1e-6).model_copy(
        update={"model": matched_config("125m", "recurrent", "gdn2", vocab_size=4096), "preset": "125m", "data": source}
    )
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path, stop=after(1))
    summary = train(config, tmp_path)
    assert (summary.steps, summary.skipped) == (2, 0) and summary.non_embedding_params > 100e6
    # With tied weights, the untrained model repeats the token that it reads, which is worse than a guess.
    assert math.log(4096) < summary.train_loss < 20
    size = checkpoint.latest(tmp_path).stat().st_size
    assert size == pytest.approx(12 * (summary.non_embedding_params + summary.embedding_params), rel=1e-3)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, "attention", steps=2)
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
    lines = metrics_lines(tmp_path)
    # From ln 4096 = 8.3 nats to well below within 40 steps; without learning the loss would stay there.
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5 < 8.3
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_skipped_step_is_null_in_the_metrics_and_counted_in_the_summary(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Trainer.__init__

    def bad_from_the_start(self: Trainer, *args: Any) -> None:
        build(self, *args)
        make_bad(self, {1})

    monkeypatch.setattr(Trainer, "__init__", bad_from_the_start)
    summary = train(run_config(small_data, "attention", steps=2), tmp_path)
    (line,) = metrics_lines(tmp_path)
    assert line["grad_norm"] is None and math.isfinite(line["loss"]) and line["skipped"] == 1
    assert summary.skipped == 1 == RunFolder(tmp_path).read_summary().skipped


def test_the_check_of_gradients_is_in_the_provenance(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, "attention", steps=2), tmp_path)
    assert RunFolder(tmp_path).read_training_provenance()["gradient_check"] == []


def test_torch_in_place_of_kernels_is_said_before_training_and_kept_in_the_history(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mixers.Mixer.fallback", lambda *args: "triton: it is too old")  # as on a GPU
    train(run_config(small_data), tmp_path)
    line = "gdn2 runs on torch, which is slower than its kernels: triton: it is too old"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING].count(line) == 1
    assert RunFolder(tmp_path).read_history("train")[0]["fallbacks"] == [line]


def test_milestones_are_saved_and_kept(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, "attention", milestones=4), tmp_path)
    files = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert files == [f"step_{step:08d}.pt" for step in (4, 8, 10, 12)]


def test_how_a_run_is_trained_is_not_part_of_its_identity(small_data: Path) -> None:
    plain = run_config(small_data)
    for change in ({"milestones": 7}, {"recompute": True}, {"compile": True}, {"max_skipped": 0}):
        assert run_config(small_data, **change).run_id == plain.run_id
    # The fields of the first version are still there, so runs of that time keep their identity.
    first = {"accumulation", "lr", "final_lr_ratio", "warmup_ratio", "weight_decay", "betas", "clip", "dtype"}
    assert first | {"checkpoint_every", "threads"} <= set(plain.model_dump()["train"])


def test_a_failure_names_the_rank_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(OSError), _reported(World(3, 8, 3)):
        raise OSError("gone")
    (record,) = caplog.records
    assert record.getMessage() == "rank 3 of 8 failed" and record.exc_info is not None
