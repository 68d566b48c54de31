"""A check, before training, that kernels compute the right gradients on the device at hand."""

from __future__ import annotations

import copy
import json

import torch
from torch import Tensor

from harness.model.language_model import LanguageModel
from mixers import Mixer
from mixers.backends import TORCH

# As in mixers.conformance: bf16 rounds at 2^-8, and a gradient lies behind some twenty roundings, forwards and
# backwards. fp32 on a GPU may go through TF32, which rounds at 2^-11.
BOUNDS = {torch.bfloat16: 32 * 2**-8, torch.float32: 32 * 2**-11}
CHECK_TOKENS = 75  # more than a chunk, and no multiple of one


class GradientsWrong(RuntimeError):
    """A kernel's gradients are not those of the torch form; the message names mixer, backend, device and tensor."""


def check_gradients(model: LanguageModel, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Compare the gradients of each kind of mixer that a kernel serves with those of its torch form in float64, on this
    device, on a few tokens; a line for each. Those that torch serves are not compared; nor are those that have no
    torch form, and of these the line says so.

    Raises GradientsWrong for an error beyond BOUNDS, and beyond three times that of the torch form in `dtype`.
    """
    lines: dict[str, str] = {}
    for index, block in enumerate(model.blocks):
        kind = json.dumps(model.config.block_mixer(index))
        backend = block.mixer.serving(device, dtype)
        if backend == TORCH.name or kind in lines:
            continue
        name = model.config.block_mixer(index)[0]
        if TORCH in block.mixer.backends:
            lines[kind] = _compared(block.mixer, backend, device, dtype, name)
        else:
            lines[kind] = f"{name}: {backend}, not compared: it has no form in torch"
    return list(lines.values())


def _compared(mixer: Mixer, backend: str, device: torch.device, dtype: torch.dtype, name: str) -> str:
    generator = torch.Generator().manual_seed(0)
    x, towards = torch.randn(2, 2, CHECK_TOKENS, mixer.d_model, generator=generator).bfloat16().to(device)

    def gradients(form: str, precision: torch.dtype) -> dict[str, Tensor]:
        kept = torch.float64 if precision == torch.float64 else torch.float32  # as in training: bf16 by autocast alone
        own = copy.deepcopy(mixer).to(device, kept)
        own.backend = form
        given = x.to(kept).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            y = own(given)[0]
        (y * towards.to(y)).sum().backward()
        named = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
        return {key: gradient.double() for key, gradient in ({"x": given.grad} | named).items()}

    exact = gradients(TORCH.name, torch.float64)
    found, usual = gradients(backend, dtype), gradients(TORCH.name, dtype)
    worst, where = 0.0, "none"
    for key, expected in exact.items():
        scale = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
        error = float((found[key] - expected).norm() / scale) if key in found else float("inf")
        # The gradient of a decay can cancel to nothing; how much of it a dtype leaves, the torch form shows.
        bound = max(BOUNDS[dtype], 3 * float((usual[key] - expected).norm() / scale))
        if not error <= bound:  # nan too
            raise GradientsWrong(
                f"{name}: {backend} on {device} computes a wrong gradient of {key} in {dtype}: relative error "
                f"{error:.3g}, at most {bound:.3g} is rounding; install other versions of its packages, or disable it"
            )
        if error >= worst:
            worst, where = error, key
    return f"{name}: {backend}, largest relative error of a gradient {worst:.2g}, of {where}"
