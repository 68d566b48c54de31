"""Inputs of the delta-rule operators in torch, and the error between two tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F

F64, F32 = torch.float64, torch.float32


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return ‖a - b‖ / ‖b‖ in float64."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def inputs(
    steps: int, batch: int = 2, heads: int = 2, value_heads: int = 2, k: int = 16, v: int = 24, dtype: torch.dtype = F64
) -> dict[str, torch.Tensor]:
    """Return q, k, v, g, b, w of GDN-2, drawn in float64 so that every dtype gets the same numbers."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=F64)

    key, value = (batch, steps, heads, k), (batch, steps, value_heads, v)
    out = {
        "q": F.normalize(draw(*key), dim=-1),
        "k": F.normalize(draw(*key), dim=-1),
        "v": draw(*value),
        "g": -draw(*key).abs(),
        "b": draw(*key).sigmoid(),
        "w": draw(*value).sigmoid(),
    }
    return {name: x.to(dtype) for name, x in out.items()}


def brutal_decay(shape: tuple[int, ...]) -> torch.Tensor:
    """Return log-decays U(-0.5, 0), with -50 at every 7th step, and -1e4 at every 11th on a third of the channels."""
    g = -0.5 * torch.rand(shape, dtype=F64)
    g[:, ::7] = -50
    g[:, ::11, :, ::3] = -1e4
    return g
