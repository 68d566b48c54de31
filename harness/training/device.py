"""The device that a process trains on: its memory, its dtype, and the rate of its matrix products."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache

import torch.utils.checkpoint

from harness.experiments.schema import TrainConfig

MATMULS = 10


def this_device() -> torch.device:
    """The GPU of this process, which `harness.training.distributed.world` chooses by its local rank, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors on the GPU took so far, on a CPU the most that the process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def recipe_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of activations that `dtype: auto` stands for on this device."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in a dtype: the best of ten, each of some milliseconds."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype, generator=generator)
    best = 0.0
    for _ in range(MATMULS):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


@cache
def ceiling(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """`matmul_rate` with so many CPU threads, measured once in a process."""
    return matmul_rate(device, dtype)
