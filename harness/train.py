"""Training of one run on one device, and exactly resumable.

A step is a function of the weights, the optimiser's state and the step's number: its data come from (seed, step),
and nothing else is drawn. So a run stopped anywhere and continued ends with the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from harness import checkpoint, corpus, synthetic
from harness.checkpoint import write_atomic
from harness.config import DataConfig, Phase, RunConfig, TrainConfig
from harness.data import INDEX, TokenData, file_sha256, load_tokenizer, tokenizer_hash
from harness.model import LanguageModel, build_model
from harness.optim import build_optimizer, learning_rate
from harness.prepare import prepare
from harness.provenance import provenance
from mixers.registry import require_file

LOG_EVERY = 10  # optimiser steps between two lines of metrics.jsonl

Progress = Callable[[dict[str, float]], None]


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says at which step, why and from where it can be resumed."""


@dataclass(frozen=True)
class Summary:
    """What a finished run leaves in `train.json`, beside its provenance."""

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


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def step_rows(config: RunConfig, step: int, tokenizer: Any, data: TokenData) -> tuple[Tensor, Tensor]:
    """All rows of an optimiser step: tokens [R, seq_len + 1] and which targets count, [R, seq_len]."""
    at = position(config.data, step)
    parts = [
        synthetic.rows(task, config.seed, at.rows[task], count, at.phase.seq_len, tokenizer, data)
        for task, count in at.phase.rows.items()
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([mask for _, mask in parts])


def masked_loss(model: LanguageModel, tokens: Tensor, counted: Tensor) -> Tensor:
    """Summed cross-entropy, in nats, over the counted targets; logits exist for those alone."""
    hidden, _ = model.hidden(tokens[:, :-1])
    logits = model.head(hidden[counted]).float()
    return F.cross_entropy(logits, tokens[:, 1:][counted], reduction="sum")


class Trainer:
    """A run in its folder: built or restored by the constructor, advanced by `steps`."""

    def __init__(self, config: RunConfig, run_dir: Path):
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.config, self.run_dir = config, run_dir
        self.device = this_device()
        self.dtype = activation_dtype(config.train, self.device)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self.data = open_data(config.data)
        if data_sha256(config.data) != config.data_sha256:
            raise ValueError(f"data.source: {config.data.source} has changed since the run was planned; submit again")
        self.data.require_vocab(config.model.vocab_size)
        require_file(config.mixer_file)
        self.model = build_model(config.model, config.seed).to(self.device)
        self.optimizer = build_optimizer(self.model, config.train)
        self.step, self.seconds = 0, 0.0
        self.recent: list[float] = []  # losses of the last steps, whose mean is logged
        write_atomic(run_dir / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
        self.restored_from = checkpoint.latest(run_dir)
        if self.restored_from is not None:
            self._restore(checkpoint.load(self.restored_from))
        _keep_metrics_until(run_dir / "metrics.jsonl", self.step)

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
        """Write a checkpoint of this moment."""
        return checkpoint.save(
            self.run_dir,
            self.step,
            {
                "config_hash": self.config.hash,
                "config": self.config.model_dump(mode="json"),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "recent": self.recent,
                "rng": torch.get_rng_state(),
            },
        )

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns its metrics. Raises TrainingStopped on a loss or gradient that is not finite,
        before the weights are touched."""
        started = time.perf_counter()
        tokens, counted = step_rows(self.config, self.step, self.tokenizer, self.data)
        targets = int(counted.sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        pieces = self.config.train.accumulation
        for piece, mask in zip(tokens.chunk(pieces), counted.chunk(pieces), strict=True):
            with self._autocast():
                summed = masked_loss(self.model, piece.to(self.device), mask.to(self.device))
            (summed / targets).backward()
            loss += summed.item() / targets
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip).item()
        at = position(self.config.data, self.step)
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            raise TrainingStopped(
                f"step {self.step}: loss {loss}, gradient norm {norm}; last good checkpoint: "
                f"{checkpoint.latest(self.run_dir) or 'none'}; batch: seed {self.config.seed}, rows {at.phase.rows} "
                f"from {at.rows}; lower train.lr or look at that batch"
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

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def steps(self) -> Iterator[dict[str, float]]:
        """Train to the end, yielding each step's metrics; checkpoints are written on the way and at the end."""
        total = self.config.data.steps
        while self.step < total:
            metrics = self.train_step()
            if self.step % self.config.train.checkpoint_every == 0 or self.step == total:
                self.save()
            yield metrics


def train(config: RunConfig, run_dir: Path, progress: Progress | None = None, command: str | None = None) -> Summary:
    """Train a run to its end, from its last checkpoint if it has one; does nothing when it is finished.

    command: the command line for the record, where it is not this process's own.
    Writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/ and, last, train.json. Raises TrainingStopped,
    CheckpointError, OSError or ValueError with a line that names what to change.
    """
    from torch.utils.tensorboard import SummaryWriter

    if (summary := read_summary(run_dir)) is not None:
        return summary
    trainer = Trainer(config, run_dir)
    total = config.data.steps
    log = run_dir / "metrics.jsonl"
    writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=trainer.step or None)
    with contextlib.closing(writer), open(log, "a", encoding="utf-8") as file:
        for metrics in trainer.steps():
            if metrics["step"] % LOG_EVERY == 0 or metrics["step"] == total:
                line = metrics | {"loss": trainer.mean_loss}
                file.write(json.dumps(line) + "\n")
                file.flush()
                for key in ("loss", "grad_norm", "lr", "tokens_per_second"):
                    writer.add_scalar(key, line[key], metrics["step"])
            if progress is not None:
                progress(metrics | {"total_steps": total, "total_tokens": config.data.tokens})
    cost = trainer.model.cost(config.data.seq_len)
    summary = Summary(
        run=config.run_id,
        label=config.label,
        mixer=config.mixer,
        layout=config.layout,
        preset=config.preset,
        seed=config.seed,
        **asdict(cost),
        mlp_widths=config.model.mlp_widths,
        steps=total,
        tokens_seen=config.data.tokens,
        train_loss=trainer.mean_loss,
        tokens_per_second=config.data.tokens / trainer.seconds,
        weights_sha256=checkpoint.digest(trainer.model.state_dict()),
    )
    backend = trainer.model.backend(trainer.dtype)
    birth = provenance(config.hash, trainer.device, trainer.dtype, backend=backend, command=command)
    write_atomic(run_dir / "train.json", json.dumps(asdict(summary) | {"provenance": asdict(birth)}, indent=1).encode())
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
