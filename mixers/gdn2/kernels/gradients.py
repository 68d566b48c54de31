"""Gradients of q, k, g and b from those at the borders of chunks and of the matrices inside them, in parallel."""

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
    sibling_product,
    sigmoid,
    softplus,
    stacked,
    unstacked,
    vectors_of_8,
)


@triton.jit
def _with(tiles, i: tl.constexpr, tile):
    """Return the tuple of eight tiles with its i-th element replaced."""
    out = ()
    for n in tl.static_range(8):
        if n == i:
            out = out + (tile,)
        else:
            out = out + (tiles[n],)
    return out


@triton.jit
def _pairs_of_row(dq_i, de_i, dk, dlog, d_aqk, d_t, q_i, e_i, k, alpha, i: tl.constexpr, C: tl.constexpr):
    """Add the gradients from pairs of row i with itself and with the rows before it in its block of 8.

    dlog: the gradient of log α, summed over each pair's product.
    """
    da = tl.load(d_aqk + i * (C + 1)).to(tl.float32)[:, None]
    dq_i += da * k[i]
    dk = _with(dk, i, dk[i] + da * q_i)
    decays = ()  # from keys j = 0, 1, … to row i
    for back in tl.static_range(1, i + 1):
        if back == 1:
            decays = (alpha[i],)
        else:
            decays = (decays[0] * alpha[i - back + 1],) + decays
    moved = tl.zeros_like(dq_i)
    for j in tl.static_range(i):
        da = tl.load(d_aqk + (i * C + j)).to(tl.float32)[:, None]
        dt = tl.load(d_t + (i * C + j)).to(tl.float32)[:, None]
        key = k[j] * decays[j]
        dq_i += da * key
        de_i += dt * key
        row = da * q_i + dt * e_i
        dk = _with(dk, j, dk[j] + row * decays[j])
        moved += row * key
        dlog = _with(dlog, j + 1, dlog[j + 1] + moved)
    return dq_i, de_i, dk, dlog


