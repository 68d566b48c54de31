"""What training keeps an eye on: steps that are not finite, spikes, speed, profiles, the gradients of kernels; and the
ways to save memory, which change nothing."""

import contextlib
import importlib.util
import json
import logging
import math
import sqlite3
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from harness.experiments.run_config import RunConfig
from harness.experiments.schema import TrainConfig
from harness.model import loss
from harness.model.language_model import ModelConfig, build_model
from harness.run_folder import RunFolder
from harness.training import batches, checkpoint
from harness.training.batches import BatchLoader, step_rows
from harness.training.device import ceiling
from harness.training.distributed import ALONE
from harness.training.gradient_check import GradientsWrong, check_gradients
from harness.training.metrics_log import metrics_files
from harness.training.spikes import is_spike
from harness.training.train import train
from harness.training.trainer import Trainer, TrainingInterrupted, TrainingStopped
from mixers.interface import Mixer
from tests.harness.training.test_train import after, run_config
from tests.mixers.interpreter import upstream_kernels


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def make_bad(trainer: Trainer, steps: set[int]) -> None:
    """Have the loss of these steps be nan."""
    forward = trainer.loss.forward

    def spoilt(tokens: Tensor, counted: Tensor) -> Tensor:
        return forward(tokens, counted) * (math.nan if trainer.step in steps else 1.0)

    trainer.loss.forward = spoilt


