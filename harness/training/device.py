"""The device that a process trains on: its peak memory, its dtype, and the rate of its matrix products."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache

import torch.utils.checkpoint

from harness.experiments.schema import TrainConfig

MATMULS = 10  # products that `matmul_rate` times


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
    """FLOP/s of square matrix products in a dtype: the best of MATMULS, each of which takes some milliseconds."""
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
    """`matmul_rate`, measured once per process for each number of CPU threads."""
    return matmul_rate(device, dtype)
