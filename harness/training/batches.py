"""The rows of each optimiser step, a function of seed and step alone, and a loader that reads them ahead."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.data import corpus, mqar, state_tracking, synthetic
from harness.data.prepare import prepare
from harness.data.shards import INDEX, TokenData
from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.data import SYNTHETIC, DataConfig, RecallPhase, StateTrackingPhase
from harness.experiments.run_config import RunConfig
from harness.files import file_sha256
from harness.training.distributed import ALONE, World
from harness.training.schedule import position


class Rows(NamedTuple):
    """Rows of a training step. inputs: [R, T] int64. targets: [R, T] int64. counted: [R, T] bool, the targets that
    count in the loss."""

    inputs: Tensor
    targets: Tensor
    counted: Tensor


def step_rows(config: RunConfig, step: int, tokenizer: Any, data: TokenData | None, world: World = ALONE) -> Rows:
    """This process's share of the R rows of an optimiser step, for `world.size` processes.

    Shares have R / size rows; they are contiguous and in order of rank.
    """
    at = position(config.data, config.seed, step)
    total = at.phase.rows_per_step
    begin, end = (total * rank // world.size for rank in (world.rank, world.rank + 1))
    if at.bare is not None:
        return Rows(*map(torch.from_numpy, at.bare.draw(begin, end, len(tokenizer))))
    parts, before = [], 0
    for task, count in at.phase.rows.items():
        first, last = max(begin - before, 0), min(end - before, count)
        if first < last:
            start = at.rows[task] + first
            wanted = (task, config.seed, start, last - first, at.seq_len)
            parts.append(synthetic.rows(*wanted, tokenizer, data, at.phase.questions))
        before += count
    # A single part needs no copy.
    tokens, counted = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return Rows(tokens[:, :-1], tokens[:, 1:], counted)


class BatchLoader:
    """Reads the rows of one step after another (`step_rows`). A thread reads the next step's while a step runs.

    waited: total seconds spent waiting for rows.
    """

    def __init__(self, config: RunConfig, tokenizer: Any, data: TokenData | None, world: World):
        self.config, self.tokenizer, self.data, self.world = config, tokenizer, data, world
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: tuple[int, Future[Rows]] | None = None

    def rows(self, step: int) -> Rows:
        """The rows of a step (`step_rows`). Steps may come in any order. Errors of reading pass on."""
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
    """SHA-256 of what a run reads: texts, shards or the definition of its rows, and the tokenizer. Opens no shard.

    Raises ValueError if the shards or the tokenizer are missing.
    """
    return combined_sha256(data_content(config), tokenizer_hash(load_tokenizer(config.tokenizer)))


def combined_sha256(content: Any, tokenizer_sha256: str) -> str:
    """`data_sha256` from its parts: the content of the data (`data_content`), and the hash of the tokenizer."""
    return hashlib.sha256(json.dumps([content, tokenizer_sha256], sort_keys=True).encode()).hexdigest()


def data_content(config: DataConfig) -> Any:
    """The content of a run's data without their tokenizer, as hashes or as a definition: plain values.

    Raises ValueError if the shards are missing.
    """
    if config.source == "embedded":
        return corpus.fingerprint()
    if config.source == SYNTHETIC:
        kinds = {type(phase) for phase in config.phases}
        definitions = [state_tracking.DEFINITION] if StateTrackingPhase in kinds else []
        # Without phases, as for models that are only timed, the definition is that of recall.
        definitions += [mqar.DEFINITION] if RecallPhase in kinds or not kinds else []
        return definitions if len(definitions) > 1 else definitions[0]
    index = Path(config.source) / INDEX
    if not index.is_file():
        raise ValueError(f"data.source: no {INDEX} in {config.source}; make it with `python run.py data prepare`")
    return file_sha256(index)


def open_data(config: DataConfig) -> TokenData | None:
    """Open the shards that a run reads; None if it reads none. Those of the embedded corpus are made on first use.

    Raises ValueError if shards are missing or damaged, or were made with another tokenizer.
    """
    if config.source == SYNTHETIC:
        return None
    if config.source == "embedded":
        return prepare("embedded", config.tokenizer)
    data = TokenData(config.source)
    if data.index["tokenizer_hash"] != tokenizer_hash(load_tokenizer(config.tokenizer)):
        raise ValueError(
            f"data.tokenizer: {config.tokenizer!r} is not the tokenizer that made {config.source}; name that one, or "
            "run data prepare again"
        )
    return data
