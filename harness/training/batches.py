"""The rows of each optimiser step, a function of seed and step alone, and a loader that reads them ahead."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.data import corpus, synthetic
from harness.data.prepare import prepare
from harness.data.shards import INDEX, TokenData
from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import DataConfig, Phase, TrainConfig
from harness.files import file_sha256
from harness.training.distributed import ALONE, World


@dataclass(frozen=True)
class Position:
    """The place of a step in the schedule.

    phase: phase that the step belongs to. first: first step of that phase. tokens: tokens seen by the end of the step.
    rows: rows seen before the step, by task.
    """

    phase: Phase
    first: int
    tokens: int
    rows: dict[str, int]


def position(config: DataConfig, step: int) -> Position:
    """Locate a step, counted from 0, in the schedule. A pure function: to resume, the step's number is enough.

    Raises ValueError for a step past the end.
    """
    tokens, rows = 0, dict.fromkeys((task for phase in config.phases for task in phase.rows), 0)
    left = step
    for phase in config.phases:
        inside = min(left, phase.steps)
        for task, count in phase.rows.items():
            rows[task] += inside * count
        if left < phase.steps:
            return Position(phase, step - left, tokens + (left + 1) * phase.tokens_per_step, rows)
        tokens += phase.steps * phase.tokens_per_step
        left -= phase.steps
    raise ValueError(f"step: {step} is past the last of {config.steps} steps")


def pieces(data: DataConfig, train: TrainConfig, processes: int) -> int:
    """Number of pieces into which each of `processes` processes cuts its share of a step's rows.

    No piece is larger than one process would make it with `train.accumulation`. If `processes` divides the
    accumulation, the pieces are exactly those of one process, distributed over all.

    Raises ValueError if the rows of a step cannot be shared equally.
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
    config: RunConfig, step: int, tokenizer: Any, data: TokenData, world: World = ALONE
) -> tuple[Tensor, Tensor]:
    """This process's share of the R rows of an optimiser step, for `world.size` processes.

    Returns tokens, int64 [R / size, seq_len + 1], and the mask of targets that count, bool [R / size, seq_len]. Shares
    are contiguous and in order of rank.
    """
    at = position(config.data, step)
    total = sum(at.phase.rows.values())
    begin, end = (total * rank // world.size for rank in (world.rank, world.rank + 1))
    parts, before = [], 0
    for task, count in at.phase.rows.items():
        first, last = max(begin - before, 0), min(end - before, count)
        if first < last:
            start = at.rows[task] + first
            parts.append(synthetic.rows(task, config.seed, start, last - first, at.phase.seq_len, tokenizer, data))
        before += count
    if len(parts) == 1:  # nothing to copy
        return parts[0]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([mask for _, mask in parts])


class BatchLoader:
    """Reads the rows of one step after another (`step_rows`). A thread reads the next step's while a step runs.

    waited: total seconds spent waiting for rows.
    """

    def __init__(self, config: RunConfig, tokenizer: Any, data: TokenData, world: World):
        self.config, self.tokenizer, self.data, self.world = config, tokenizer, data, world
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def rows(self, step: int) -> tuple[Tensor, Tensor]:
        """The rows of a step, as `step_rows` returns them. Steps may come in any order. Errors of reading pass on."""
        started = time.perf_counter()
        if self._ahead is None or self._ahead[0] != step:
            self._read(step)
        rows = self._ahead[1].result()
        self._ahead = None
        if step + 1 < self.config.data.steps:
            self._read(step + 1)
        self.waited += time.perf_counter() - started
        return rows

    def _read(self, step: int) -> None:
        future = self._thread.submit(step_rows, self.config, step, self.tokenizer, self.data, self.world)
        self._ahead = (step, future)


def data_sha256(config: DataConfig) -> str:
    """SHA-256 of what a run reads: the texts or shards, and the tokenizer. Opens no shard.

    Raises ValueError if the shards are missing.
    """
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
    """Open the shards that a run reads. Those of the embedded corpus are made on first use.

    Raises ValueError if shards are missing or damaged, or were made with another tokenizer.
    """
    if config.source == "embedded":
        return prepare("embedded", config.tokenizer)
    data = TokenData(config.source)
    if data.index["tokenizer_hash"] != tokenizer_hash(load_tokenizer(config.tokenizer)):
        raise ValueError(
            f"data.tokenizer: {config.tokenizer!r} is not the tokenizer that made {config.source}; name that one, or "
            "run data prepare again"
        )
    return data
