"""What the chunks are to the scan, all chunks at once: Aqk, A = (I + T)^-1, and the decayed queries, erasers and keys."""

from typing import Any

import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import (
    dot,
    level_mask,
    products_of_8,
    reciprocal_norms,
    rows_of_8,
    sibling_product,
    softplus,
)


@triton.jit
def _pairs_of_8(t, a, q, e, k, alpha, column):
    """Add the pairs inside blocks of 8 to T and Aqk, [C/8, 64]: entry (i, j) of a block is column 8 i + j."""
    for i in tl.static_range(8):
        a += tl.where(column == 9 * i, tl.sum(q[i] * k[i], 1)[:, None], 0.0)
        if i > 0:
            decayed_e, decayed_q = e[i] * alpha[i], q[i] * alpha[i]
            for back in tl.static_range(1, i + 1):
                at = column == 9 * i - back
                t += tl.where(at, tl.sum(decayed_e * k[i - back], 1)[:, None], 0.0)
                a += tl.where(at, tl.sum(decayed_q * k[i - back], 1)[:, None], 0.0)
                decayed_e, decayed_q = decayed_e * alpha[i - back], decayed_q * alpha[i - back]
    return t, a


@triton.jit
def _inverses_of_8(t, column):
    """(I + T)^-1 of every block of 8 by forward substitution in fp32, [C/8, 64] → [C/8, 64]."""
    found = ()  # rows of the inverses' strictly lower parts, one after the other
    inverse = tl.where(column % 9 == 0, 1.0, 0.0) + tl.zeros_like(t)
    for i in tl.static_range(1, 8):
        row = ()
        for j in tl.static_range(i):
            row = row + (tl.sum(tl.where(column == 8 * i + j, t, 0.0), 1),)
        for j in tl.static_range(i):
            x = row[j]
            for between in tl.static_range(j + 1, i):
                x += row[between] * found[between * (between - 1) // 2 + j]
            found = found + (-x,)
            inverse += tl.where(column == 8 * i + j, -x[:, None], 0.0)
    return inverse


@triton.jit
def _level(t, a, q, e, k, whole, r, c, m: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """Add the pairs of level m to T and Aqk [C, C]; decay q, e and k to the borders of blocks of 2m."""
    keys, mask = tl.trans(k), level_mask(r, m)
    t += tl.where(mask, dot(e, keys, None, PRECISION), 0.0)
    a += tl.where(mask, dot(q, keys, None, PRECISION), 0.0)
    sibling = sibling_product(whole, r, c, m, K)
    right = ((r & m) != 0)[:, None]
    q = tl.where(right, q * sibling, q).to(q.dtype)
    e = tl.where(right, e * sibling, e).to(q.dtype)
    k = tl.where(right, k, k * sibling).to(q.dtype)
    return t, a, q, e, k


@triton.jit
def _solve(inverse, t, r, m: tl.constexpr):
    """The inverses of blocks of m rows → of 2m: that of [[L, 0], [X, R]] has -R^-1 X L^-1 in its corner. fp32."""
    x = tl.where(level_mask(r, m), t, 0.0)
    return inverse - dot(dot(inverse, x, None, "tf32x3"), inverse, None, "tf32x3")


@triton.jit
def intra_chunk(
    q, k, g, b, A_log, dt_bias, chunk_start, chunk_rows,
    q_decayed, e_decayed, k_decayed, whole, total, inverse, aqk, q_rstd, k_rstd, near,
    scale, erase_range,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    NORM: tl.constexpr, ACTIVATE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program a chunk and key head. whole: Π α over the chunk's blocks of 8; near: room for their [8, 8] matrices."""
    IO: tl.constexpr = q_decayed.dtype.element_ty
    STRIDE: tl.constexpr = H * K
    pid = tl.program_id(0).to(tl.int64)
    chunk, head = pid // H, pid % H
    first = (tl.load(chunk_start + chunk) * H + head) * K
    q, k, g, b = q + first, k + first, g + first, b + first
    q_decayed, e_decayed, k_decayed = q_decayed + pid * (C * K), e_decayed + pid * (C * K), k_decayed + pid * (C * K)
    whole, near = whole + pid * (C // 8 * K), near + pid * (2 * C * 8)
    count = tl.load(chunk_rows + chunk)
    r, block = tl.arange(0, C), tl.arange(0, C // 8)

    if NORM:
        tl.store(q_rstd + pid * C + r, reciprocal_norms(q, r, count, STRIDE, K, BK))
        tl.store(k_rstd + pid * C + r, reciprocal_norms(k, r, count, STRIDE, K, BK))
        tl.debug_barrier()

    # Inside blocks of 8.
    column = tl.arange(0, 64)[None, :]
    t = tl.zeros((C // 8, 64), tl.float32)
    a = tl.zeros((C // 8, 64), tl.float32)
    for start in range(0, K, BK):

        c = start + tl.arange(0, BK)
        in_k = (c < K)[None, :]
        q_i = rows_of_8(q, block, c, count, STRIDE, K)
        k_i = rows_of_8(k, block, c, count, STRIDE, K)
        b_i = rows_of_8(b, block, c, count, STRIDE, K)
        g_i = rows_of_8(g, block, c, count, STRIDE, K)
        scaled_q, scaled_k, e_i, alpha = (), (), (), ()
        for i in tl.static_range(8):
            q_row, k_row, b_row, g_row = q_i[i] * scale, k_i[i], b_i[i], g_i[i]
            if NORM:
                q_row *= tl.load(q_rstd + pid * C + block * 8 + i)[:, None]
                k_row *= tl.load(k_rstd + pid * C + block * 8 + i)[:, None]
            if ACTIVATE:
                b_row = erase_range * tl.sigmoid(b_row)
                bias = tl.load(dt_bias + head * K + c, c < K, 0.0).to(tl.float32)
                g_row = -tl.exp(tl.load(A_log + head).to(tl.float32)) * softplus(g_row + bias[None, :])
                g_row = tl.where((block * 8 + i < count)[:, None] & in_k, g_row, 0.0)
            scaled_q, scaled_k = scaled_q + (q_row,), scaled_k + (k_row,)
            e_i, alpha = e_i + (b_row * k_row,), alpha + (tl.exp(g_row),)
        t, a = _pairs_of_8(t, a, scaled_q, e_i, scaled_k, alpha, column)
        within, behind = products_of_8(alpha)
        for i in tl.static_range(8):
            out = (block * 8 + i)[:, None] * K + c[None, :]
            tl.store(q_decayed + out, (scaled_q[i] * within[i]).to(IO), in_k)
            tl.store(e_decayed + out, (e_i[i] * within[i]).to(IO), in_k)
            tl.store(k_decayed + out, (scaled_k[i] * behind[i]).to(IO), in_k)
        tl.store(whole + block[:, None] * K + c[None, :], within[7], in_k)
    of_block = near + block[:, None] * 64 + column
    tl.store(of_block, _inverses_of_8(t, column))
    tl.store(of_block + C * 8, a)
    tl.debug_barrier()

    # Between blocks of 8, 16 and 32.
    t = tl.zeros((C, C), tl.float32)
    a = tl.zeros((C, C), tl.float32)
    for start in range(0, K, BK):

        c = start + tl.arange(0, BK)
        in_k = (c < K)[None, :]
        at = r[:, None] * K + c[None, :]
        q_i = tl.load(q_decayed + at, in_k, 0.0)
        e_i = tl.load(e_decayed + at, in_k, 0.0)
        k_i = tl.load(k_decayed + at, in_k, 0.0)
        for level in tl.static_range(3):
            if (8 << level) < C:
                t, a, q_i, e_i, k_i = _level(t, a, q_i, e_i, k_i, whole, r, c, 8 << level, K, PRECISION)
        tl.store(q_decayed + at, q_i, in_k)
        tl.store(e_decayed + at, e_i, in_k)
        tl.store(k_decayed + at, k_i, in_k)
        keep = tl.full((BK,), 1.0, tl.float32)
        for i in tl.static_range(C // 8):
            keep *= tl.load(whole + i * K + c, c < K, 1.0)
        tl.store(total + pid * K + c, keep, c < K)

    row, key = r[:, None], r[None, :]
    same, in_near = row // 8 == key // 8, near + row * 8 + key % 8
    square = pid * (C * C) + row * C + key
    tl.store(aqk + square, (a + tl.load(in_near + C * 8, same, 0.0)).to(IO))
    x = tl.load(in_near, same, 0.0)
    x = _solve(x, t, r, 8)
    if C >= 32:
        x = _solve(x, t, r, 16)
    if C >= 64:
        x = _solve(x, t, r, 32)
    tl.store(inverse + square, x.to(IO))


def _candidates(arguments: dict[str, Any]) -> list[triton.Config]:
    return [triton.Config({"BK": min(32, padded(arguments["K"]))}, num_warps=4, num_stages=1)]


INTRA_CHUNK = Kernel(intra_chunk, _candidates)