@triton.jit
def _level(
    dq, de, dk, q, e, k, sums, d_aqk, d_t, whole, r, c,
    m: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take gradients from the borders of blocks of 2m tokens to those of blocks of m, and add the pairs of level m.

    dq, de, dk: [C, BK] fp32. q, e, k: [C, BK], decayed to the borders of blocks of 8. sums: [C/m, K], receives for each
    block the gradient of the logarithm of its neighbour's product, through which it reaches the borders of 2m tokens.
    """
    IO: tl.constexpr = q.dtype
    right = ((r & m) != 0)[:, None]
    factor = tl.full((C, BK), 1.0, tl.float32)  # to the borders of blocks of m: of a row backwards, of a key forwards
    if m >= 16:
        factor *= tl.where(((r & 8) != 0)[:, None] == right, sibling_product(whole, r, c, 8, K), 1.0)
    if m >= 32:
        factor *= tl.where(((r & 16) != 0)[:, None] == right, sibling_product(whole, r, c, 16, K), 1.0)
    sibling = sibling_product(whole, r, c, m, K)
    dq *= tl.where(right, sibling, 1.0)
    de *= tl.where(right, sibling, 1.0)
    dk *= tl.where(right, 1.0, sibling)
    q_m, e_m, k_m = (q * factor).to(IO), (e * factor).to(IO), (k * factor).to(IO)
    moved = tl.where(right, dq * q_m + de * e_m, dk * k_m)
    at = tl.arange(0, C // m)[:, None] * K + c[None, :]
    tl.store(sums + at, tl.sum(tl.reshape(moved, (C // m, m, BK)), 1), (c < K)[None, :])
    square, mask = r[:, None] * C + r[None, :], level_mask(r, m)
    da = tl.load(d_aqk + square, mask, 0.0)
    dq = dot(da, k_m, dq, PRECISION)
    dk = dot(tl.trans(da), q_m, dk, PRECISION)
    dt = tl.load(d_t + square, mask, 0.0)
    de = dot(dt, k_m, de, PRECISION)
    dk = dot(tl.trans(dt), e_m, dk, PRECISION)
    return dq, de, dk


@triton.jit
def chunk_gradients(
    q, k, g, b, A_log, dt_bias, q_rstd, k_rstd, whole, chunk_start, chunk_rows,
    dq_border, de_border, dk_border, d_total, d_aqk, d_t, radial, d_whole, dq, dk, dg, db, d_log, d_bias,
    scale, erase_range,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr,
    NORM: tl.constexpr, ACTIVATE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Run one program per chunk, key head and block of K, on what `state_gradients` has left.

    PARTS: shares of `radial`. d_whole: scratch for the gradients of the logarithms of products over blocks.
    """
    IO: tl.constexpr = dq_border.dtype.element_ty
    STRIDE: tl.constexpr = H * K
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    pid = tl.program_id(0).to(tl.int64) // BLOCKS
    c = tl.program_id(0) % BLOCKS * BK + tl.arange(0, BK)
    chunk, head = pid // H, pid % H
    r, block = tl.arange(0, C), tl.arange(0, C // 8)
    in_k = (c < K)[None, :]
    count = tl.load(chunk_rows + chunk)
    first = (tl.load(chunk_start + chunk) * H + head) * K
    q, k, g, b = q + first, k + first, g + first, b + first
    dq, dk, dg, db = dq + first, dk + first, dg + first, db + first
    per_scale = 1.0 / scale
    d_aqk, d_t = d_aqk + pid * (C * C), d_t + pid * (C * C)
    whole, d_whole = whole + pid * (C // 8 * K), d_whole + pid * (C // 4 * K)
    if NORM:
        q_rstd, k_rstd, radial = q_rstd + pid * C, k_rstd + pid * C, radial + pid * (2 * PARTS * C)
    rate = 0.0
    bias = tl.zeros((BK,), tl.float32)
    if ACTIVATE:
        rate = -tl.exp(tl.load(A_log + head).to(tl.float32))
        bias += tl.load(dt_bias + head * K + c, c < K, 0.0).to(tl.float32)

    alpha = decays_of_8(g, rate, bias, block, c, count, H, K, ACTIVATE)
    within, after = products_of_8(alpha)
    q_i = vectors_of_8(q, q_rstd, block, c, count, STRIDE, K, NORM)
    q_8, e_8, k_8 = (), (), ()
    for i in tl.static_range(8):
        q_8 = q_8 + ((q_i[i] * scale * within[i]).to(IO),)
    q_j = stacked(q_8, C, BK)
    tl.debug_barrier()
    k_i = vectors_of_8(k, k_rstd, block, c, count, STRIDE, K, NORM)
    for i in tl.static_range(8):
        k_8 = k_8 + ((k_i[i] * after[i]).to(IO),)
    k_j = stacked(k_8, C, BK)
    b_i = erase_gates_of_8(b, block, c, count, erase_range, STRIDE, K, ACTIVATE)
    for i in tl.static_range(8):
        e_8 = e_8 + ((b_i[i] * k_i[i] * within[i]).to(IO),)
    e_j = stacked(e_8, C, BK)

    # From the chunk's borders inwards, with the pairs between blocks of 32, 16 and 8.
    border = pid * (C * K) + r[:, None] * K + c[None, :]
    dq_j = tl.load(dq_border + border, in_k, 0.0).to(tl.float32)
    de_j = tl.load(de_border + border, in_k, 0.0).to(tl.float32)
    dk_j = tl.load(dk_border + border, in_k, 0.0).to(tl.float32)
    for level in tl.static_range(3):
        if (C >> (level + 1)) >= 8:
            dq_j, de_j, dk_j = _level(
                dq_j, de_j, dk_j, q_j, e_j, k_j, d_whole + (2 << level) * K - 2 * K, d_aqk, d_t, whole, r, c,
                C >> (level + 1), K, C, BK, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()  # one level after the other, since the operands of all would not fit the registers

    # The products over whole blocks of 8: shares from the chunk and from each level's neighbours.
    total = tl.load(d_total + pid * K + c, c < K, 0.0)
    for i in tl.static_range(C // 8):
        total *= tl.load(whole + c + i * K, c < K, 1.0)
    reaching = tl.zeros((C // 8, BK), tl.float32) + total[None, :]
    for level in tl.static_range(3):
        if (C >> (level + 1)) >= 8:
            own = block // (C // 8 >> (level + 1))
            at = d_whole + (2 << level) * K - 2 * K + (own ^ 1)[:, None] * K + c[None, :]
            reaching += tl.load(at, in_k, 0.0)

    # Pairs inside blocks of 8, from the last row to the first, each of which is then done. The inputs are read again:
    # held over the levels, they would take registers that those need, and so would their loads, moved up.
    within, after = products_of_8(alpha)
    dq_8, de_8, dk_8 = unstacked(dq_j, C, BK), unstacked(de_j, C, BK), unstacked(dk_j, C, BK)
    dq_i, de_i, dk_i, k_i, dlog = (), (), (), (), ()
    for i in tl.static_range(8):
        dq_i, de_i, dk_i = (
            dq_i + (dq_8[i] * within[i],),
            de_i + (de_8[i] * within[i],),
            dk_i + (dk_8[i] * after[i],),
        )
    tl.debug_barrier()
    of_8 = block[:, None] * (8 * STRIDE) + c[None, :]
    corner = block * (8 * C + 8)  # first entry of each diagonal block of [C, C]
    passing = tl.zeros_like(reaching)
    for i in tl.static_range(8):  # log α_i enters the products after rows 0, …, i - 1
        k_row = tl.load(k + of_8 + i * STRIDE, (block * 8 < count - i)[:, None] & in_k, 0.0).to(tl.float32)
        if NORM:
            k_row *= tl.load(k_rstd + block * 8 + i)[:, None]
        k_i, dlog = k_i + (k_row,), dlog + (passing,)
        passing += dk_i[i] * k_row
    bias_sum = tl.zeros((C // 8, BK), tl.float32)
    log_sum = tl.zeros((C // 8, BK), tl.float32)
    for i in tl.static_range(7, -1, -1):
        out, in_tile = i * STRIDE, (block * 8 < count - i)[:, None] & in_k
        q_row = tl.load(q + of_8 + out, in_tile, 0.0).to(tl.float32) * scale
        b_row = tl.load(b + of_8 + out, in_tile, 0.0).to(tl.float32)
        fraction = b_row
        if NORM:
            q_rstd_row = tl.load(q_rstd + block * 8 + i)[:, None]
            q_row *= q_rstd_row
        if ACTIVATE:
            fraction = sigmoid(b_row)
            b_row = erase_range * fraction
        e_row = b_row * k_i[i]
        reaching += dq_i[i] * q_row + de_i[i] * e_row  # and those up to rows i, …, 7 and over the whole block
        dlog = _with(dlog, i, dlog[i] + reaching)
        dq_row, de_row, dk_i, dlog = _pairs_of_row(
            dq_i[i], de_i[i], dk_i, dlog, d_aqk + corner, d_t + corner, q_row, e_row, k_i, alpha, i, C
        )
        db_row, dg_row = de_row * k_i[i], dlog[i]
        if ACTIVATE:
            db_row *= b_row * (1.0 - fraction)
            raw = tl.load(g + of_8 + out, in_tile, 0.0).to(tl.float32) + bias[None, :]
            log_sum += tl.where(in_tile, dg_row * softplus(raw), 0.0)
            dg_row *= rate * sigmoid(raw)
            bias_sum += tl.where(in_tile, dg_row, 0.0)
        dq_row, dk_row = dq_row * scale, dk_i[i] + de_row * b_row
        if NORM:  # a normalised vector does not depend on its length, so the radial part of the gradient goes
            q_part = tl.zeros((C // 8,), tl.float32)
            k_part = tl.zeros((C // 8,), tl.float32)
            for part in tl.static_range(PARTS):
                q_part += tl.load(radial + 2 * part * C + block * 8 + i)
                k_part += tl.load(radial + (2 * part + 1) * C + block * 8 + i)
            dq_row = (dq_row - q_row * (q_part * per_scale)[:, None]) * q_rstd_row
            dk_row = (dk_row - k_i[i] * k_part[:, None]) * tl.load(k_rstd + block * 8 + i)[:, None]
        tl.store(dg + of_8 + out, dg_row.to(dg.dtype.element_ty), in_tile)
        tl.store(db + of_8 + out, db_row.to(db.dtype.element_ty), in_tile)
        tl.store(dq + of_8 + out, dq_row.to(dq.dtype.element_ty), in_tile)
        tl.store(dk + of_8 + out, dk_row.to(dk.dtype.element_ty), in_tile)
    if ACTIVATE:
        tl.store(d_bias + pid * K + c, tl.sum(bias_sum, 0), c < K)
        tl.store(d_log + pid * K + c, rate * tl.sum(log_sum, 0), c < K)


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    """Return the (BK, num_warps) that compile without spills."""
    widest = padded(arguments["K"])
    within = {(min(block, widest), warps) for block, warps in [(16, 4), (32, 8)]}
    return [triton.Config({"BK": block}, num_warps=warps, num_stages=1) for block, warps in sorted(within)]


def _flops(arguments: dict[str, Any]) -> int:
    """Count four products below the diagonal."""
    chunks, heads, size, key_dim = arguments["dq_border"].shape
    return chunks * heads * 4 * size * size * key_dim


CHUNK_GRADIENTS = Kernel(chunk_gradients, _candidates, _flops, scratch=("d_whole",))
