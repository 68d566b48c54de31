"""Gated Delta Rule-2 in plain torch: the recurrence line by line, and its chunked form for training on a CPU.

Per head, with e = b ⊙ k, z = w ⊙ v, α = exp(g) (arXiv 2605.22791, section 3):

    S̄_t = diag(α_t) S_{t-1},    S_t = S̄_t + k_t (z_t - S̄_tᵀ e_t)ᵀ,    o_t = scale · S_tᵀ q_t

Shapes: q, k [B, T, H, K]; g, b [B, T, H, K or 1]; v, o [B, T, HV, V]; w [B, T, HV, V or 1]; state [B, HV, K, V]. Value
head j uses key head j // (HV / H).
Both forms return (o, final state), with o in v's dtype and the state in at least fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixers.parts.common import accumulator_dtype
from mixers.parts.delta_rule import delta_rule_chunked


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Follow the equations as written, one token at a time. Arguments and results are as in the module's docstring."""
    dtype, groups = accumulator_dtype(q, k, v, g, b, w), v.shape[2] // k.shape[2]
    q, k, g, b = (x.to(dtype).repeat_interleave(groups, 2) for x in (q, k, g, b))
    v_in, w = v.to(dtype), w.to(dtype)
    outputs = []
    for t in range(q.shape[1]):
        decayed = g[:, t].exp()[..., None] * state
        erased = torch.einsum("bhkv,bhk->bhv", decayed, b[:, t] * k[:, t])
        state = decayed + torch.einsum("bhk,bhv->bhkv", k[:, t], w[:, t] * v_in[:, t] - erased)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1).to(v.dtype), state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Compute the same function with a few matrix products per chunk, through `mixers.parts.delta_rule`.

    Value heads that share a key head also share T and Aqk, so they run as one head of wider values.
    """
    dtype, heads, groups = accumulator_dtype(q, k, v, g, b, w), k.shape[2], v.shape[2] // k.shape[2]
    q, k, g, b = (x.to(dtype) for x in (q, k, g, b))
    w = w if groups == 1 else w.expand_as(v)
    v_in, w = (x.to(dtype).unflatten(2, (heads, groups)).flatten(-2) for x in (v, w))  # [B, T, H, G·V]
    wide = state.unflatten(1, (heads, groups)).transpose(2, 3).flatten(-2)  # [B, H, K, G·V]
    o, wide = delta_rule_chunked(scale * q, k, v_in, g, b, w, wide, chunk_size)
    o = o.unflatten(-1, (groups, -1)).flatten(2, 3)
    return o.to(v.dtype), wide.unflatten(-1, (groups, -1)).transpose(2, 3).flatten(1, 2)
