"""Inputs of the scan, all chunks in parallel: Aqk, A = (I + T)^-1, and decayed queries, erasers and keys."""

from typing import Any

import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import (
    decays_of_8,
    dot,
    erase_gates_of_8,
    level_mask,
    products_of_8,
    reciprocal_norms,
    sibling_product,
    vectors_of_8,
)


@triton.jit
def _no_pairs_of_8(C: tl.constexpr, BK: tl.constexpr):
    """Return zeros for `_pairs_of_8` to add to: 28 and 36 tiles [C/8, BK]."""
    t, a = (), ()
    for i in tl.static_range(8):
        for _ in tl.static_range(i):
            t = t + (tl.zeros((C // 8, BK), tl.float32),)
        for _ in tl.static_range(i + 1):
            a = a + (tl.zeros((C // 8, BK), tl.float32),)
    return t, a


@triton.jit
def _pairs_of_8(t, a, q, e, k, alpha):
    """Add the pairs inside blocks of 8 to T and Aqk: a tile [C/8, BK] per pair, row after row, which is summed over BK
    at the end."""
    t_next, a_next = (), ()
    for i in tl.static_range(8):
        t_row, a_row = (), (a[i * (i + 1) // 2 + i] + q[i] * k[i],)
        if i > 0:
            decayed_e, decayed_q = e[i] * alpha[i], q[i] * alpha[i]
            for back in tl.static_range(1, i + 1):
                t_row = (t[i * (i + 1) // 2 - back] + decayed_e * k[i - back],) + t_row
                a_row = (a[i * (i + 3) // 2 - back] + decayed_q * k[i - back],) + a_row
                if back < i:
                    decayed_e, decayed_q = decayed_e * alpha[i - back], decayed_q * alpha[i - back]
        t_next, a_next = t_next + t_row, a_next + a_row
    return t_next, a_next


@triton.jit
def _store_inverses_of_8(t, solved, C: tl.constexpr):
    """Store (I + T)^-1 of every block of 8, by forward substitution in fp32.

    t: 28 tiles, see `_pairs_of_8`. solved: the first entry of each block.
    """
    inverse = ()  # the strictly lower parts, row after row
    for i in tl.static_range(8):
        row = ()
        for j in tl.static_range(i):
            row = row + (tl.sum(t[i * (i - 1) // 2 + j], 1),)
        for j in tl.static_range(i):
            x = row[j]
            for between in tl.static_range(j + 1, i):
                x += row[between] * inverse[between * (between - 1) // 2 + j]
            inverse = inverse + (-x,)
            tl.store(solved + (i * C + j), -x)
        tl.store(solved + (i * C + i), tl.full((C // 8,), 1.0, tl.float32))


@triton.jit
def _level(t, a, q, e, k, whole, r, c, m: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """Add the pairs of level m to T and Aqk [C, C]; decay q, e and k to the borders of blocks of 2m."""
    keys, mask = tl.trans(k), level_mask(r, m)
    t = tl.where(mask, dot(e, keys, t, PRECISION), t)
    a = tl.where(mask, dot(q, keys, a, PRECISION), a)
    sibling = sibling_product(whole, r, c, m, K)
    right = ((r & m) != 0)[:, None]
    q = tl.where(right, q * sibling, q).to(q.dtype)
    e = tl.where(right, e * sibling, e).to(q.dtype)
    k = tl.where(right, k, k * sibling).to(q.dtype)
    return t, a, q, e, k


@triton.jit
def _corner(right, x, left):
    """Return -R^-1 X L^-1, the lower left block of the inverse of [[L, 0], [X, R]], in fp32 throughout."""
    return -dot(dot(right, x, None, "tf32x3"), left, None, "tf32x3")


@triton.jit
def _merge_inverses(solved, C: tl.constexpr):
    """Compute (I + T)^-1 in place. solved: [C, C], the inverses of the blocks of 8 on its diagonal and T below them.

    Each level of doubling overwrites the part of T that it solves, so that only the current blocks are in registers.
    """
    i = tl.arange(0, 16)
    row, key = i[None, :, None], i[None, None, :]
    block = tl.arange(0, C // 16)[:, None, None] * (16 * C + 16) + row * C + key
    tile = tl.load(solved + block, (row >= key) & (block >= 0), 0.0)
    x = tl.where(row // 8 == key // 8, tile, 0.0)
    below = (row >= 8) & (key < 8)
    tl.store(solved + block, _corner(x, tl.where(below, tile, 0.0), x), below & (block >= 0))
    tl.debug_barrier()
    if C >= 32:
        block = tl.arange(0, C // 32)[:, None, None] * (32 * C + 32) + row * C + key
        lower = (row >= key) & (block >= 0)
        left = tl.load(solved + block, lower, 0.0)
        right = tl.load(solved + block + (16 * C + 16), lower, 0.0)
        tl.store(solved + block + 16 * C, _corner(right, tl.load(solved + block + 16 * C), left))
        tl.debug_barrier()
    if C >= 64:
        i = tl.arange(0, 32)
        row, key = i[:, None], i[None, :]
        block = row * C + key
        left = tl.load(solved + block, row >= key, 0.0)
        right = tl.load(solved + block + (32 * C + 32), row >= key, 0.0)
        tl.store(solved + block + 32 * C, _corner(right, tl.load(solved + block + 32 * C), left))
        tl.debug_barrier()


@triton.jit
def intra_chunk(
    q, k, g, b, A_log, dt_bias, chunk_start, chunk_rows,
    q_decayed, e_decayed, k_decayed, whole, total, inverse, aqk, q_rstd, k_rstd, near, solved,
    scale, erase_range,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    NORM: tl.constexpr, ACTIVATE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Run one program per chunk and key head. whole: Π α over each of the chunk's blocks of 8.

    near, solved: scratch for Aqk inside blocks of 8, [8, 8] each, and for T until its inverse overwrites it.
    """
    IO: tl.constexpr = q_decayed.dtype.element_ty
    STRIDE: tl.constexpr = H * K
    pid = tl.program_id(0).to(tl.int64)
    chunk, head = pid // H, pid % H
    first = (tl.load(chunk_start + chunk) * H + head) * K
    q, k, g, b = q + first, k + first, g + first, b + first
    q_decayed, e_decayed, k_decayed = q_decayed + pid * (C * K), e_decayed + pid * (C * K), k_decayed + pid * (C * K)
    whole, near = whole + pid * (C // 8 * K), near + pid * (C * 8)
    solved += pid * (C * C)
    count = tl.load(chunk_rows + chunk)
    r, block = tl.arange(0, C), tl.arange(0, C // 8)

    if NORM:
        q_rstd, k_rstd = q_rstd + pid * C, k_rstd + pid * C
        tl.store(q_rstd + r, reciprocal_norms(q, r, count, STRIDE, K, BK))
        tl.store(k_rstd + r, reciprocal_norms(k, r, count, STRIDE, K, BK))
        tl.debug_barrier()

    # Inside blocks of 8.
    rate = 0.0
    if ACTIVATE:
        rate = -tl.exp(tl.load(A_log + head).to(tl.float32))
    t_8, a_8 = _no_pairs_of_8(C, BK)
    for start in range(0, K, BK):
        c = start + tl.arange(0, BK)
        in_k = (c < K)[None, :]
        bias = tl.zeros((BK,), tl.float32)
        if ACTIVATE:
            bias += tl.load(dt_bias + head * K + c, c < K, 0.0).to(tl.float32)
        alpha = decays_of_8(g, rate, bias, block, c, count, H, K, ACTIVATE)
        unit_q = vectors_of_8(q, q_rstd, block, c, count, STRIDE, K, NORM)
        k_i = vectors_of_8(k, k_rstd, block, c, count, STRIDE, K, NORM)
        b_i = erase_gates_of_8(b, block, c, count, erase_range, STRIDE, K, ACTIVATE)
        q_i, e_i = (), ()
        for i in tl.static_range(8):
            q_i, e_i = q_i + (unit_q[i] * scale,), e_i + (b_i[i] * k_i[i],)
        within, after = products_of_8(alpha)
        for i in tl.static_range(8):
            out = block[:, None] * (8 * K) + c[None, :]
            tl.store(q_decayed + out + i * K, (q_i[i] * within[i]).to(IO), in_k)
            tl.store(e_decayed + out + i * K, (e_i[i] * within[i]).to(IO), in_k)
            tl.store(k_decayed + out + i * K, (k_i[i] * after[i]).to(IO), in_k)
        tl.store(whole + block[:, None] * K + c[None, :], within[7], in_k)
        tl.debug_barrier()  # so that what is above frees its registers for the 64 sums of pairs
        t_8, a_8 = _pairs_of_8(t_8, a_8, q_i, e_i, k_i, alpha)
    for i in tl.static_range(8):
        for j in tl.static_range(i + 1):
            tl.store(near + block * 64 + (8 * i + j), tl.sum(a_8[i * (i + 1) // 2 + j], 1))
    _store_inverses_of_8(t_8, solved + block * (8 * C + 8), C)
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
            keep *= tl.load(whole + c + i * K, c < K, 1.0)
        tl.store(total + pid * K + c, keep, c < K)

    row, key = r[:, None], r[None, :]
    same = row // 8 == key // 8
    square = row * C + key
    a += tl.load(near + row * 8 + key % 8, same & (row >= key), 0.0)
    tl.store(aqk + pid * (C * C) + square, a.to(IO))
    tl.store(solved + square, t, (row > key) & (row // 8 != key // 8))
    tl.debug_barrier()
    _merge_inverses(solved, C)
    x = tl.load(solved + square, row >= key, 0.0)
    tl.store(inverse + pid * (C * C) + square, x.to(IO))


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    """Return the (BK, num_warps) that compile without spills."""
    fitting = [(32, 8)] if capability < 90 else [(32, 4), (32, 8)]
    if padded(arguments["K"]) == 16:
        fitting = [(16, 4)]
    return [triton.Config({"BK": block}, num_warps=warps, num_stages=1) for block, warps in fitting]


def _flops(arguments: dict[str, Any]) -> int:
    """Count T and Aqk below the diagonal, and the products of the inverse."""
    (chunks, heads, size, _), key_dim = arguments["aqk"].shape, arguments["K"]
    return chunks * heads * (2 * size * size * key_dim + 2 * 2 * size**3 // 6)


INTRA_CHUNK = Kernel(
    intra_chunk,
    _candidates,
    _flops,
    scratch=("near", "solved"),
)
