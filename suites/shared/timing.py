"""Timing of whole training steps, shared by the throughput suites and the benchmarks."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from harness.experiments.schema import Closed
from harness.training.device import wait

Result = TypeVar("Result")
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")


class Shape(Closed):
    """batch: sequences. length: tokens of each."""

    batch: PositiveInt
    length: PositiveInt


def check_distinct_shapes(shapes: list[Shape]) -> list[Shape]:
    """The shapes, each once; a validator."""
    for shape in shapes:
        if shapes.count(shape) > 1:
            raise ValueError(f"{shape.batch} × {shape.length} is listed twice; list each shape once")
    return shapes


def time_calls(work: Callable[[], None], count: int, device: torch.device, until: float = math.inf) -> float | None:
    """Seconds of so many calls; None where `until` came before the last of them began."""
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        if time.perf_counter() >= until:
            return None
        work()
    wait(device)
    return time.perf_counter() - started


def median_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Median and its standard error, √(π/2) that of the mean, as for normal values: too large where outliers are what
    makes them differ."""
    error = math.sqrt(math.pi / 2 / len(values)) * statistics.stdev(values)
    return statistics.median(values), error


def unless_out_of_memory(work: Callable[[], Result], device: torch.device) -> Result | None:
    """What `work` returns; None where the device's memory does not suffice for it, all it took being given back."""
    try:
        return work()
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
    release_memory(device)
    return None


def release_memory(device: torch.device) -> None:
    """Give back what a failed or finished measurement holds."""
    gc.collect()  # a failed step leaves its graph in a cycle with the traceback
    if device.type == "cuda":
        with contextlib.suppress(torch.AcceleratorError):  # an error that the device stays in says so at the next use
            torch.cuda.empty_cache()


def random_tokens(shape: Shape, vocab_size: int, device: torch.device) -> Tensor:
    """[B, T + 1], the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (shape.batch, shape.length + 1), generator=generator).to(device)
