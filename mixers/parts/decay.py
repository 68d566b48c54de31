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


def segments(size: int, like: Tensor) -> Tensor:
    """Return the matrix [C, C·C] that maps log-decays to their sums D[r, s] = Σ_{s<i≤r} g_i, as zeros and ones."""
    token = torch.arange(size, device=like.device)
    middle = token[:, None, None]
    between = (middle > token) & (middle <= token[:, None])  # [C, C, C]: i, r, s
    return between.flatten(1).to(like.dtype)


def segment_decays(g: Tensor) -> Tensor:
    """Return the decay between every two tokens of a chunk, each summed separately.

    g: [..., C], g ≤ 0. Returns exp(Σ_{s<i≤r} g_i) [..., C, C] for s ≤ r, zero above the diagonal. On a CPU, one matrix
    product takes a fifth of the time of cumulative sums.
    """
    size = g.shape[-1]
    # Minus infinity times the zeros of the matrix would not be a number.
    finite = g.clamp(min=torch.finfo(g.dtype).min / size)
    return (finite @ segments(size, g)).unflatten(-1, (size, size)).exp().tril()


def prefix_suffix(g: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the inclusive prefix sums of g along `dim`, and the sums of all entries after each one."""
    following = torch.cat([g.narrow(dim, 1, g.shape[dim] - 1), torch.zeros_like(g.narrow(dim, 0, 1))], dim)
    return g.cumsum(dim), following.flip(dim).cumsum(dim).flip(dim)
