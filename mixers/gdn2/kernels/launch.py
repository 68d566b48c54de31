"""Launch Triton kernels, tuned over the configurations that fit, and compile them for absent GPUs."""

from __future__ import annotations

import hashlib
import json
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
from triton.runtime.cache import get_cache_manager
from triton.testing import do_bench

from mixers.backends import interpreted

# Bytes of shared memory a block may use, by compute capability (CUDA C++ programming guide, technical specifications).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MANY_PROGRAMS = 4096  # several waves of programs on any GPU; more of them make no other configuration the fastest

Candidates = Callable[[dict[str, Any], int], list[triton.Config]]
Grid = Callable[[dict[str, Any]], tuple[int, ...]]


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

    A kernel is tuned at its first launch for each combination of GPU, dtypes, head sizes, options and number of
    programs, the last rounded up to a power of two: few programs want narrow blocks, many want wide ones. Triton's
    cache keeps the result on disk. Tuning skips configurations that need more shared memory than the device has, and
    those that spill if another does not.
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
        self._tuned: dict[tuple[Any, ...], triton.Config] = {}

    @property
    def name(self) -> str:
        """The name of the kernel's function."""
        return self.function.__name__

    def __call__(self, grid: Grid, **arguments: Any) -> None:
        if _recorded is not None:
            _recorded.append(Launch(self, arguments))
        elif interpreted():
            # The interpreter has no driver to time with, so it runs one configuration: the one with the largest blocks,
            # which needs the fewest steps. It has no compiler either, so compiler options are dropped.
            tried = [_forced[self.name]] if self.name in _forced else self.candidates(arguments, 90)
            sizes = [{k: v for k, v in c.kwargs.items() if k.isupper()} for c in tried]
            blocks = max(sizes, key=lambda blocks: tuple(blocks.values()))
            self.function[grid](**arguments, **blocks)
        else:
            device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
            with torch.cuda.device(device):  # Triton launches on the current device, whatever its arguments' device
                config = _forced.get(self.name) or self._fastest(grid, arguments, device)
                self.function[grid](**arguments, **config.all_kwargs())

    def _fastest(self, grid: Grid, arguments: dict[str, Any], device: torch.device) -> triton.Config:
        """Return the tuned configuration for these arguments; measure or read it from disk at the first call."""
        candidates = self.candidates(arguments, _capability(device))
        programs = min(triton.next_power_of_2(grid(candidates[0].kwargs)[0]), MANY_PROGRAMS)
        key = (device, programs, *(x.dtype if isinstance(x, Tensor) else x for x in self._keyed(arguments).values()))
        if key not in self._tuned:
            self._tuned[key] = self._tune(grid, arguments, candidates, programs)
        return self._tuned[key]

    def _keyed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that compiled code depends on: tensors, absent tensors, sizes and options."""
        return {name: x for name, x in arguments.items() if not isinstance(x, float)}

    def _tune(
        self, grid: Grid, arguments: dict[str, Any], candidates: list[triton.Config], programs: int
    ) -> triton.Config:
        fitting = self._fitting(arguments, candidates)
        if len(fitting) == 1:
            return fitting[0]
        stated = {k: str(x.dtype) if isinstance(x, Tensor) else x for k, x in self._keyed(arguments).items()}
        identity = [
            self.function.cache_key,
            triton.__version__,
            torch.cuda.get_device_name(),
            programs,
            sorted(stated.items()),
            [str(c) for c in fitting],
        ]
        cache = get_cache_manager(hashlib.sha256(json.dumps(identity).encode()).hexdigest())
        file = f"{self.name}.tuned.json"
        if (path := cache.get_file(file)) is not None:
            with open(path) as stream:
                times = json.load(stream)
        else:
            times = [
                do_bench(lambda config=config: self.function[grid](**arguments, **config.all_kwargs()))
                for config in fitting
            ]
            cache.put(json.dumps(times), file, binary=False)
        return fitting[times.index(min(times))]

    def _fitting(self, arguments: dict[str, Any], candidates: list[triton.Config]) -> list[triton.Config]:
        """Return the candidates that fit the current GPU and spill least."""
        limit = torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
        compiled = [(self.compile(arguments, c), c) for c in candidates]
        within = [(_spilled(kernel), c) for kernel, c in compiled if kernel.metadata.shared <= limit]
        sizes = {name: value for name, value in arguments.items() if isinstance(value, int)}
        if not within:
            raise RuntimeError(f"{self.name}: no configuration fits this GPU at {sizes}; use backend='chunked'")
        least = min(spilled for spilled, _ in within)
        if least:
            warnings.warn(f"{self.name}: spills {least} registers per thread on this GPU at {sizes}", stacklevel=2)
        return [c for spilled, c in within if spilled == least]

    def compile(self, arguments: dict[str, Any], candidate: triton.Config) -> Any:
        """Compile for the active driver's GPU and return Triton's result. Arguments may be on the meta device."""
        return self.function.warmup(**arguments, **candidate.all_kwargs(), grid=(1,))


def _spilled(compiled: Any) -> int:
    """Return the registers per thread that a kernel spills, as the driver states them once the kernel is loaded."""
    compiled._init_handles()  # Triton fills n_spills here, and otherwise at the first launch
    return compiled.n_spills


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


_forced: dict[str, triton.Config] = {}


@contextmanager
def forcing(configurations: dict[str, triton.Config]) -> Iterator[None]:
    """Launch kernels with these configurations within the block, by the kernel's name, without tuning."""
    global _forced
    before, _forced = _forced, configurations
    try:
        yield
    finally:
        _forced = before


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
