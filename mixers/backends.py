"""Which implementation computes a mixer on a device, and why another one does not.

Every mixer has a form in plain torch, which serves everywhere and in float64. On a CUDA device it runs by itself on the
kernels that its authors maintain. Nothing of another package is imported before it is used.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Absent = Callable[[torch.device, torch.dtype, Any], "str | None"]


@dataclass(frozen=True)
class Backend:
    """A way to compute a mixer.

    absent: (device, dtype of the activations, the mixer's configuration or None) → None where it serves, else in one
    line what is missing and what would bring it.
    """

    name: str
    absent: Absent


TORCH = Backend("torch", lambda device, dtype, config: None)


def reasons(
    backends: tuple[Backend, ...], device: torch.device, dtype: torch.dtype, config: Any = None
) -> dict[str, str | None]:
    """Of each backend by name: None where it serves, else why it does not."""
    return {backend.name: backend.absent(device, dtype, config) for backend in backends}


def choose(
    backends: tuple[Backend, ...], asked: str, device: torch.device, dtype: torch.dtype, config: Any = None
) -> str:
    """The name of the backend that serves. `auto` is the first that does, and torch on a CPU; another name is that
    backend or a ValueError with the reason."""
    if asked == "auto":
        if device.type == "cpu":  # under Triton's interpreter kernels do run there, for tests, when asked by name
            return TORCH.name
        return next(backend.name for backend in backends if backend.absent(device, dtype, config) is None)
    found = reasons(backends, device, dtype, config)
    if asked not in found:
        raise ValueError(f"backend: unknown name {asked!r}; known: auto, {', '.join(found)}")
    if found[asked] is not None:
        raise ValueError(f"backend: {asked!r} does not serve {dtype} on {device}: {found[asked]}")
    return asked


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on CPU tensors: TRITON_INTERPRET=1 when it was imported."""
    from triton import knobs

    return knobs.runtime.interpret


def needs_gpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps Triton's kernels from running, whoever wrote them."""
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"its kernels need a CUDA device, not {device.type}; use torch"
    if dtype not in KERNEL_DTYPES:
        return f"its kernels take bfloat16, float16 and float32, not {str(dtype).removeprefix('torch.')}; use torch"
    return None


def fla_absent(device: torch.device, dtype: torch.dtype, config: Any) -> str | None:
    """flash-linear-attention's gated operators: 0.6.0 or newer, and a Triton that compiles them rightly."""
    if (reason := needs_gpu(device, dtype)) is not None:
        return reason
    if _parts("flash-linear-attention") < (0, 6):
        return "flash-linear-attention 0.6.0 or newer is missing; pip install -U flash-linear-attention"
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9 and not _installed("tilelang"):
        triton = _parts("triton")
        if (3, 4) <= triton < (3, 7, 1):
            return (
                f"fla refuses gated kernels on Hopper with Triton {version('triton')}, whose gradients are wrong; "
                "pip install 'triton>=3.7.1', or pip install tilelang"
            )
    return None


def mamba_ssm_absent(device: torch.device, dtype: torch.dtype, config: Any) -> str | None:
    """mamba-ssm's Triton kernels, which need no CUDA build of it."""
    if (reason := needs_gpu(device, dtype)) is not None:
        return reason
    if not _installed("mamba_ssm"):
        return (
            "mamba-ssm is missing; MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE "
            "pip install --no-deps --no-build-isolation mamba-ssm==2.3.2.post1"
        )
    if _parts("mamba-ssm") < (2, 3, 2):
        return f"mamba-ssm {version('mamba-ssm')} has no Mamba-3; pip install mamba-ssm==2.3.2.post1 (docs/mixers.md)"
    return None


FLA = Backend("fla", fla_absent)
MAMBA_SSM = Backend("mamba-ssm", mamba_ssm_absent)


def mamba_ssm(module: str) -> Any:
    """A module of mamba-ssm, by its name below the package.

    mamba-ssm 2.3.2 imports the CUDA extension of Mamba-1 as soon as anything of it is imported, though Mamba-2 and
    Mamba-3 are Triton. Where that extension was not built, a module takes its place that says so when it is used.
    """
    if "mamba_ssm" not in sys.modules and not _installed("selective_scan_cuda"):
        stub = types.ModuleType("selective_scan_cuda")
        stub.__getattr__ = _no_selective_scan  # type: ignore[method-assign]
        sys.modules["selective_scan_cuda"] = stub
        try:
            importlib.import_module("mamba_ssm")
        finally:
            del sys.modules["selective_scan_cuda"]
    return importlib.import_module(f"mamba_ssm.{module}")


def _no_selective_scan(name: str) -> Any:
    if name.startswith("__"):  # import machinery and inspect ask every module for these
        raise AttributeError(name)
    raise ImportError("selective_scan_cuda: Mamba-1 needs mamba-ssm's CUDA extension, which is not built here")


@cache
def convolution() -> str:
    """What computes short causal convolutions beside kernels: causal-conv1d, else flash-linear-attention."""
    return "causal-conv1d" if _installed("causal_conv1d") else "fla"


def activation_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that a linear layer gives for x: autocast's where it is on."""
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _parts(distribution: str) -> tuple[int, ...]:
    """The leading numbers of an installed version; none if it is not installed."""
    try:
        return tuple(map(int, re.findall(r"\d+", version(distribution).split("+")[0])))[:3]
    except PackageNotFoundError:
        return ()
