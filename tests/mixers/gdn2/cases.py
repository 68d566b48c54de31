"""Inputs of Gated Delta Rule-2 and errors against its float64 recurrence, for the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.gdn2 import gated_delta_rule_2

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DECAYS = ("normal", "uniform", "brutal", "none")
# fp32 rounds at 6e-8, and a chunk adds and multiplies a few hundred times, in trees rather than in a row: 2e-7 was
# measured for outputs and 4e-7 for gradients. The bounds are ten times that, far below the cost of a clamp or of a
# difference of sums.
OUTPUT, GRADIENT = 2e-6, 1e-5
NAMES = ("q", "k", "v", "g", "b", "w", "initial_state")


def log_decay(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Return log-decays of a kind, in float64.

    normal: -|N(0, 1)|. uniform: U(-5, -0.1). brutal: U(-0.5, 0) with single steps of -50 and, on a third of the
    channels, of -1e4. none: 0.
    """
    if kind == "normal":
        return -torch.randn(shape, dtype=torch.float64).abs()
    if kind == "uniform":
        return -0.1 - 4.9 * torch.rand(shape, dtype=torch.float64)
    g = -0.5 * torch.rand(shape, dtype=torch.float64)
    if kind == "none":
        return 0 * g
    g[:, ::7] = -50
    g[:, ::11, :, ::3] = -1e4
    return g


def inputs(
    steps: int,
    *,
    batch: int = 1,
    heads: int = 1,
    value_heads: int = 2,
    K: int = 32,
    V: int = 48,
    decay: str = "normal",
    sequences: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    unit: bool = True,
) -> dict[str, Tensor]:
    """Return q, k, v, g, b, w and initial_state, rounded to `dtype`; g and the state to at least fp32."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    key, value = (batch, steps, heads, K), (batch, steps, value_heads, V)
    x = {
        "q": draw(*key),
        "k": draw(*key),
        "v": draw(*value),
        "g": log_decay(decay, key),
        "b": draw(*key).sigmoid(),
        "w": draw(*value).sigmoid(),
        "initial_state": draw(sequences or batch, value_heads, K, V),
    }
    if unit:
        x["q"], x["k"] = F.normalize(x["q"], dim=-1), F.normalize(x["k"], dim=-1)
    wide = torch.promote_types(dtype, torch.float32)
    return {name: t.to(device, wide if name in ("g", "initial_state") else dtype) for name, t in x.items()}


def evaluate(x: dict[str, Tensor], seed: int = 1, **options: object) -> dict[str, Tensor]:
    """Return output, final state and the gradient of every input, for random gradients of the first two."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
    o, state = gated_delta_rule_2(**leaves, output_final_state=True, **options)
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (t.double() * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)).sum()
        for t in (o, state)
    )
    loss.backward()
    gradients = {f"d_{name}": leaf.grad for name, leaf in leaves.items()}
    return {"o": o.detach(), "state": state.detach(), **gradients}


def errors(x: dict[str, Tensor], smallest: float = 0.0, **options: object) -> dict[str, float]:
    """Return the relative errors, in norm, of the kernels against the float64 recurrence, for all of `evaluate`.

    smallest: the smallest number of the dtype. Errors of tensors that are smaller throughout are relative to it.
    """
    actual = evaluate(x, backend="triton", **options)
    options.pop("chunk_size", None)
    exact = evaluate({name: t.double() for name, t in x.items()}, backend="recurrent", **options)
    for name, t in actual.items():
        assert torch.isfinite(t).all(), name
    return {
        name: ((actual[name].double() - t).norm() / t.norm().clamp_min(smallest * t.numel() ** 0.5 + 1e-300)).item()
        for name, t in exact.items()
    }


def worst(measured: dict[str, float]) -> tuple[float, float]:
    """Return the largest error of output and state, and the largest error of the gradients."""
    return (
        max(measured["o"], measured["state"]),
        max(error for name, error in measured.items() if name.startswith("d_")),
    )


def _tf32(x: np.ndarray) -> np.ndarray:
    """Round fp32 to the 10 bits of mantissa of TF32, to nearest and away from zero, as hardware converts."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@contextmanager
def products_in_tf32x3() -> Iterator[None]:
    """Multiply under the interpreter as a GPU does with input_precision="tf32x3", if a kernel asks for that.

    Each operand is a high part and the rest, both in TF32. The product of the two rests is left out.
    """
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self, a, b, d, precision, *options):
        if precision != ir.INPUT_PRECISION.TF32x3:
            return exact(self, a, b, d, precision, *options)
        high = [_tf32(np.ascontiguousarray(x.data)) for x in (a, b)]
        rest = [_tf32(x.data - h) for x, h in zip((a, b), high, strict=True)]
        low = np.matmul(rest[0], high[1]) + np.matmul(high[0], rest[1])
        return TensorHandle(low + np.matmul(*high) + d.data, d.dtype.scalar)

    exact = InterpreterBuilder.create_dot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", dot)
        yield
