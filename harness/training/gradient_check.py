"""Check before training that kernels compute the right gradients on this device."""

from __future__ import annotations

import copy
import json

import torch
from torch import Tensor

from harness.model.language_model import LanguageModel
from mixers import Mixer
from mixers.backends import TORCH

# As in mixers.conformance: bf16 rounds at 2^-8, and a gradient passes through some twenty roundings, forwards and
# backwards. fp32 on a GPU may use TF32, which rounds at 2^-11.
BOUNDS = {torch.bfloat16: 32 * 2**-8, torch.float32: 32 * 2**-11}
CHECK_TOKENS = 75  # more than a chunk, and not a multiple of one


class GradientsWrong(RuntimeError):
    """A kernel's gradients differ from those of the torch form. The message names mixer, backend, device and tensor."""


def check_gradients(model: LanguageModel, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Compare gradients of each kind of mixer that runs on a kernel with those of its torch form in float64.

    The convolutions before the mixers are a kind of their own. Runs on `device`, on a few tokens. Returns one line per
    kind. A mixer that runs on torch is skipped; for one without a torch form the line says that nothing was compared.

    Raises GradientsWrong if an error exceeds both BOUNDS and three times the error of the torch form in `dtype`.
    """
    lines: dict[str, str] = {}
    for index, block in enumerate(model.blocks):
        named = {json.dumps(model.config.block_mixer(index)): (model.config.block_mixer(index)[0], block.mixer)}
        if block.conv is not None:
            named["convolution"] = ("convolution", block.conv)
        for kind, (name, mixer) in named.items():
            backend = mixer.serving(device, dtype)
            if backend == TORCH.name or kind in lines:
                continue
            if TORCH in mixer.backends:
                lines[kind] = _compared(mixer, backend, device, dtype, name)
            else:
                lines[kind] = f"{name}: {backend}, not compared: it has no form in torch"
    return list(lines.values())


def _compared(mixer: Mixer, backend: str, device: torch.device, dtype: torch.dtype, name: str) -> str:
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn(2, 2, CHECK_TOKENS, mixer.d_model, generator=generator).bfloat16().to(device)

    def gradients(form: str, precision: torch.dtype) -> dict[str, Tensor]:
        weights = torch.float64 if precision == torch.float64 else torch.float32  # as in training: autocast makes bf16
        layer = copy.deepcopy(mixer).to(device, weights)
        layer.backend = form
        inputs = x.to(weights).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            y = layer(inputs)[0]
        (y * direction.to(y)).sum().backward()
        named = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
        return {key: gradient.double() for key, gradient in ({"x": inputs.grad} | named).items()}

    exact = gradients(TORCH.name, torch.float64)
    kernel, plain = gradients(backend, dtype), gradients(TORCH.name, dtype)
    worst, where = 0.0, "none"
    for key, expected in exact.items():
        scale = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
        error = float((kernel[key] - expected).norm() / scale) if key in kernel else float("inf")
        # The gradient of a decay may cancel almost entirely. The torch form shows how much of it this dtype resolves.
        bound = max(BOUNDS[dtype], 3 * float((plain[key] - expected).norm() / scale))
        if not error <= bound:  # nan too
            raise GradientsWrong(
                f"{name}: {backend} on {device} computes a wrong gradient of {key} in {dtype}: relative error "
                f"{error:.3g}, at most {bound:.3g} is rounding; install other versions of its packages, or disable it"
            )
        if error >= worst:
            worst, where = error, key
    return f"{name}: {backend}, largest relative error of a gradient {worst:.2g}, of {where}"