def test_a_step_that_is_not_finite_leaves_the_weights_and_the_moments_and_is_counted(
    tmp_path: Path, small_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(run_config(small_data, checkpoint_every=4), tmp_path)
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
    # The count goes on where the run does.
    assert Trainer(run_config(small_data, checkpoint_every=4), tmp_path).skipped == 2


def test_one_more_step_that_is_not_finite_than_allowed_stops_the_run(tmp_path: Path, small_data: Path) -> None:
    trainer = Trainer(run_config(small_data, max_skipped=2, checkpoint_every=4), tmp_path)
    make_bad(trainer, {1, 5, 7})
    message = (
        r"step 7: loss nan.*2 steps were skipped before, as many as train.max_skipped allows; last good checkpoint: "
    )
    with pytest.raises(TrainingStopped, match=message + r".*step_00000004.pt; batch: seed 0, rows"):
        list(trainer.steps())
    # With more allowed it is the same run, and goes on.
    again = Trainer(run_config(small_data, max_skipped=3, checkpoint_every=4), tmp_path)
    assert (again.step, again.skipped) == (4, 1)


def test_a_skipped_step_is_null_in_the_metrics_and_counted_in_the_summary(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Trainer.__init__

    def bad_from_the_start(self: Trainer, *args: Any) -> None:
        made(self, *args)
        make_bad(self, {1})

    monkeypatch.setattr(Trainer, "__init__", bad_from_the_start)
    summary = train(run_config(small_data, steps=2), tmp_path)
    (line,) = lines(tmp_path)
    assert line["grad_norm"] is None and math.isfinite(line["loss"]) and line["skipped"] == 1
    assert summary.skipped == 1 == RunFolder(tmp_path).read_summary().skipped


def test_a_spike_is_a_loss_far_above_the_last_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    before = (3 + 0.1 * torch.randn(100, generator=generator)).tolist()
    assert not any(is_spike(before[i], before[:i]) for i in range(100))
    assert is_spike(4.0, before) and not is_spike(3.4, before) and not is_spike(1.0, before)
    assert not is_spike(4.0, before[:19])
    # What lies further back than the window does not count.
    assert is_spike(4.0, [9.0, 1.0] * 50 + before)


def test_spikes_are_counted_within_a_phase(tmp_path: Path, small_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(run_config(small_data, steps=40), tmp_path)
    trainer.recent_losses = [1.0, 1.1] * 15
    trainer.step = 4  # the first of the second phase: nothing of it is known yet
    trainer.train_step()
    assert trainer.spikes == 0
    trainer.recent_losses, trainer.step = [1.0, 1.1] * 15, 34
    assert trainer.train_step()["spikes"] == 1
    assert "is a spike; the last ones were" in caplog.messages[-1]


def test_metrics_say_how_fast_how_large_and_how_long_it_waited(tmp_path: Path, small_data: Path) -> None:
    config = run_config(small_data, steps=3)
    train(config, tmp_path)
    (line,) = lines(tmp_path)
    flops = build_model(config.model, 0).cost(128).flops_per_token
    assert line["flops_per_second"] == pytest.approx(line["tokens_per_second"] * flops)
    # What matrix products reach was measured on the same CPU, which others may have been using then.
    assert 0 < line["mfu"] < 10
    assert line["mfu"] == pytest.approx(line["flops_per_second"] / ceiling(torch.device("cpu"), torch.float32, 1))
    assert 2**20 < line["memory_bytes"] < 2**40
    assert line["data_wait_seconds"] >= 0 and (line["skipped"], line["spikes"]) == (0, 0)


def test_rows_are_read_ahead_by_a_thread_and_are_those_of_the_step(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(run_config(small_data), tmp_path)
    expected = {step: step_rows(trainer.config, step, trainer.tokenizer, trainer.data) for step in range(12)}
    read: list[tuple[int, bool]] = []

    def noted(config: RunConfig, step: int, *rest: Any) -> tuple[Tensor, Tensor]:
        read.append((step, threading.current_thread() is threading.main_thread()))
        return step_rows(config, step, *rest)

    monkeypatch.setattr(batches, "step_rows", noted)
    rows = BatchLoader(trainer.config, trainer.tokenizer, trainer.data, ALONE)
    for step in (0, 1, 2, 7, 11, 3):  # a run may go back, and nothing is read past the end
        assert all(torch.equal(a, b) for a, b in zip(rows.rows(step), expected[step], strict=True))
    rows._thread.shutdown()
    assert read == [(step, False) for step in (0, 1, 2, 3, 7, 8, 11, 3, 4)]


def test_what_reading_ahead_raises_comes_with_the_step_that_needs_it(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: RunConfig, step: int, *rest: Any) -> tuple[Tensor, Tensor]:
        if step == 2:
            raise OSError("shard is gone")
        return step_rows(config, step, *rest)

    monkeypatch.setattr(batches, "step_rows", broken)
    steps = Trainer(run_config(small_data), tmp_path).steps()
    assert [next(steps)["step"], next(steps)["step"]] == [1, 2]
    with pytest.raises(OSError, match="shard is gone"):
        next(steps)


@pytest.mark.parametrize("mixer", ["gdn2", "mamba3_mimo", "attention"])
def test_recomputed_activations_give_the_same_bits(mixer: str, tmp_path: Path, small_data: Path) -> None:
    kept = train(run_config(small_data, mixer, steps=6), tmp_path / "kept")
    again = train(run_config(small_data, mixer, steps=6, recompute=True), tmp_path / "again")
    assert again == kept.__class__(**(vars(kept) | {"tokens_per_second": again.tokens_per_second}))


def saved_numbers(model: nn.Module, tokens: Tensor) -> int:
    """How many the forward pass keeps for the backward one, those of parameters left out."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(tokens)
    return sum(kept.values())


def test_recomputing_keeps_what_goes_into_a_block_and_nothing_of_its_inside(tmp_path: Path, small_data: Path) -> None:
    tokens = torch.zeros(2, 64, dtype=torch.long)
    plain, lean = (
        saved_numbers(Trainer(run_config(small_data, recompute=recompute), tmp_path / str(recompute)).model, tokens)
        for recompute in (False, True)
    )
    assert lean < plain / 10


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_train_what_others_do(
    recompute: bool, tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of torch.compile but its code generator, which takes minutes on a CPU.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    plain = train(run_config(small_data, "attention", steps=2), tmp_path / "plain")
    assert not counters["frames"]
    config = run_config(small_data, "attention", steps=2, compile=True, recompute=recompute)
    compiled = train(config, tmp_path / "compiled")
    assert counters["frames"]["ok"] > 0 and compiled.run == plain.run
    # Sums in another order, through two steps.
    assert abs(compiled.train_loss - plain.train_loss) < 1e-4
    # And the weights have the same names: what one wrote, the other reads.
    assert Trainer(run_config(small_data, "attention", steps=2), tmp_path / "compiled").step == 2
    torch._dynamo.reset()


def test_a_step_makes_few_logits_at_a_time(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(run_config(small_data, steps=2), tmp_path / "whole")
    monkeypatch.setattr(loss, "LIVE_LOGITS", 4096 * 16)
    few = train(run_config(small_data, steps=2), tmp_path / "few")
    assert abs(few.train_loss - whole.train_loss) < 1e-5 and few.weights_sha256 != whole.weights_sha256


def test_how_a_run_is_made_is_no_part_of_what_it_is(small_data: Path) -> None:
    plain = run_config(small_data)
    for change in ({"milestones": 7}, {"recompute": True}, {"compile": True}, {"max_skipped": 0}):
        assert run_config(small_data, **change).run_id == plain.run_id
    # The hash of the fields that there were before them, so that runs made then are still known.
    before = {"accumulation", "lr", "final_lr_ratio", "warmup_ratio", "weight_decay", "betas", "clip", "dtype"}
    before |= {"checkpoint_every", "threads"}
    hashed = json.loads(
        json.dumps(plain.model_dump(mode="json", exclude={"train": set(TrainConfig.model_fields) - before}))
    )
    assert set(hashed["train"]) == before


def test_milestones_are_saved_and_kept(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, milestones=4), tmp_path)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == [f"step_{step:08d}.pt" for step in (4, 8, 10, 12)]


def test_a_profile_has_a_trace_and_the_ten_costliest_operators(tmp_path: Path, small_data: Path) -> None:
    plain = train(run_config(small_data, "attention", steps=8), tmp_path / "plain")
    seen = train(run_config(small_data, "attention", steps=8), tmp_path / "run", profile=tmp_path / "profile")
    assert seen.weights_sha256 == plain.weights_sha256
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert "aten::mm" in table and "Self CPU" in table
    rules = [number for number, line in enumerate(table.splitlines()) if line.startswith("---")]
    assert rules[2] - rules[1] - 1 == 10  # rows between the second and the third


KERNELS = ModelConfig(
    layout="hybrid",
    mixer="gdn2",
    mixer_options={"heads": 1, "head_dim": 16},
    attention_options={"heads": 2},
    d_model=16,
    mlp_widths=[32, 32, 32, 32],
    vocab_size=64,
)


def on_kernels() -> nn.Module:
    """A model whose recurrent blocks run on the Triton kernels: on a CPU under its interpreter."""
    model = build_model(KERNELS, 0)
    for block in model.blocks[::2]:
        block.mixer.backend = "triton"
    return model


def test_gradients_of_kernels_are_compared_with_those_of_torch_before_training() -> None:
    torch_alone = build_model(KERNELS, 0)
    assert check_gradients(torch_alone, torch.device("cpu"), torch.float32) == []
    with upstream_kernels():  # the convolutions are fla's
        (line,) = check_gradients(on_kernels(), torch.device("cpu"), torch.float32)  # once for two blocks of a kind
    assert line.startswith("gdn2: triton, largest relative error of a gradient ")


def test_a_kernel_with_a_wrong_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_kernels()
    operate = type(model.blocks[0].mixer).operate

    def slightly_wrong(self: Mixer, q: Tensor, *rest: Any) -> Any:
        if rest[-1] == "triton" and q.requires_grad:
            q.register_hook(lambda gradient: 1.2 * gradient)
        return operate(self, q, *rest)

    monkeypatch.setattr(type(model.blocks[0].mixer), "operate", slightly_wrong)
    message = r"gdn2: triton on cpu computes a wrong gradient of .* relative error 0\."
    with upstream_kernels(), pytest.raises(GradientsWrong, match=message):
        check_gradients(model, torch.device("cpu"), torch.float32)


def test_what_was_found_of_gradients_is_in_the_provenance(tmp_path: Path, small_data: Path) -> None:
    train(run_config(small_data, steps=2), tmp_path)
    assert RunFolder(tmp_path).read_training_provenance()["gradient_check"] == []


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path: Path, small_data: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(run_config(small_data), tmp_path, stop=after(10))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 1.0}\n{"step": 1')
    with metrics_files(tmp_path, 10):
        pass
    assert [line["step"] for line in lines(tmp_path)] == [10]


def test_a_failure_names_the_rank_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    from harness.training.distributed import World
    from harness.training.train import _reported

    with caplog.at_level(logging.ERROR), pytest.raises(OSError), _reported(World(3, 8, 3)):
        raise OSError("gone")
    (record,) = caplog.records
    assert record.getMessage() == "rank 3 of 8 failed" and record.exc_info is not None


def test_metrics_go_to_trackio_as_well_and_a_run_that_goes_on_is_the_same_one_there(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    monkeypatch.setenv("WANDB_PROJECT", "own-project")
    config = run_config(small_data, "attention", tracker="trackio")
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", stop=after(10))
    train(config, tmp_path / "run")
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "own-project.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {config.run_id}
    assert [(step, json.loads(metrics)["loss"]) for _, step, metrics in rows] == [
        (line["step"], line["loss"]) for line in lines(tmp_path / "run")
    ]


def test_metrics_go_to_wandb_as_well(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(run_config(small_data, "attention", tracker="wandb"), tmp_path)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"tokens_per_second" in written.read_bytes()


def test_a_tracker_that_is_missing_or_does_not_begin_is_named_before_training(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(small_data, "attention", tracker="wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "no/project")
    with pytest.raises(ValueError, match=r"train.tracker: wandb does not start \(.*leave the field out"):
        train(config, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"train.tracker: wandb is not installed; pip install wandb, or leave"):
        train(config, tmp_path)
    assert checkpoint.latest(tmp_path) is None


def test_a_tracker_that_breaks_down_is_named_once_and_training_goes_on(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import trackio

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(trackio, "init", lambda **_: None)
    monkeypatch.setattr(trackio, "log", broken)
    monkeypatch.setattr(trackio, "finish", broken)
    config = run_config(small_data, "attention", steps=20, tracker="trackio")
    assert train(config, tmp_path).steps == 20 and len(lines(tmp_path)) == 2
    assert caplog.messages == ["trackio accepts no more metrics (gone); metrics.jsonl has them all"]
    untracked = config.model_copy(update={"train": config.train.model_copy(update={"tracker": None})})
    assert config.run_id == untracked.run_id
