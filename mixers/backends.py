"""The choice of the implementation that computes a mixer on a device, and the reasons against the others.

Every mixer has a form in plain torch, which serves on every device and in float64. On a CUDA device a mixer defaults to
the kernels that its authors maintain. Other packages are imported only when they are used.
"""

from __future__ import annotations

import importlib
import os
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
    """An implementation of a mixer.

    absent: (device, dtype of the activations, the mixer's configuration or None) → None if the backend serves, else one
    line that says what is missing and how to get it. no_gradient: the same for a backend that serves without gradients
    and cannot compute them.
    """

    name: str
    absent: Absent
    no_gradient: Absent = lambda device, dtype, config: None

    def missing(self, device: torch.device, dtype: torch.dtype, config: Any, gradients: bool) -> str | None:
        """Return None if the backend serves, with gradients if asked for, else the reason why not."""
        reason = self.absent(device, dtype, config)
        return self.no_gradient(device, dtype, config) if reason is None and gradients else reason


TORCH = Backend("torch", lambda device, dtype, config: None)


def reasons(
    backends: tuple[Backend, ...], device: torch.device, dtype: torch.dtype, config: Any = None, gradients: bool = True
) -> dict[str, str | None]:
    """Return for each backend, by name, None if it serves and otherwise the reason why not.

    gradients: whether it must compute them too.
    """
    return {backend.name: backend.missing(device, dtype, config, gradients) for backend in backends}


def choose(
    backends: tuple[Backend, ...],
    asked: str,
    device: torch.device,
    dtype: torch.dtype,
    config: Any = None,
    gradients: bool = True,
) -> str:
    """Return the name of the backend to use. `auto` is torch on a CPU and the first one that serves elsewhere.

    gradients: whether it must compute them too.

    Raises ValueError if `asked` is an unknown name, or a backend that does not serve, with the reason.
    """
    if asked == "auto":
        if device.type == "cpu":  # tests run kernels there under Triton's interpreter, but ask for them by name
            return TORCH.name
        return next(b.name for b in backends if b.missing(device, dtype, config, gradients) is None)
    absences = reasons(backends, device, dtype, config, gradients)
    if asked not in absences:
        raise ValueError(f"backend: unknown name {asked!r}; known: auto, {', '.join(absences)}")
    if absences[asked] is not None:
        raise ValueError(f"backend: {asked!r} does not serve {dtype} on {device}: {absences[asked]}")
    return asked


def interpreted() -> bool:
    """Whether Triton interprets its kernels, on CPU tensors: TRITON_INTERPRET was 1 when triton was imported."""
    from triton import knobs

    return knobs.runtime.interpret


# Dynamo cannot trace the look into Triton's settings. This is all that torch.compiler.assume_constant_result does, but
# that imports Dynamo, which takes longer than the rest of torch, in every process that only knows a mixer's name.
interpreted._dynamo_marked_constant = True


def needs_gpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why no Triton kernel can run on this device with this dtype, or None if it can."""
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"its kernels need a CUDA device, not {device.type}; use torch"
    if dtype not in KERNEL_DTYPES:
        return f"its kernels take bfloat16, float16 and float32, not {str(dtype).removeprefix('torch.')}; use torch"
    return None


def fla_absent(device: torch.device, dtype: torch.dtype, config: Any) -> str | None:
    """Return why flash-linear-attention's operators cannot run, or None if they can. They need 0.6.0 or newer."""
    if (reason := needs_gpu(device, dtype)) is not None:
        return reason
    if _parts("flash-linear-attention") < (0, 6):
        return "flash-linear-attention 0.6.0 or newer is missing; pip install -U flash-linear-attention"
    return None


def fla_scalar_decay_gradient_absent(device: torch.device, dtype: torch.dtype, config: Any) -> str | None:
    """Return why fla cannot compute gradients where the decay is a scalar per head, or None if it can.

    On Hopper, Triton from 3.4 to before 3.7.1 compiles the kernel wrongly that these gradients share, and fla raises
    there. A decay per channel, as in KDA, has kernels of its own, and so does the forward pass.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9 and not _installed("tilelang"):
        triton = _parts("triton")
        if (3, 4) <= triton < (3, 7, 1):
            return (
                f"fla refuses this gradient on Hopper with Triton {version('triton')}, which compiles it wrongly; "
                "pip install 'triton>=3.7.1', or pip install tilelang"
            )
    return None


def mamba_ssm_absent(device: torch.device, dtype: torch.dtype, config: Any) -> str | None:
    """Return why mamba-ssm's Triton kernels cannot run, or None if they can. They need no CUDA build of it."""
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


FLA_DISPATCH = "FLA_DISABLE_BACKEND_DISPATCH"


def fla_kernels() -> str | None:
    """Return whose kernels fla's operators run: `fla`, or `fla, may dispatch` where it may hand them to other packages.

    fla gives an operator to flash_qla, flash_kda, TileLang and others that are installed and accept the arguments,
    unless FLA_DISABLE_BACKEND_DISPATCH was 1 when it was imported. None without fla.
    """
    if not _installed("fla"):
        return None
    from fla import backends

    return "fla" if backends._DISPATCH_DISABLED else "fla, may dispatch"


def disable_fla_dispatch() -> None:
    """Keep fla from running other packages' kernels under its name. Raises RuntimeError if it is imported too late."""
    os.environ[FLA_DISPATCH] = "1"
    if fla_kernels() not in ("fla", None):
        raise RuntimeError(f"fla was imported with its dispatch on; set {FLA_DISPATCH}=1 before Python starts")


def mamba_ssm(module: str) -> Any:
    """Import and return a module of mamba-ssm, by its name below the package.

    mamba-ssm 2.3.2 imports the CUDA extension of Mamba-1 at once, although Mamba-2 and Mamba-3 are written in Triton.
    If that extension was not built, a stub takes its place and raises ImportError when it is used.
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
    """Return the package that computes short causal convolutions for kernel backends: causal-conv1d if installed."""
    return "causal-conv1d" if _installed("causal_conv1d") else "fla"


def activation_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of a linear layer's output on x: autocast's dtype where autocast is on, else that of x."""
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _parts(distribution: str) -> tuple[int, ...]:
    """Return the first three numbers of an installed version, or an empty tuple if it is not installed."""
    try:
        return tuple(map(int, re.findall(r"\d+", version(distribution).split("+")[0])))[:3]
    except PackageNotFoundError:
        return ()
