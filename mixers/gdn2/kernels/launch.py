"""Launching Triton kernels: tuning over the configurations that fit, and compiling for GPUs that are not there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may use; CUDA C++ guide, table 27

Candidates = Callable[[dict[str, Any]], list[triton.Config]]


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 when triton was imported."""
    return triton.knobs.runtime.interpret


def padded(size: int) -> int:
    """The block that holds an axis: a power of two, 16 at least, since matrix instructions take no less."""
    return max(16, triton.next_power_of_2(size))


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers a thread, bytes spilled a thread, bytes of shared memory a block."""

    registers: int
    spilled: int
    shared: int
    matrix_instructions: dict[str, int]

    def fit(self, shared_memory: int) -> bool:
        return self.spilled == 0 and self.shared <= shared_memory


def resources(compiled: Any) -> Resources:
    """Read from the cubin by cuobjdump, which Triton carries; no GPU needed."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions = re.findall(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma)", compiled.asm["ptx"])
    return Resources(
        found["REG"],
        found["STACK"] + found["LOCAL"],
        compiled.metadata.shared,
        {name: instructions.count(name) for name in sorted(set(instructions))},
    )


@dataclass
class Launch:
    """One recorded launch: which kernel, its arguments (tensors on the meta device), its candidates."""

    kernel: Kernel
    arguments: dict[str, Any]

    @property
    def candidates(self) -> list[triton.Config]:
        return self.kernel.candidates(self.arguments)


_recording: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within: kernels on tensors of the meta device are noted instead of run."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


class Kernel:
    """A Triton kernel and the configurations worth trying for given arguments, the first one a safe choice.

    Tuned once a device for each combination of dtypes and of the arguments named in `key`, which are sizes of heads
    and options, never batch or length; kept on disk by Triton. A configuration that spills or needs more shared
    memory than the device has is not timed.
    """

    def __init__(self, function: Any, candidates: Candidates, restore: tuple[str, ...] = ()):
        self.function = function
        self.candidates = candidates
        self.key = [p.name for p in function.params if p.is_constexpr] if not interpreted() else []
        self.restore = list(restore)
        self._tuned: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.function.__name__

    def __call__(self, grid: Callable[[dict[str, Any]], tuple[int, ...]], **arguments: Any) -> None:
        if _recording is not None:
            _recording.append(Launch(self, arguments))
        elif interpreted():
            # The interpreter has no driver to time with: one configuration.
            chosen = self.candidates(arguments)[0].kwargs
            self.function[grid](**arguments, **chosen)
        else:
            self._autotuned(arguments)[grid](**arguments)

    def _autotuned(self, arguments: dict[str, Any]) -> Any:
        candidates = self.candidates(arguments)
        identity = ";".join(map(str, candidates))
        if identity not in self._tuned:
            meta = set(candidates[0].kwargs)
            self._tuned[identity] = triton.autotune(
                candidates,
                key=[name for name in self.key if name not in meta],
                prune_configs_by={"early_config_prune": self._prune},
                restore_value=self.restore,
                cache_results=True,
            )(self.function)
        return self._tuned[identity]

    def _prune(self, candidates: list[triton.Config], named: dict[str, Any], **arguments: Any) -> list[triton.Config]:
        limit = torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
        kept = []
        for candidate in candidates:
            compiled = self.function.warmup(**named, **arguments, **candidate.all_kwargs(), grid=(1,))
            if resources(compiled).fit(limit):
                kept.append(candidate)
        if not kept:
            sizes = {name: arguments[name] for name in self.key if name in arguments}
            raise RuntimeError(f"{self.name}: no configuration fits this GPU at {sizes}; use backend='chunked'")
        return kept
