"""The device that a process trains on: its peak memory, its dtype, and the rate of its matrix products."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache

import torch.utils.checkpoint

from harness.experiments.schema import TrainConfig

MATMULS, MOST_MATMULS = 10, 40
"""Products that `matmul_rate` times: at least, and at most if the device is too busy for them to agree."""
AGREE = 1.05
"""Ratio of the third fastest product to the fastest up to which they agree. One alone may be a lucky reading."""


def this_device() -> torch.device:
    """The GPU of this process, or the CPU if there is none. `harness.training.distributed.join_world` has chosen the
    GPU by local rank."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: of tensors on a GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def recipe_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of activations on a device: the recipe's, or for `auto` bf16 on a GPU that supports it, else fp32."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in a dtype: the fastest of at least MATMULS, each of some milliseconds.

    More are timed until the three fastest agree: while other work shares the device, few are undisturbed.
    """
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype, generator=generator)
    times: list[float] = []
    while len(times) < MOST_MATMULS:
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - started)
        fastest = sorted(times)[:3]
        if len(times) >= MATMULS and fastest[-1] <= AGREE * fastest[0]:
            break
    return 2 * size**3 / min(times)


@cache
def ceiling(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """`matmul_rate`, measured once per process for each number of CPU threads."""
    return matmul_rate(device, dtype)
