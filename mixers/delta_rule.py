"""The gated delta rule over chunks, in torch: one core for Gated DeltaNet, KDA and Gated DeltaNet-2.

With S̄ = diag(exp g_t) S_{t-1}, the core computes S_t = S̄ + k_t (z_t - S̄ᵀ e_t)ᵀ and o_t = S_tᵀ q_t. What
distinguishes the operators is only what they pass as e (erase side), z (write side) and g (log-decay, per channel
or per head). Within a chunk of C tokens with decays D_rs = Σ_{s<i≤r} g_i

    T_rs = Σ_c e_rc k_sc exp(D_rs,c) for s < r,     Aqk_rs = Σ_c q_rc k_sc exp(D_rs,c) for s ≤ r
    A = (I + T)^-1,                                 R = A (z - (exp(G) ⊙ e) S_0)
    O = (exp(G) ⊙ q) S_0 + Aqk R,                   S_C = diag(exp G_C) S_0 + (exp(G_C - G) ⊙ k)ᵀ R

with every exponent a sum of g over the tokens between (see mixers.decay), never a difference of sums. T and Aqk
are filled by doubling blocks: the quarter that couples a left block with the right one beside it is one matrix
product of decayed keys and decayed rows, so a channel is exponentiated log2(C) + 1 times and not C times.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.decay import double_sums, prefix_suffix, segment_sums


def intra_chunk(rows: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T and Aqk of every chunk, with the sums of g from the chunk's start and towards its end.

    rows: e and q stacked, [..., 2, C, K], since both meet the same keys through the same decays; k: [..., C, K];
    g: [..., C, K], or [..., C, 1] for one decay per head; C a power of two.
    Returns T [..., C, C] (strictly lower), Aqk [..., C, C] (lower), prefix and suffix sums shaped like g.
    """
    if g.shape[-1] == 1:
        scores = (rows.flatten(-3, -2) @ k.mT).unflatten(-2, (2, -1))
        t, aqk = (scores * segment_sums(g.squeeze(-1)).exp().unsqueeze(-3)).unbind(-3)
        return t.tril(-1), aqk, *prefix_suffix(g, -2)

    size = k.shape[-2]
    aqk = (rows.select(-3, 1) * k).sum(-1)[..., None, None]  # [..., C, 1, 1]
    products = torch.stack([torch.zeros_like(aqk), aqk], -4)  # [..., 2, n, m, m]
    prefix, suffix = g.unsqueeze(-2), torch.zeros_like(g).unsqueeze(-2)  # [..., n, m, K]
    m = 1
    while m < size:
        right = rows.unflatten(-2, (-1, 2, m)).select(-3, 1)  # [..., 2, n/2, m, K]
        left = k.unflatten(-2, (-1, 2, m)).select(-3, 0)  # [..., n/2, m, K]
        to_right = prefix.unflatten(-3, (-1, 2)).select(-3, 1).exp()
        from_left = suffix.unflatten(-3, (-1, 2)).select(-3, 0).exp()
        keys = (left * from_left).mT.unsqueeze(-4)
        cross = (right * to_right.unsqueeze(-4)) @ keys  # [..., 2, n/2, m, m]
        upper, lower = products.unflatten(-3, (-1, 2)).unbind(-3)
        products = torch.cat([F.pad(upper, (0, m)), torch.cat([cross, lower], -1)], -2)
        prefix, suffix = double_sums(prefix, suffix)
        m *= 2
    t, aqk = products.squeeze(-3).unbind(-3)
    return t, aqk, prefix.squeeze(-3), suffix.squeeze(-3)


class UnitLowerInverse(torch.autograd.Function):
    """(I + T)^-1 of strictly lower triangular T [..., C, C], C a power of two.

    By doubling: the inverse of [[L, 0], [X, R]] is [[L^-1, 0], [-R^-1 X L^-1, R^-1]], which is forward substitution
    on blocks. On a CPU it takes a quarter of the time of torch.linalg.solve_triangular and its backward.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        size = t.shape[-1]
        inverse = torch.ones_like(t[..., :1]).unsqueeze(-1)  # [..., n, m, m]
        m = 1
        while m < size:
            x = torch.stack([t[..., i + m : i + 2 * m, i : i + m] for i in range(0, size, 2 * m)], -3)
            left, right = inverse.unflatten(-3, (-1, 2)).unbind(-3)
            cross = -(right @ x @ left)
            inverse = torch.cat([F.pad(left, (0, m)), torch.cat([cross, right], -1)], -2)
            m *= 2
        inverse = inverse.squeeze(-3)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.mT
        return -(transposed @ grad @ transposed).tril(-1)


def delta_rule_chunked(
    q: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The recurrence of the module's docstring for any number of tokens.

    q (scaled), k, e: [B, H, T, K]; z: [B, H, T, V]; g ≤ 0: [B, H, T, K] or [B, H, T, 1]; state: [B, H, K, V];
    all of one floating dtype. chunk_size: a power of two. Returns o [B, H, T, V] and the state after token T.
    """
    batch, heads, steps, _ = q.shape
    size = min(chunk_size, 1 << (steps - 1).bit_length())
    # A padded token has no key, no erase, no write and no decay: it changes neither state nor outputs. Batch and heads
    # become one axis, so that every product is a plain batched one.
    padding = (0, 0, 0, -steps % size)
    q, k, e, z, g = (F.pad(t, padding).flatten(0, 1).unflatten(1, (-1, size)) for t in (q, k, e, z, g))  # [BH, N, C, ·]
    rows = torch.stack([e, q], -3)  # [BH, N, 2, C, K]
    t, aqk, prefix, suffix = intra_chunk(rows, k, g)
    from_start = prefix.exp()
    reads = (rows * from_start.unsqueeze(-3)).flatten(-3, -2)  # what meets the state that enters the chunk
    tails = (suffix.exp() * k).mT
    total = from_start[..., -1, :].unsqueeze(-1)  # [BH, N, K or 1, 1]
    inverse = UnitLowerInverse.apply(t)
    state = state.flatten(0, 1)
    outputs = []
    # unbind, not indexing: the gradient of an index is a zero tensor of the full size, one for every chunk.
    chunks = zip(*(x.unbind(1) for x in (z, reads, inverse, aqk, tails, total)), strict=True)
    for z_i, reads_i, inverse_i, aqk_i, tails_i, total_i in chunks:
        e_s, q_s = torch.bmm(reads_i, state).split(size, 1)
        r = torch.bmm(inverse_i, z_i - e_s)
        outputs.append(torch.baddbmm(q_s, aqk_i, r))
        state = torch.baddbmm(total_i * state, tails_i, r)
    o = torch.cat(outputs, 1)[:, :steps]
    return o.unflatten(0, (batch, heads)), state.unflatten(0, (batch, heads))
