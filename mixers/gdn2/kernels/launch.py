"""Launch Triton kernels, tuned over the configurations that fit, and compile them for absent GPUs."""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from mixers.backends import interpreted

# Bytes of shared memory a block may use, by compute capability (CUDA C++ programming guide, technical specifications).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

Candidates = Callable[[dict[str, Any], int], list[triton.Config]]


def padded(size: int) -> int:
    """Return the block size that holds an axis: a power of two, at least the 16 that matrix instructions need."""
    return max(16, triton.next_power_of_2(size))


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel.

    registers, spilled: registers and spilled bytes per thread. shared: bytes of shared memory per block.
    matrix_instructions: count of each kind of matrix instruction.
    """

    registers: int
    spilled: int
    shared: int
    matrix_instructions: dict[str, int]

    def fit(self, shared_memory: int) -> bool:
        """Whether the kernel spills nothing and needs at most `shared_memory` bytes."""
        return self.spilled == 0 and self.shared <= shared_memory


def resources(compiled: Any) -> Resources:
    """Read a compiled kernel's resources from its machine code, with Triton's own cuobjdump. Needs no GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sizes = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions = re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", compiled.asm["ptx"])
    return Resources(
        sizes["REG"],
        sizes["STACK"] + sizes["LOCAL"],
        compiled.metadata.shared,
        {name: instructions.count(name) for name in sorted(set(instructions))},
    )


class AbsentGPU:
    """A driver for Triton that names a GPU to compile for and cannot launch anything."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """Return the GPU to compile for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return a device number. It differs per GPU because Triton caches compiled kernels by device."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


class Kernel:
    """A Triton kernel, the configurations worth trying for given arguments, and the cost of a launch.

    candidates: (arguments, compute capability) → configurations. flops: (arguments) → FLOPs of one launch. scratch:
    names of arguments that only pass data from one part of a program to the next, through the cache.

    A kernel is tuned once per device for each combination of dtypes, head sizes and options; another batch or length
    reuses the result, which Triton stores on disk. Tuning skips configurations that need more shared memory than the
    device has, and those that spill if another does not.
    """

    def __init__(
        self,
        function: Any,
        candidates: Candidates,
        flops: Callable[[dict[str, Any]], int],
        scratch: tuple[str, ...] = (),
    ):
        self.function = function
        self.candidates = candidates
        self.flops = flops
        self.scratch = scratch
        self._tuned: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The name of the kernel's function."""
        return self.function.__name__

    def __call__(self, grid: Callable[[dict[str, Any]], tuple[int, ...]], **arguments: Any) -> None:
        if _recorded is not None:
            _recorded.append(Launch(self, arguments))
        elif interpreted():
            # The interpreter has no driver to time with, so it runs one configuration: the one with the largest blocks,
            # which needs the fewest steps. It has no compiler either, so compiler options are dropped.
            sizes = [{k: v for k, v in c.kwargs.items() if k.isupper()} for c in self.candidates(arguments, 90)]
            blocks = max(sizes, key=lambda blocks: tuple(blocks.values()))
            self.function[grid](**arguments, **blocks)
        else:
            self._autotuned(arguments)[grid](**arguments)

    def _autotuned(self, arguments: dict[str, Any]) -> Any:
        candidates = self.candidates(arguments, _capability())
        identity = ";".join(map(str, candidates))
        if identity not in self._tuned:
            sizes = [p.name for p in self.function.params if p.is_constexpr and p.name not in candidates[0].kwargs]
            self._tuned[identity] = triton.autotune(
                candidates, key=sizes, prune_configs_by={"early_config_prune": self._prune}, cache_results=True
            )(self.function)
        return self._tuned[identity]

    def _prune(self, candidates: list[triton.Config], named: dict[str, Any], **arguments: Any) -> list[triton.Config]:
        limit = torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
        compiled = [(resources(self.compile({**named, **arguments}, c)), c) for c in candidates]
        within = [(taken, c) for taken, c in compiled if taken.shared <= limit]
        sizes = {name: value for name, value in arguments.items() if isinstance(value, int)}
        if not within:
            raise RuntimeError(f"{self.name}: no configuration fits this GPU at {sizes}; use backend='chunked'")
        least = min(taken.spilled for taken, _ in within)
        if least:
            warnings.warn(f"{self.name}: spills {least} bytes per thread on this GPU at {sizes}", stacklevel=2)
        return [c for taken, c in within if taken.spilled == least]

    def compile(self, arguments: dict[str, Any], candidate: triton.Config) -> Any:
        """Compile for the active driver's GPU and return Triton's result. Arguments may be on the meta device."""
        return self.function.warmup(**arguments, **candidate.all_kwargs(), grid=(1,))


@cache
def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@dataclass
class Launch:
    """A recorded launch: the kernel and its arguments, with tensors on the meta device."""

    kernel: Kernel
    arguments: dict[str, Any]

    @property
    def flops(self) -> int:
        """FLOPs of the launch."""
        return self.kernel.flops(self.arguments)

    @property
    def moved(self) -> int:
        """Bytes read from and written to memory if each tensor passes once and scratch stays in the cache."""
        return sum(
            x.numel() * x.element_size()
            for name, x in self.arguments.items()
            if isinstance(x, Tensor) and name not in self.kernel.scratch
        )


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record launches within the block instead of making them. Yields the list that they are added to."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before
