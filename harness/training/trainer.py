"""The trainer of one run, on one device or several: steps, checkpoints and exact resumption.

A step is a function of the weights, the optimiser's state and the step's number: its data come from (seed, step), and
nothing else is random. So a run that is stopped anywhere and resumed ends with the same bits. Several processes share
the rows of a step and, with `fsdp`, the model. Their number and what each holds change only the order of sums, so they
are not part of the configuration and may change whenever a run resumes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.data.tokenizer import load_tokenizer
from harness.experiments.run_config import RunConfig
from harness.model.language_model import build_model
from harness.run_folder import ACCURACY, RunFolder
from harness.training import checkpoint
from harness.training.batches import BatchLoader, data_sha256, open_data
from harness.training.device import ceiling, matmul_rate, peak_memory, recipe_dtype, this_device
from harness.training.distributed import ALONE, Sharding, World, shard
from harness.training.gradient_check import check_gradients
from harness.training.inputs import keep_inputs
from harness.training.metrics_log import require_tracker
from harness.training.mixer_check import check_mixers
from harness.training.optim import build_optimizer, clip_gradients, learning_rate
from harness.training.schedule import Position, pieces, position
from harness.training.spikes import SPIKE_WINDOW, is_spike
from harness.training.wrappers import MaskedLoss, wrap_blocks
from mixers.registry import require_file

LOG_EVERY = 10  # optimiser steps per line of metrics.jsonl
MEASUREMENTS = 4  # of the ceiling at most; each takes up to a second of a CPU

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, float]], None]
"""Takes the metrics of a step (`Trainer.train_step`)."""


class TrainingStopped(RuntimeError):
    """Training cannot continue. The message says at which step, why, and from which checkpoint it can resume."""


class TrainingInterrupted(Exception):
    """Training stopped because it was told to; not a failure. The checkpoint of step `step` of `total` is on disk."""

    def __init__(self, step: int, total: int):
        super().__init__(step, total)
        self.step, self.total = step, total

    def __str__(self) -> str:
        return f"stopped after step {self.step} of {self.total}; submit again to continue"


class Trainer:
    """A run in its folder. The constructor builds or restores it; `steps` trains it.

    world: processes that train the run; rank 0 alone writes. sharding: what each of several processes holds; None for
    one process. restored_from: checkpoint that the run resumed from, if any. notes: lines about damaged checkpoints
    that were passed over. skipped: steps left out because their loss or gradient was not finite. spikes: steps whose
    loss stood out. recent_losses: losses of the last steps that were not skipped, oldest first. answers: right answers
    and all answers since the last line of metrics, by recall task, before each step's update. gradient_check: lines of
    harness.training.gradient_check.check_gradients. ceiling: FLOP/s that matrix products reach, summed over the
    devices of all processes.

    Raises what harness.training.train.train lists for anything that keeps training from starting.
    """

    def __init__(self, config: RunConfig, run_dir: Path, world: World = ALONE, sharding: Sharding = "ddp"):
        if sharding not in get_args(Sharding):
            raise ValueError(f"sharding: {sharding!r} is unknown; use {' or '.join(get_args(Sharding))}")
        self.pieces = pieces(config.data, config.train, world.size)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.config, self.run_dir, self.world = config, run_dir, world
        self.sharding = sharding if world.size > 1 else None
        self.device = this_device()
        self.dtype = recipe_dtype(config.train, self.device)
        with world.together():
            rate = ceiling(self.device, self.dtype, torch.get_num_threads())
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)  # the measurement's memory is not training's
        self.ceiling = world.total([rate])[0]
        with world.together():
            require_tracker(config.train)
            self.tokenizer = load_tokenizer(config.data.tokenizer)
            self.data = open_data(config.data)
            if data_sha256(config.data) != config.data_sha256:
                raise ValueError(
                    f"data.source: {config.data.source} has changed since the run was planned; submit again"
                )
            if self.data is not None:
                self.data.require_vocab(config.model.vocab_size)
            elif config.model.vocab_size < len(self.tokenizer):
                raise ValueError(
                    f"vocab_size: {config.model.vocab_size} is too small for the {len(self.tokenizer)} tokens of "
                    f"{config.data.tokenizer!r}; set it to at least as many"
                )
            require_file(config.mixer_file)
            self.model = build_model(config.model, config.seed, config.train.init_gain)
            check_mixers(self.model, self.device, self.dtype)
            self.gradient_check = check_gradients(self.model, self.device, self.dtype)
            wrap_blocks(self.model, config.train)
        self.loss: nn.Module = MaskedLoss(self.model)
        if self.sharding == "fsdp":
            shard(self.loss, self.model.blocks, world, self.device, self.dtype)
        with world.together():
            self.loss.to(self.device)
            self.optimizer = build_optimizer(self.model, config.train)
        self.loader = BatchLoader(config, self.tokenizer, self.data, world)
        self.step, self.seconds = 0, 0.0
        self.skipped, self.spikes = 0, 0
        self.recent_losses: list[float] = []
        self.answers: dict[str, tuple[int, int]] = {}
        self.measurements = 1  # of the ceiling
        self.restored_from, self.notes = world.on_first(self._find_checkpoint)
        self.writer = checkpoint.Writer(
            run_dir, world, self.sharding == "fsdp", config.train.milestones, self.restored_from
        )
        with world.together():
            if self.restored_from is not None:
                self._restore(self.restored_from)
        if self.sharding == "ddp":
            # Without find_unused_parameters, DDP fails for a layer that leaves a parameter unused, and it rebuilds its
            # buckets after the first step. Sums of more than two terms would then depend on where the run resumed.
            self.loss = DistributedDataParallel(
                self.loss,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def _find_checkpoint(self) -> tuple[Path | None, list[str]]:
        RunFolder(self.run_dir).write_config(self.config.model_dump(mode="json"))
        keep_inputs(self.config, self.run_dir, self.tokenizer)
        return checkpoint.latest_sound(self.run_dir)

    def _restore(self, path: Path) -> None:
        if self.sharding == "fsdp":
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            content = checkpoint.load_sharded(path, self.config.hash, self.model.state_dict(), parameters)
        else:
            content = checkpoint.load(path)
            checkpoint.require_config(path, content, self.config.hash)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds, self.recent_losses = content["step"], content["seconds"], content["recent"]
        self.skipped, self.spikes = content.get("skipped", 0), content.get("spikes", 0)
        self.answers = content.get("answers", {})
        torch.set_rng_state(content["rng"])

    def save(self) -> None:
        """Start to write a checkpoint of the present state, after the previous one is written.

        Raises OSError if the previous write failed here, PeerFailed if it failed in another process.
        """
        self.writer.save(self.step, self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "config_hash": self.config.hash,
            "config": self.config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent_losses,
            "skipped": self.skipped,
            "spikes": self.spikes,
            "answers": self.answers,
            "rng": torch.get_rng_state(),
        }

    def train_step(self) -> dict[str, float]:
        """Train one optimiser step. Returns its metrics; speed, memory and waiting differ between processes.

        If the loss or the gradient is not finite in any process, all leave the weights as they are, and the step counts
        as skipped. Raises TrainingStopped if that makes more than train.max_skipped.
        """
        started, waited = time.perf_counter(), self.loader.waited
        with self.world.together():
            self.writer.check()
            rows = self.loader.rows(self.step)
        at = position(self.config.data, self.config.seed, self.step)
        if self.step % LOG_EVERY == 0:
            self.answers = {}
        targets = int(self.world.total([int(rows.counted.sum())])[0])
        self.optimizer.zero_grad(set_to_none=True)
        local_loss, local_hits = 0.0, 0  # this process's shares of the mean loss and of the right answers
        for number, part in enumerate(zip(*(each.chunk(self.pieces) for each in rows), strict=True), 1):
            with self._reduced_if(number == self.pieces):
                with self._autocast():
                    inputs = (each.to(self.device) for each in part)
                    summed, right = self.loss(*inputs, scored=at.bare is not None)
                # DDP and FSDP average gradients over the processes, but the step needs their sum.
                (summed * self.world.size / targets).backward()
            local_loss += summed.item() / targets
            local_hits += 0 if right is None else int(right)
        norm = clip_gradients(self.model.parameters(), self.config.train.clip)
        loss, faults, hits = self.world.total([local_loss, not math.isfinite(norm), local_hits])
        rate = learning_rate(self.config.train, at.tokens, self.config.data.tokens)
        if faults or not math.isfinite(loss):
            self._skip_step(loss, norm, at)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._record_loss(loss, at)
            if at.bare is not None:
                task = at.bare.task
                right, asked = self.answers.get(task, (0, 0))
                # A new dictionary: a checkpoint that is being written may hold the old one.
                self.answers = self.answers | {task: (right + int(hits), asked + targets)}
        self.step += 1
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        speed = at.step_tokens / elapsed
        flops = speed * self.model.cost(at.seq_len).flops_per_token
        return {
            "step": self.step,
            "tokens": at.tokens,
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "tokens_per_second": speed,
            "flops_per_second": flops,
            "mfu": self._utilisation(flops),
            "memory_bytes": peak_memory(self.device),
            "data_wait_seconds": self.loader.waited - waited,
            "skipped": self.skipped,
            "spikes": self.spikes,
            **{f"{ACCURACY}{task}": right / asked for task, (right, asked) in self.answers.items()},
        }

    def _utilisation(self, flops: float) -> float:
        """FLOP/s as a share of the ceiling; nan, with a warning, if they are more, since no share exceeds 1.

        The device may have been busy while the ceiling was measured, so it is measured anew first.
        """
        if flops > self.ceiling and self.measurements < MEASUREMENTS:
            self.measurements += 1
            self.ceiling = max(self.ceiling, self.world.size * matmul_rate(self.device, self.dtype))
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            if flops > self.ceiling and self.measurements == MEASUREMENTS and self.world.first:
                log.warning(
                    f"no MFU: {flops:.3g} FLOP/s are more than the {self.ceiling:.3g} that matrix products reached in "
                    f"{MEASUREMENTS} measurements; other work on the device slows them down"
                )
        return flops / self.ceiling if flops <= self.ceiling else math.nan

    def _skip_step(self, loss: float, norm: float, at: Position) -> None:
        """Count the present step as skipped. Raises TrainingStopped if it is one too many."""
        problem = f"step {self.step}: loss {loss}, gradient norm {norm}"
        batch = f"batch: seed {self.config.seed}, {at}"
        if self.skipped == self.config.train.max_skipped:
            self.writer.wait()
            raise TrainingStopped(
                f"{problem}; {self.skipped} steps were skipped before, as many as train.max_skipped allows; last good "
                f"checkpoint: {self.writer.last or 'none'}; {batch}; lower train.lr or look at that batch"
            )
        self.skipped += 1
        if self.world.first:
            log.warning(f"{problem}; skipped, {self.skipped} of at most {self.config.train.max_skipped}; {batch}")

    def _record_loss(self, loss: float, at: Position) -> None:
        """Add the loss of the present step to the recent ones. A spike within its phase is counted and logged, unless
        the phase's steps draw from sets of different difficulty, whose losses differ by nature."""
        since = self.recent_losses[-(self.step - at.first) :] if self.step > at.first and at.alike else []
        if is_spike(loss, since):
            self.spikes += 1
            if self.world.first:
                log.warning(f"step {self.step}: loss {loss:.4f} is a spike; the last ones were {since[-3:]}")
        self.recent_losses = [*self.recent_losses[-(SPIKE_WINDOW - 1) :], loss]

    @property
    def mean_loss(self) -> float:
        """Mean loss of the last LOG_EVERY steps that were not skipped, in nats per token; nan before the first."""
        last = self.recent_losses[-LOG_EVERY:]
        return sum(last) / len(last) if last else math.nan

    def weights_sha256(self) -> str:
        """SHA-256 of the present weights. All processes must call it."""
        return checkpoint.digest(self.model.state_dict())

    def _reduced_if(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Context in which the gradients of a piece are computed: processes reduce them with the last piece only."""
        if self.sharding == "fsdp":
            self.loss.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last or self.sharding is None else self.loss.no_sync()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def steps(self, stop: Callable[[], bool] | None = None) -> Iterator[dict[str, float]]:
        """Train to the end and yield the metrics of each step. Checkpoints are written on the way and after the last.

        stop: called after every step in every process. If any says yes and steps are left, all write the checkpoint of
        that step and raise TrainingInterrupted. When the iterator ends or raises that, all checkpoints are written.

        Raises TrainingStopped if all steps were skipped, however few they are: nothing was trained.
        """
        total = self.config.data.steps
        while self.step < total:
            yield self.train_step()
            stopped = self.world.anyone(stop is not None and stop())
            marks = (self.config.train.checkpoint_every, self.config.train.milestones)
            if stopped or self.step == total or any(every and self.step % every == 0 for every in marks):
                self.save()
            if stopped and self.step < total:
                self.writer.wait()
                raise TrainingInterrupted(self.step, total)
        self.writer.wait()
        if not self.recent_losses:
            raise TrainingStopped(
                f"loss and gradient were finite in none of {total} steps, so nothing was trained; lower train.lr, or "
                f"try the mixer with `run.py check {self.config.mixer}`"
            )
