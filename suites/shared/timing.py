"""Timing helpers of the throughput suites and the benchmarks: calls, spread, turns, memory."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from harness.experiments.closed import Closed
from harness.training.device import wait

T = TypeVar("T")
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")
"""Texts by which the message of a RuntimeError shows that an allocation failed, on CUDA and on a CPU."""


class Shape(Closed):
    """The shape of a batch of tokens."""

    batch: PositiveInt
    """Sequences in the batch."""
    length: PositiveInt
    """Tokens per sequence."""


def check_distinct_shapes(shapes: list[Shape]) -> list[Shape]:
    """Return `shapes`; raise ValueError if one is listed twice. A pydantic validator."""
    for shape in shapes:
        if shapes.count(shape) > 1:
            raise ValueError(f"{shape.batch} × {shape.length} is listed twice; list each shape once")
    return shapes


def time_calls(work: Callable[[], None], count: int, device: torch.device, until: float = math.inf) -> float | None:
    """Return the seconds that `count` calls of `work` take on the device.

    until: a moment of time.perf_counter; if it comes before the last call has begun, the result is None.
    """
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        if time.perf_counter() >= until:
            return None
        work()
    wait(device)
    return time.perf_counter() - started


def in_turns(names: Iterable[T], turn: int) -> list[T]:
    """Return the order in which competitors run in a turn: as listed in even turns, reversed in odd ones.

    Whoever runs first meets colder caches, so each goes first in every other turn.
    """
    return list(names)[:: -1 if turn % 2 else 1]


def median_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and its standard error, √(π/2) times that of the mean, as holds for normal values.

    Where outliers cause the spread, the error is too large.
    """
    error = math.sqrt(math.pi / 2 / len(values)) * statistics.stdev(values)
    return statistics.median(values), error


def median_p20_p80(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the 20th and the 80th percentile of at least two values."""
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), low, high


def unless_out_of_memory(work: Callable[[], T], device: torch.device) -> T | None:
    """Return what `work` returns, or None if the device runs out of memory; its memory is then released."""
    try:
        return work()
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
    release_memory(device)
    return None


def release_memory(device: torch.device) -> None:
    """Free the memory that a failed or finished measurement still holds."""
    gc.collect()  # a failed step leaves its graph in a cycle with the traceback
    if device.type == "cuda":
        with contextlib.suppress(torch.AcceleratorError):  # a device that stays in error reports it at its next use
            torch.cuda.empty_cache()


def error_line(error: BaseException) -> str:
    """Return an exception's type and message as one line of at most 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:299] + "…"


def random_tokens(shape: Shape, vocab_size: int, device: torch.device) -> Tensor:
    """Return random tokens [B, T + 1], the same ones on every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (shape.batch, shape.length + 1), generator=generator).to(device)
