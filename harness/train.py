"""Training of one run, on one device or data-parallel on several, and exactly resumable.

A step is a function of the weights, the optimiser's state and the step's number: its data come from (seed, step),
and nothing else is drawn. So a run stopped anywhere and continued ends with the same bits. Several processes share the
rows of a step; how many they are changes the order of sums and nothing else, so it is no part of the configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness import checkpoint, corpus, synthetic
from harness.config import DataConfig, Phase, RunConfig, TrainConfig
from harness.data import INDEX, TokenData, file_sha256, load_tokenizer, tokenizer_hash
from harness.distributed import ALONE, World, world
from harness.files import write_atomic
from harness.model import LanguageModel, build_model
from harness.optim import build_optimizer, learning_rate
from harness.prepare import prepare
from harness.provenance import provenance
from mixers.registry import require_file

LOG_EVERY = 10  # optimiser steps between two lines of metrics.jsonl

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, float]], None]


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says at which step, why and from where it can be resumed."""


class TrainingInterrupted(Exception):
    """Training was told to stop and has: no failure. The checkpoint of `step`, of `total`, is on the disk."""

    def __init__(self, step: int, total: int):
        super().__init__(step, total)
        self.step, self.total = step, total

    def __str__(self) -> str:
        return f"stopped after step {self.step} of {self.total}; submit again to continue"


@dataclass(frozen=True)
class Summary:
    """What a finished run leaves in `train.json`, beside its provenance.

    tokens_per_second: of all processes together. world_size: how many they were when it ended.
    """

    run: str
    label: str
    mixer: str
    layout: str
    preset: str
    seed: int
    non_embedding_params: int
    embedding_params: int
    state_floats_per_layer: int
    flops_per_token: float
    mlp_widths: list[int]
    steps: int
    tokens_seen: int
    train_loss: float
    tokens_per_second: float
    weights_sha256: str
    world_size: int = 1


def this_device() -> torch.device:
    """The GPU of this process, which `harness.distributed.world` chooses by its local rank, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def activation_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of activations that `dtype: auto` stands for on this device."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]


def data_sha256(config: DataConfig) -> str:
    """Identifies what a run reads: the texts or shards, and the tokenizer. Opens no shard."""
    if config.source == "embedded":
        content: Any = corpus.fingerprint()
    else:
        index = Path(config.source) / INDEX
        if not index.is_file():
            raise ValueError(f"data.source: no {INDEX} in {config.source}; make it with `python run.py data prepare`")
        content = file_sha256(index)
    identity = [content, tokenizer_hash(load_tokenizer(config.tokenizer))]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def open_data(config: DataConfig) -> TokenData:
    """The shards a run reads, those of the embedded corpus made if they are not there yet. Raises ValueError for
    missing or damaged shards, and for shards that another tokenizer made."""
    if config.source == "embedded":
        return prepare("embedded", config.tokenizer)
    data = TokenData(config.source)
    if data.index["tokenizer_hash"] != tokenizer_hash(load_tokenizer(config.tokenizer)):
        raise ValueError(
            f"data.tokenizer: {config.tokenizer!r} is not the tokenizer that made {config.source}; name that one, or "
            "run data prepare again"
        )
    return data


@dataclass(frozen=True)
class Position:
    """Where a step lies in the schedule. tokens: seen after it. rows: of each task, seen before it."""

    phase: Phase
    tokens: int
    rows: dict[str, int]


def position(config: DataConfig, step: int) -> Position:
    """The place of a step (from 0) among the phases; a pure function, so resuming needs the step's number alone.

    Raises ValueError for a step past the end.
    """
    tokens, rows = 0, dict.fromkeys((task for phase in config.phases for task in phase.rows), 0)
    left = step
    for phase in config.phases:
        inside = min(left, phase.steps)
        for task, count in phase.rows.items():
            rows[task] += inside * count
        if left < phase.steps:
            return Position(phase, tokens + (left + 1) * phase.tokens_per_step, rows)
        tokens += phase.steps * phase.tokens_per_step
        left -= phase.steps
    raise ValueError(f"step: {step} is past the last of {config.steps} steps")


def pieces(data: DataConfig, train: TrainConfig, processes: int) -> int:
    """Pieces into which each of `processes` cuts its rows of a step, so that none is larger than train.accumulation
    alone makes it. Where `processes` divides it, the pieces are those of one process, shared out.

    Raises ValueError when the rows of a step cannot be shared equally.
    """
    each = -(-train.accumulation // processes)
    for index, phase in enumerate(data.phases):
        rows = sum(phase.rows.values())
        if rows % (processes * each):
            raise ValueError(
                f"world size: {processes} processes with train.accumulation {train.accumulation} cut a step into "
                f"{processes * each} equal pieces, and data.phases.{index} has {rows} rows; use a number of processes "
                "that divides them"
            )
    return each


def step_rows(
    config: RunConfig, step: int, tokenizer: Any, data: TokenData, here: World = ALONE
) -> tuple[Tensor, Tensor]:
    """This process's share of the R rows of an optimiser step, all of them where it is alone: tokens
    [R / size, seq_len + 1] and which targets count, [R / size, seq_len]. Shares are contiguous, in order of rank."""
    at = position(config.data, step)
    total = sum(at.phase.rows.values())
    begin, end = (total * rank // here.size for rank in (here.rank, here.rank + 1))
    parts, before = [], 0
    for task, count in at.phase.rows.items():
        first, last = max(begin - before, 0), min(end - before, count)
        if first < last:
            start = at.rows[task] + first
            parts.append(synthetic.rows(task, config.seed, start, last - first, at.phase.seq_len, tokenizer, data))
        before += count
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([mask for _, mask in parts])


def masked_loss(model: LanguageModel, tokens: Tensor, counted: Tensor) -> Tensor:
    """Summed cross-entropy, in nats, over the counted targets; logits exist for those alone."""
    hidden, _ = model.hidden(tokens[:, :-1])
    logits = model.head(hidden[counted]).float()
    return F.cross_entropy(logits, tokens[:, 1:][counted], reduction="sum")


class MaskedLoss(nn.Module):
    """`masked_loss` as a module, for DistributedDataParallel to see the forward pass that it reduces gradients of."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        return masked_loss(self.model, tokens, counted)


