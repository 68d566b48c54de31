"""The public operator: what may be passed, and which implementation computes it."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mixers.common import accumulator_dtype, l2_normalise, require
from mixers.delta_rule import without_autocast
from mixers.gdn2 import reference
from mixers.interface import check_cu_seqlens

Backend = Literal["auto", "recurrent", "chunked"]


def check(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor) -> tuple[int, int, int, int, int, int]:
    """B, T, H, K, HV, V of inputs within the contract; ValueError naming the argument otherwise."""
    require(q.dim() == 4 and min(q.shape) > 0, f"q: expected a non-empty [B, T, H, K], got {list(q.shape)}")
    batch, steps, heads, key_dim = q.shape
    for name, tensor in (("k", k), ("g", g), ("b", b)):
        require(tensor.shape == q.shape, f"{name}: expected {list(q.shape)} like q, got {list(tensor.shape)}")
    require(
        v.dim() == 4 and v.shape[:2] == q.shape[:2] and v.shape[2] > 0 and v.shape[2] % heads == 0 and v.shape[3] > 0,
        f"v: expected [{batch}, {steps}, HV, V] with HV a multiple of {heads}, got {list(v.shape)}",
    )
    require(w.shape == v.shape, f"w: expected {list(v.shape)} like v, got {list(w.shape)}")
    for name, tensor in (("q", q), ("k", k), ("v", v), ("g", g), ("b", b), ("w", w)):
        require(tensor.is_floating_point(), f"{name}: expected a floating dtype, got {tensor.dtype}")
        require(tensor.device == q.device, f"{name}: on {tensor.device}, but q is on {q.device}")
    return batch, steps, heads, key_dim, v.shape[2], v.shape[3]


@without_autocast
def gated_delta_rule_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm: bool = False,
    chunk_size: int = 64,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Gated Delta Rule-2 (arXiv 2605.22791, section 3); the equations are in mixers.gdn2.reference.

    q, k, g, b: [B, T, H, K]; v, w: [B, T, HV, V], HV a multiple of H. g ≤ 0 is the log-decay, b the erase gate on
    the key axis, w the write gate on the value axis. scale defaults to K^-1/2. initial_state: [N, HV, K, V] with
    N = B, or the number of sequences when cu_seqlens ([N + 1] offsets, B = 1) packs several. use_qk_l2norm
    normalises q and k per head first. backend: `recurrent` or `chunked`; `auto` is chunked.

    Returns (o [B, T, HV, V] in v's dtype, final state [N, HV, K, V] or None); the state is fp32, or fp64 for fp64
    inputs. Every tensor input has a gradient. Raises ValueError naming the argument, its value and what was
    expected.
    """
    batch, steps, heads, key_dim, value_heads, value_dim = check(q, k, v, g, b, w)
    require(
        chunk_size > 0 and chunk_size & (chunk_size - 1) == 0, f"chunk_size: expected a power of two, got {chunk_size}"
    )
    require(
        backend in ("auto", "recurrent", "chunked"),
        f"backend: expected auto, recurrent or chunked, got {backend!r}",
    )
    offsets = [0, steps] if cu_seqlens is None else check_cu_seqlens(q, cu_seqlens)
    rows = batch if cu_seqlens is None else len(offsets) - 1
    shape = (rows, value_heads, key_dim, value_dim)
    dtype = accumulator_dtype(q, k, v, g, b, w)
    if initial_state is None:
        initial_state = torch.zeros(shape, dtype=dtype, device=q.device)
    require(initial_state.shape == shape, f"initial_state: expected {list(shape)}, got {list(initial_state.shape)}")
    initial_state = initial_state.to(dtype)
    if use_qk_l2norm:
        q, k = l2_normalise(q), l2_normalise(k)
    run = partial(
        reference.recurrent if backend == "recurrent" else partial(reference.chunked, chunk_size=chunk_size),
        scale=key_dim**-0.5 if scale is None else scale,
    )
    if cu_seqlens is None:
        o, state = run(q, k, v, g, b, w, state=initial_state)
        return o, state if output_final_state else None
    outputs, states = [], []
    for i, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False)):
        piece = (x[:, start:stop] for x in (q, k, v, g, b, w))
        o, state = run(*piece, state=initial_state[i : i + 1])
        outputs.append(o)
        states.append(state)
    return torch.cat(outputs, 1), torch.cat(states) if output_final_state else None
