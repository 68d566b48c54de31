"""Sums of log-decays between tokens, computed without ever subtracting two cumulative sums.

A difference of cumulative sums loses all digits after one step that forgets everything, and the factored form
exp(G_r) · exp(-G_s) overflows. Here blocks are doubled instead. Within a pair of neighbouring blocks, the log-decay
from a token s on the left to a token r on the right is the sum over the left block after s plus the sum over the right
block up to r. Both are sums of numbers of one sign, so both exponentials lie in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def double_sums(prefix: Tensor, suffix: Tensor) -> tuple[Tensor, Tensor]:
    """Turn prefix and suffix sums of blocks of m tokens into those of blocks of 2m tokens.

    prefix, suffix: [..., n, m, K] with an even n. A prefix includes its own token; a suffix starts at the next one.
    Returns both as [..., n/2, 2m, K].
    """
    left_p, right_p = prefix.unflatten(-3, (-1, 2)).unbind(-3)
    left_s, right_s = suffix.unflatten(-3, (-1, 2)).unbind(-3)
    return (
        torch.cat([left_p, right_p + left_p[..., -1:, :]], -2),
        torch.cat([left_s + right_p[..., -1:, :], right_s], -2),
    )


def segment_sums(g: Tensor) -> Tensor:
    """Return the log-decay between every two tokens of a chunk, each summed separately.

    g: [..., C], g ≤ 0. Returns D [..., C, C] with D[r, s] = Σ_{s<i≤r} g_i for s ≤ r and -inf above the diagonal, so
    that exp(D) is the causal decay matrix.
    """
    size = g.shape[-1]
    causal = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    terms = g.unsqueeze(-1).expand(*g.shape, size).masked_fill(~causal.tril(-1), 0)
    return terms.cumsum(-2).masked_fill(~causal, -torch.inf)


def prefix_suffix(g: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the inclusive prefix sums of g along `dim`, and the sums of all entries after each one."""
    following = torch.cat([g.narrow(dim, 1, g.shape[dim] - 1), torch.zeros_like(g.narrow(dim, 0, 1))], dim)
    return g.cumsum(dim), following.flip(dim).cumsum(dim).flip(dim)