class Trainer:
    """A run in its folder: built or restored by the constructor, advanced by `steps`.

    here: this process's place among those that train the run; the first alone writes. restored_from: the checkpoint
    that it goes on from. notes: lines about what was found in the folder and not used.
    """

    def __init__(self, config: RunConfig, run_dir: Path, here: World = ALONE):
        self.pieces = pieces(config.data, config.train, here.size)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.config, self.run_dir, self.here = config, run_dir, here
        self.device = this_device()
        self.dtype = activation_dtype(config.train, self.device)
        with here.together():
            self.tokenizer = load_tokenizer(config.data.tokenizer)
            self.data = open_data(config.data)
            if data_sha256(config.data) != config.data_sha256:
                raise ValueError(
                    f"data.source: {config.data.source} has changed since the run was planned; submit again"
                )
            self.data.require_vocab(config.model.vocab_size)
            require_file(config.mixer_file)
            self.model = build_model(config.model, config.seed).to(self.device)
            self.optimizer = build_optimizer(self.model, config.train)
        self.step, self.seconds = 0, 0.0
        self.recent: list[float] = []  # losses of the last steps, whose mean is logged
        self.restored_from, self.notes = here.on_first(self._find_checkpoint)
        self.saved = self.restored_from
        with here.together():
            if self.restored_from is not None:
                self._restore(checkpoint.load(self.restored_from))
            if here.first:
                _keep_metrics_until(run_dir / "metrics.jsonl", self.step)
        self.loss: nn.Module = MaskedLoss(self.model)
        if here.size > 1:
            # Without find_unused_parameters DDP fails for a layer that leaves one unused, and after its first step it
            # makes its buckets anew: more than two addends would then add up in an order that depends on where the
            # run was resumed.
            self.loss = DistributedDataParallel(
                self.loss,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def _find_checkpoint(self) -> tuple[Path | None, list[str]]:
        content = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_atomic(self.run_dir / "config.yaml", content.encode())
        return checkpoint.latest_sound(self.run_dir)

    def _restore(self, content: dict[str, Any]) -> None:
        if content["config_hash"] != self.config.hash:
            raise checkpoint.CheckpointError(
                f"{self.restored_from}: made by another configuration ({content['config_hash'][:8]}, this is "
                f"{self.config.hash[:8]}); use another run folder"
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds, self.recent = content["step"], content["seconds"], content["recent"]
        torch.set_rng_state(content["rng"])

    def save(self) -> Path:
        """Write a checkpoint of this moment. Raises OSError, or PeerFailed beside the process that could not."""
        self.saved = self.here.on_first(lambda: checkpoint.save(self.run_dir, self.step, self._content()))
        return self.saved

    def _content(self) -> dict[str, Any]:
        return {
            "config_hash": self.config.hash,
            "config": self.config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
            "rng": torch.get_rng_state(),
        }

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns its metrics, the same on all processes but for the speed. Raises TrainingStopped
        on a loss or gradient that is not finite, before the weights are touched."""
        started = time.perf_counter()
        tokens, counted = step_rows(self.config, self.step, self.tokenizer, self.data, self.here)
        targets = int(self.here.total([int(counted.sum())])[0])
        self.optimizer.zero_grad(set_to_none=True)
        own = 0.0
        parts = zip(tokens.chunk(self.pieces), counted.chunk(self.pieces), strict=True)
        for number, (piece, mask) in enumerate(parts, 1):
            with self._reduced_if(number == self.pieces):
                with self._autocast():
                    summed = self.loss(piece.to(self.device), mask.to(self.device))
                # DDP takes the mean over the processes; what is wanted is the sum.
                (summed * self.here.size / targets).backward()
            own += summed.item() / targets
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip).item()
        loss, faults = self.here.total([own, not math.isfinite(norm)])
        at = position(self.config.data, self.step)
        if faults or not math.isfinite(loss):
            raise TrainingStopped(
                f"step {self.step}: loss {loss}, gradient norm {norm}; last good checkpoint: {self.saved or 'none'}; "
                f"batch: seed {self.config.seed}, rows {at.phase.rows} from {at.rows}; lower train.lr or look at that "
                "batch"
            )
        rate = learning_rate(self.config.train, at.tokens, self.config.data.tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        self.recent = [*self.recent[-(LOG_EVERY - 1) :], loss]
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        return {
            "step": self.step,
            "tokens": at.tokens,
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "tokens_per_second": at.phase.tokens_per_step / elapsed,
        }

    @property
    def mean_loss(self) -> float:
        """Over the last LOG_EVERY steps, in nats."""
        return sum(self.recent) / len(self.recent)

    def _reduced_if(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Where gradients of a piece are computed: they go to the other processes with those of the last piece."""
        return contextlib.nullcontext() if last or self.here.size == 1 else self.loss.no_sync()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def steps(self, stop: Callable[[], bool] | None = None) -> Iterator[dict[str, float]]:
        """Train to the end, yielding each step's metrics; checkpoints are written behind steps on the way and the last.

        stop: asked after every step by every process. When one says yes and steps are left, that step's checkpoint is
        written and TrainingInterrupted raised by all.
        """
        total = self.config.data.steps
        while self.step < total:
            yield self.train_step()
            stopped = self.here.anyone(stop is not None and stop())
            if stopped or self.step % self.config.train.checkpoint_every == 0 or self.step == total:
                self.save()
            if stopped and self.step < total:
                raise TrainingInterrupted(self.step, total)


def train(
    config: RunConfig,
    run_dir: Path,
    progress: Progress | None = None,
    command: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> Summary:
    """Train a run to its end, from its last sound checkpoint if it has one; does nothing when it is finished.

    In the processes of one `harness.distributed.world` it is called by all of them; the first writes config.yaml,
    metrics.jsonl, tensorboard/, checkpoints/ and, last, train.json, and calls progress, and all return its summary.
    command: the command line for the record, where it is not this process's own. stop: see Trainer.steps.

    Raises TrainingInterrupted when told to stop; TrainingStopped, CheckpointError, OSError or ValueError with a line
    that names what to change; PeerFailed in the processes beside the one that raised such a thing.
    """
    with world() as here:
        if (summary := here.on_first(lambda: read_summary(run_dir))) is not None:
            return summary
        trainer = Trainer(config, run_dir, here)
        with contextlib.ExitStack() as files:
            with here.together():
                if here.first:
                    for note in trainer.notes:
                        log.warning(note)
                    write = files.enter_context(_metrics_files(run_dir, trainer.step))
            for metrics in trainer.steps(stop):
                with here.together():
                    if here.first:
                        if metrics["step"] % LOG_EVERY == 0 or metrics["step"] == config.data.steps:
                            write(metrics | {"loss": trainer.mean_loss})
                        if progress is not None:
                            progress(metrics | {"total_steps": config.data.steps, "total_tokens": config.data.tokens})
        return here.on_first(lambda: _finish(trainer, command))


@contextlib.contextmanager
def _metrics_files(run_dir: Path, step: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Opens metrics.jsonl and tensorboard/ of a run that goes on behind `step`; gives what writes a line to both."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step or None)
    with contextlib.closing(writer), open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:

        def write(line: dict[str, float]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            for key in ("loss", "grad_norm", "lr", "tokens_per_second"):
                writer.add_scalar(key, line[key], line["step"])

        yield write


def _finish(trainer: Trainer, command: str | None) -> Summary:
    """Write train.json of a run that is trained to its end."""
    config = trainer.config
    summary = Summary(
        run=config.run_id,
        label=config.label,
        mixer=config.mixer,
        layout=config.layout,
        preset=config.preset,
        seed=config.seed,
        **asdict(trainer.model.cost(config.data.seq_len)),
        mlp_widths=config.model.mlp_widths,
        steps=config.data.steps,
        tokens_seen=config.data.tokens,
        train_loss=trainer.mean_loss,
        tokens_per_second=config.data.tokens / trainer.seconds,
        weights_sha256=checkpoint.digest(trainer.model.state_dict()),
        world_size=trainer.here.size,
    )
    backend = trainer.model.backend(trainer.dtype)
    birth = provenance(config.hash, trainer.device, trainer.dtype, backend=backend, command=command)
    content = asdict(summary) | {"provenance": asdict(birth)}
    write_atomic(trainer.run_dir / "train.json", json.dumps(content, indent=1).encode())
    return summary


def read_summary(run_dir: Path) -> Summary | None:
    """The summary of a finished run, or None while it is not finished."""
    path = run_dir / "train.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    del content["provenance"]
    return Summary(**content)


def read_birth(run_dir: Path) -> dict[str, Any]:
    """The provenance of a finished run's training."""
    return json.loads((run_dir / "train.json").read_text())["provenance"]


def read_config(run_dir: Path) -> RunConfig:
    """The configuration of a run. Raises ValueError when the folder holds none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir}: no run lies there (config.yaml is missing); give the folder of a run")
    return RunConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))


def load_trained(run_dir: Path) -> tuple[LanguageModel, RunConfig]:
    """The trained model of a run, in evaluation mode on the CPU, and its configuration.

    Raises ValueError for a folder without a run, one that is not trained to its end, and weights that are not those
    it ended with.
    """
    config, summary, path = read_config(run_dir), read_summary(run_dir), checkpoint.latest(run_dir)
    if summary is None or path is None:
        raise ValueError(f"{run_dir}: the run is not trained to its end; submit or train it first")
    content = checkpoint.load(path)
    if checkpoint.digest(content["model"]) != summary.weights_sha256:
        raise checkpoint.CheckpointError(
            f"{path}: not the weights that the run ended with; delete {run_dir / 'train.json'} and submit it again"
        )
    require_file(config.mixer_file)
    model = LanguageModel(config.model)
    model.load_state_dict(content["model"])
    return model.eval(), config


def _keep_metrics_until(path: Path, step: int) -> None:
    """Drop lines of steps that a resumed run will do again."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_atomic(path, "".join(line + "\n" for line in lines).encode())


def _step_of(line: str) -> float:
    """The step of a metrics line; infinite for one that was cut off when its process died."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
