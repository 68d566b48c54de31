"""Inside the chunks of the gated delta rule: T, Aqk and the decayed operands of its scan, with their gradients.

Notation as in mixers.parts.delta_rule. The rows of a chunk are e and q of each token side by side, [M, C, 2, K], since
both meet the same keys through the same decays; M counts chunks of all sequences and heads. The products [M, C, 2, C]
are T, which holds below the diagonal only, and Aqk, zero above it.

With a decay per head, the decays between all tokens are one matrix per chunk. With a decay per channel, blocks are
doubled: rows of a block are decayed from its start and keys to its end, so the products between the left and the right
block of a pair are one matrix product, and joining the pair scales the right rows and the left keys by the decay of the
other block. Every factor lies in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixers.parts.decay import segment_decays, segments

SMALL = 2
"""Blocks up to this many tokens are multiplied elementwise in the backward pass: calls to BLAS would take longer."""


class Decayed(NamedTuple):
    """The products and decays that a chunk hands to the scan.

    products: [M, C, 2, C]. reads: rows times the decay from the chunk's start, [M, C, 2, K]. tails: keys times the
    decay to its end, [M, C, K]. total: the decay over the chunk, [M, 1, K or 1]. kept: what the backward pass needs
    beside these and the inputs.
    """

    products: Tensor
    reads: Tensor
    tails: Tensor
    total: Tensor
    kept: tuple[Tensor, ...]


def decay_heads(rows: Tensor, keys: Tensor, g: Tensor) -> Decayed:
    """Decay with one log-decay per head. rows: [M, C, 2, K]; keys: [M, C, K]; g: [M, C, 1]."""
    size = keys.shape[1]
    decay = segment_decays(g.squeeze(-1))  # [M, C, C]
    products = (rows.flatten(1, 2) @ keys.mT).unflatten(1, (size, 2)).mul_(decay.unsqueeze(2))
    from_start, to_end = decay[:, :, :1] * g[:, :1].exp(), decay[:, -1].unsqueeze(-1)
    return Decayed(products, rows * from_start.unsqueeze(2), keys * to_end, from_start[:, -1:], (decay,))


def decay_heads_backward(
    rows: Tensor,
    keys: Tensor,
    g: Tensor,
    d: Decayed,
    d_products: Tensor,
    d_reads: Tensor,
    d_tails: Tensor,
    d_log: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows, keys and g from those of the products, reads, tails and the logarithm of total.

    The gradients of the products and reads may be overwritten.
    """
    size, (decay,) = keys.shape[1], d.kept
    d_products[:, :, 0].diagonal(0, -2, -1).zero_()
    logs = (d_products * d.products).sum(2)
    from_start, to_end = decay[:, :, :1] * g[:, :1].exp(), decay[:, -1].unsqueeze(-1)
    log_start = (d_reads * d.reads).sum((2, 3))  # [M, C]
    log_start[:, -1] += d_log.flatten()
    logs[:, :, 0] += log_start
    logs[:, -1] += (d_tails * d.tails).sum(-1)
    d_g = logs.flatten(1) @ segments(size, g).mT
    d_g[:, 0] += log_start.sum(1)
    d_raw = d_products.mul_(decay.unsqueeze(2)).flatten(1, 2)
    d_rows = d_reads.mul_(from_start.unsqueeze(2)).flatten(1, 2).baddbmm_(d_raw, keys)
    d_keys = d_tails.mul_(to_end).baddbmm_(d_raw.mT, rows.flatten(1, 2))
    return d_rows.unflatten(1, (size, 2)), d_keys, d_g.unsqueeze(-1)


def decay_channels(rows: Tensor, keys: Tensor, g: Tensor) -> Decayed:
    """Decay with one log-decay per channel. rows: [M, C, 2, K]; keys, g: [M, C, K]; C a power of two."""
    chunks, size, width = keys.shape
    rows, keys, g = rows.contiguous(), keys.contiguous(), g.contiguous()  # blocks are views, written in place
    alpha = g.exp()
    reads, tails, total = rows * alpha.unsqueeze(2), keys.clone(), alpha.view(-1, 1, width)
    products, kept = rows.new_zeros(chunks, size, 2, size), [alpha]
    products[:, :, 1].diagonal(0, -2, -1).copy_((rows[:, :, 1] * keys).sum(-1))
    m = 1
    while m < size:
        right, left = _pairs(reads, m)[:, 1], _pairs(tails, m)[:, 0]
        x, y = right.clone(), left.clone()
        cross = (x * y).sum(-1, keepdim=True) if m == 1 else x @ y.mT
        quarters = _quarters(products, m)
        quarters.copy_(cross.view(quarters.shape))
        before, after = total.view(-1, 2, 1, width).unbind(1)
        right.mul_(before)
        left.mul_(after)
        kept += x, y, before, after
        total = before * after
        m *= 2
    return Decayed(products, reads, tails, total, tuple(kept))


def decay_channels_backward(
    rows: Tensor,
    keys: Tensor,
    g: Tensor,
    d: Decayed,
    d_products: Tensor,
    d_reads: Tensor,
    d_tails: Tensor,
    d_log: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `decay_heads_backward`, for `decay_channels`."""
    alpha, *levels = d.kept
    m = keys.shape[1] // 2
    while m:
        x, y, before, after = levels[-4:]
        del levels[-4:]
        right, left = _pairs(d_reads, m)[:, 1], _pairs(d_tails, m)[:, 0]
        d_before = (right * x).sum(1, keepdim=True).mul_(before).add_(d_log)
        d_after = (left * y).sum(1, keepdim=True).mul_(after).add_(d_log)
        d_log = torch.stack([d_before, d_after], 1).flatten(0, 1)
        right.mul_(before)
        left.mul_(after)
        cross = _quarters(d_products, m).reshape(len(x), 2 * m, m)
        if m > SMALL:
            right.add_(cross @ y)  # baddbmm_ would loop over the matrices of a tensor with gaps
            left.add_(cross.mT @ x)
        else:
            for s in range(m):
                right.addcmul_(cross[:, :, s : s + 1], y[:, s : s + 1])
                left[:, s].add_((cross[:, :, s : s + 1] * x).sum(1))
        m //= 2
    d_g = (d_reads * rows).sum(2).mul_(alpha).add_(d_log.view_as(g))
    d_rows = d_reads.mul_(alpha.unsqueeze(2))
    diagonal = d_products[:, :, 1].diagonal(0, -2, -1).unsqueeze(-1)
    d_rows[:, :, 1].addcmul_(diagonal, keys)
    return d_rows, d_tails.addcmul_(diagonal, rows[:, :, 1]), d_g


def _pairs(x: Tensor, m: int) -> Tensor:
    """View rows [M, C, 2, K] or keys [M, C, K] as pairs of blocks of m tokens, [M·C/2m, 2, m·2 or m, K]."""
    return x.view(x.shape[0] * x.shape[1] // (2 * m), 2, -1, x.shape[-1])


def _quarters(products: Tensor, m: int) -> Tensor:
    """View the products of right with left blocks, [M, C/2m, m, 2, m], in products [M, C, 2, C]."""
    pairs = products.unflatten(-1, (-1, 2, m)).unflatten(1, (-1, 2, m))  # [M, n, 2, m, 2, n, 2, m]
    return pairs.diagonal(0, 1, 5)[:, 1, :, :, 0].movedim(-1, 1)
