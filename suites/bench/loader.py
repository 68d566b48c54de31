"""Reading training rows against torch's own DataLoader over the same shards: tokens per second.

Compared: our loader, from memory and from disk, with a shuffling DataLoader without and with worker processes. On:
windows of the embedded corpus, `steps` steps of `rows` rows. How often: REPEATS passes per loader, after one untimed
pass. Spread: the lowest and highest pass next to the median.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.data.shards import TokenData
from harness.data.tokenizer import load_tokenizer
from harness.experiments.expand import expand
from harness.experiments.schema import DataConfig, Experiment
from harness.training.batches import data_sha256, open_data, step_rows

REPEATS = 5


class Windows(Dataset[Tensor]):
    """The windows of the train split as a map-style data set, one window per item."""

    def __init__(self, data: TokenData, seq_len: int):
        self.stream, self.seq_len, self.windows = data.tokens("train"), seq_len, data.windows("train", seq_len)

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, index: int) -> Tensor:
        at = index * self.seq_len
        return torch.from_numpy(self.stream[at : at + self.seq_len + 1].astype("int64"))


def run(seq_len: int, rows: int, steps: int, workers: int) -> list[dict[str, Any]]:
    """Return one row per loader: the median, lowest and highest tokens per second over REPEATS passes.

    Our loader runs in this process (training reads ahead in a thread), from memory and from disk, where the shards'
    pages are dropped before each pass. The DataLoader reads from memory. seq_len: tokens per row. rows: rows per step.
    steps: steps per pass. workers: processes of the DataLoader. Raises ValueError if the embedded corpus has fewer
    windows than one pass needs.
    """
    phase = {"tokens": steps * rows * seq_len, "seq_len": seq_len, "rows": {"text": rows}}
    content = {"name": "loader", "preset": "cpu-600k", "mixers": ["attention"], "data": {"phases": [phase]}}
    experiment = Experiment.model_validate(content)
    tokenizer, data = load_tokenizer(), open_data(experiment.data)
    windows = Windows(data, seq_len)
    if len(windows) < rows * steps:
        raise ValueError(f"--steps: {steps} of {rows} rows are more than the {len(windows)} windows; ask for fewer")
    (config,) = expand(experiment, len(tokenizer), data_sha256(DataConfig(phases=experiment.data.phases))).runs

    def ours() -> Iterator[Tensor]:
        for step in range(steps):
            yield step_rows(config, step, tokenizer, data)[0]

    def theirs(processes: int) -> Iterator[Tensor]:
        loader = DataLoader(windows, rows, shuffle=True, num_workers=processes, drop_last=True)
        for _, batch in zip(range(steps), loader, strict=False):
            yield batch

    def ours_from_disk() -> Iterator[Tensor]:
        drop_cached_pages(data)
        return ours()

    loaders = {"mixerbench": ours, "mixerbench, from disk": ours_from_disk, "DataLoader, no workers": lambda: theirs(0)}
    if workers:
        loaders[f"DataLoader, {workers} workers"] = lambda: theirs(workers)
    results = []
    for name, batches in loaders.items():
        rates = [_rate(batches(), seq_len) for _ in range(1 + REPEATS)][1:]
        median = statistics.median(rates)
        results.append({"loader": name, "tokens_per_second": median, "low": min(rates), "high": max(rates)})
    return [row | {"seq_len": seq_len, "rows": rows, "steps": steps, "repeats": REPEATS} for row in results]


def drop_cached_pages(data: TokenData) -> None:
    """Drop the train split's shards from the page cache, so that the next reader reads from disk."""
    for shard in data.tokens("train").shards:
        shard._mmap.madvise(mmap.MADV_DONTNEED)  # mapped pages stay in the cache
        with open(shard.filename, "rb") as file:
            os.fsync(file.fileno())  # and so do dirty ones
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rate(batches: Iterator[Tensor], seq_len: int) -> float:
    started, tokens = time.perf_counter(), 0
    for batch in batches:
        tokens += batch.shape[0] * seq_len
    return tokens / (time.perf_counter() - started)


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, under a header that says what was read."""
    first = rows[0]
    lines = [
        f"{first['steps']} steps of {first['rows']} rows of {first['seq_len']:,} tokens; medians of {first['repeats']} "
        "passes, lowest and highest",
        f"{'loader':26}{'tokens/s':>14}{'lowest–highest':>28}",
    ]
    for r in rows:
        spread = f"{r['low']:,.0f}–{r['high']:,.0f}"
        lines.append(f"{r['loader']:26}{r['tokens_per_second']:14,.0f}{spread:>28}")
    return "\n".join(lines)
