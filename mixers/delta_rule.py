"""The gated delta rule over chunks, in torch: one core for Gated DeltaNet, KDA and Gated DeltaNet-2.

With S̄ = diag(exp g_t) S_{t-1}, the core computes S_t = S̄ + k_t (z_t - S̄ᵀ e_t)ᵀ and o_t = S_tᵀ q_t. What
distinguishes the operators is only what they pass as e (erase side), z (write side) and g (log-decay, per channel
or per head). Within a chunk of C tokens with decays D_rs = Σ_{s<i≤r} g_i

    T_rs = Σ_c e_rc k_sc exp(D_rs,c) for s < r,     Aqk_rs = Σ_c q_rc k_sc exp(D_rs,c) for s ≤ r
    A = (I + T)^-1,   [Y | U] = A [exp(G) ⊙ e | z],     R = U - Y S_0
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


def intra_chunk(q: Tensor, k: Tensor, e: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T and Aqk of every chunk, with the sums of g from the chunk's start and towards its end.

    q, k, e: [..., C, K]; g: [..., C, K], or [..., C, 1] for one decay per head; C a power of two.
    Returns T [..., C, C] (strictly lower), Aqk [..., C, C] (lower), prefix and suffix sums shaped like g.
    """
    if g.shape[-1] == 1:
        decay = segment_sums(g.squeeze(-1)).exp()
        prefix, suffix = prefix_suffix(g, -2)
        return (e @ k.mT * decay).tril(-1), q @ k.mT * decay, prefix, suffix

    blocks = q.shape[-2]
    rows = torch.stack([e, q], -3)  # [..., 2, C, K]: both products share their decays and their keys
    aqk = (q * k).sum(-1)[..., None, None]  # [..., C, 1, 1]
    products = torch.stack([torch.zeros_like(aqk), aqk], -4)  # [..., 2, n, m, m]
    prefix, suffix = g.unsqueeze(-2), torch.zeros_like(g).unsqueeze(-2)  # [..., n, m, K]
    m = 1
    while m < blocks:
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
    steps = q.shape[2]
    size = min(chunk_size, 1 << (steps - 1).bit_length())
    # A padded token has no key, no erase, no write and no decay: it changes neither state nor outputs.
    padding = (0, 0, 0, -steps % size)
    q, k, e, z, g = (
        F.pad(t, padding).contiguous().unflatten(2, (-1, size)) for t in (q, k, e, z, g)
    )  # [B, H, N, C, ·]
    t, aqk, prefix, suffix = intra_chunk(q, k, e, g)
    from_start = prefix.exp()
    inverse = UnitLowerInverse.apply(t)
    y, u = inverse @ (from_start * e), inverse @ z
    reads = torch.cat([y, from_start * q], -2)  # both are products with the state that enters the chunk
    tails = (suffix.exp() * k).mT
    total = from_start[..., -1, :].unsqueeze(-1)  # [B, H, N, K or 1, 1]
    outputs = []
    # unbind, not indexing: the gradient of an index is a zero tensor of the full size, one for every chunk.
    for u_i, reads_i, aqk_i, tails_i, total_i in zip(
        *(x.unbind(2) for x in (u, reads, aqk, tails, total)), strict=True
    ):
        y_s, q_s = (reads_i @ state).split(size, -2)
        r = u_i - y_s
        outputs.append(q_s + aqk_i @ r)
        state = total_i * state + tails_i @ r
    return torch.cat(outputs, 2)[:, :, :steps], state
