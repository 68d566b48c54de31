"""Gradients of every input from dz, the states and their gradients, all chunks in parallel."""

from typing import Any

import torch
import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import (
    dot,
    level_mask,
    products_of_8,
    read_of_8,
    rows_of_8,
    sibling_product,
    softplus,
    store_rows_of_8,
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
def _pairs_of_8(dq, de, dk, dlog, d_aqk, d_t, q, e, k, alpha, block, C: tl.constexpr):
    """Add the gradients from pairs inside blocks of 8. dlog: the gradient of log α, summed over each pair's product."""
    corner = block * (8 * C + 8)  # first entry of each diagonal block in [C, C]
    d_aqk, d_t = d_aqk + corner, d_t + corner
    for i in tl.static_range(8):
        da = tl.load(d_aqk + i * (C + 1)).to(tl.float32)[:, None]
        dq_i, de_i = dq[i] + da * k[i], de[i]
        dk = _with(dk, i, dk[i] + da * q[i])
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
            row = da * q[i] + dt * e[i]
            dk = _with(dk, j, dk[j] + row * decays[j])
            moved += row * key
            dlog = _with(dlog, j + 1, dlog[j + 1] + moved)
        dq, de = _with(dq, i, dq_i), _with(de, i, de_i)
    return dq, de, dk, dlog


@triton.jit
def _store_block_sums(moved, sums, c, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """Sum the gradients of the tokens' log factors, [C, BK], over blocks of 8 and store them in `sums`, [C/8, K]."""
    at = tl.arange(0, C // 8)[:, None] * K + c[None, :]
    tl.store(sums + at, tl.sum(tl.reshape(moved, (C // 8, 8, BK)), 1), (c < K)[None, :])


@triton.jit
def _whole_shares(sums, block, c, K: tl.constexpr, C: tl.constexpr):
    """Return the gradient of the log-decay of each block of 8 as a whole, [C/8, BK], from `_store_block_sums`.

    At level m, the factor of a row covers the blocks before its own in its block of m tokens, and the factor of a key
    covers those after its own. sums: levels 16 and 32, the chunk's rows and its keys, [C/8, K] each; then one row, the
    share of the whole chunk.
    """
    SIZE: tl.constexpr = C // 8 * K
    in_k = c < K
    share = tl.zeros((C // 8, 1), tl.float32) + tl.load(sums + c + 4 * SIZE, in_k, 0.0)[None, :]
    for own in tl.static_range(C // 8):
        before, after = (block < own)[:, None], (block > own)[:, None]
        share += tl.where(before, tl.load(sums + c + (2 * SIZE + own * K), in_k, 0.0)[None, :], 0.0)
        share += tl.where(after, tl.load(sums + c + (3 * SIZE + own * K), in_k, 0.0)[None, :], 0.0)
        if C >= 32:
            near = ((block ^ own) < 2)[:, None] & (before if own & 2 else after)
            share += tl.where(near, tl.load(sums + c + own * K, in_k, 0.0)[None, :], 0.0)
        if C >= 64:
            near = ((block ^ own) < 4)[:, None] & (before if own & 4 else after)
            share += tl.where(near, tl.load(sums + c + (SIZE + own * K), in_k, 0.0)[None, :], 0.0)
    return share


@triton.jit
def _levels(
    dq, de, dk, sums, d_aqk, d_t, q, e, k, in_tile, whole, r, c,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the gradients from pairs between blocks of 8, 16 and 32.

    q, e, k: pointers to [C, BK] of each, decayed to the borders of blocks of 8. The loop is not unrolled, since the
    operands of all levels together would not fit the registers.
    """
    IO: tl.constexpr = d_t.dtype.element_ty
    at = r[:, None] * C + r[None, :]
    m = 8
    while m < C:
        is_row = ((r & m) != 0)[:, None]
        factor = tl.full((C, BK), 1.0, tl.float32)
        inner = 8
        while inner < m:  # blocks within the block of m tokens, before a row's own or after a key's own
            factor *= tl.where(((r & inner) != 0)[:, None] == is_row, sibling_product(whole, r, c, inner, K), 1.0)
            inner *= 2
        mask = level_mask(r, m)
        keys = (tl.load(k, in_tile, 0.0) * factor).to(IO)
        da = tl.where(mask, tl.load(d_aqk + at), 0.0).to(IO)
        dq_m = dot(da, keys, None, PRECISION) * factor
        q_m = tl.load(q, in_tile, 0.0)
        dk_m = dot(tl.trans(da), (q_m * factor).to(IO), None, PRECISION)
        dq += dq_m
        moved = dq_m * q_m
        tl.debug_barrier()  # one matrix after the other, since both together take too many registers
        dt = tl.where(mask, tl.load(d_t + at), 0.0).to(IO)
        de_m = dot(dt, keys, None, PRECISION) * factor
        e_m = tl.load(e, in_tile, 0.0)
        dk_m = dot(tl.trans(dt), (e_m * factor).to(IO), dk_m, PRECISION) * factor
        de += de_m
        dk += dk_m
        if m > 8:
            moved += de_m * e_m + dk_m * tl.load(k, in_tile, 0.0)
            _store_block_sums(moved, sums + (m // 16 - 1) * (C // 8 * K), c, K, C, BK)
        m *= 2
    return dq, de, dk


@triton.jit
def chunk_gradients(
    q, k, v, g, b, w, A_log, dt_bias, q_rstd, k_rstd, whole, chunk_start, chunk_rows,
    do, r_saved, dz, states, d_states,
    d_aqk, d_t, d_whole, radial, dq, dk, dv, dg, db, dw, d_log, d_bias,
    scale, erase_range,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    NORM: tl.constexpr, ACTIVATE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Run one program per chunk and key head.

    dAqk = tril(dO Rᵀ) and dT = -tril(dz Rᵀ, -1), which is -tril(Aᵀ dA Aᵀ, -1) since dz = Aᵀ dR and R = A(z - eS).
    d_aqk, d_t, d_whole, radial: scratch that passes data from one part of a program to the next. dq, db and dk also
    serve as scratch before they hold gradients.
    """
    IO: tl.constexpr = states.dtype.element_ty
    GROUP: tl.constexpr = HV // H
    STRIDE: tl.constexpr = H * K
    pid = tl.program_id(0).to(tl.int64)
    chunk, head = pid // H, pid % H
    r, block = tl.arange(0, C), tl.arange(0, C // 8)
    count = tl.load(chunk_rows + chunk)
    valid = (r < count)[:, None]
    start = tl.load(chunk_start + chunk)
    first = (start * H + head) * K
    q, k, g, b = q + first, k + first, g + first, b + first
    dq, dk, dg, db = dq + first, dk + first, dg + first, db + first
    d_aqk, d_t = d_aqk + pid * (C * C), d_t + pid * (C * C)
    whole, d_whole = whole + pid * (C // 8 * K), d_whole + pid * (C // 2 * K + K)
    if NORM:
        q_rstd, k_rstd, radial = q_rstd + pid * C, k_rstd + pid * C, radial + pid * (2 * C)

    da = tl.zeros((C, C), tl.float32)
    dt = tl.zeros((C, C), tl.float32)
    for member in range(0, GROUP):
        hv = head * GROUP + member
        token, inner = (start * HV + hv) * V, (chunk * HV + hv) * (C * V)
        for start_v in range(0, V, BV):
            x = start_v + tl.arange(0, BV)
            in_v = (x < V)[None, :]
            at, mask = token + r[:, None] * (HV * V) + x[None, :], valid & in_v
            tile = inner + r[:, None] * V + x[None, :]
            do_i = tl.load(do + at, mask, 0.0).to(IO)
            r_i = tl.trans(tl.load(r_saved + tile, in_v, 0.0))
            dz_i = tl.load(dz + tile, in_v, 0.0)
            da = dot(do_i, r_i, da, PRECISION)
            dt = dot(dz_i, r_i, dt, PRECISION)
            v_i = tl.load(v + at, mask, 0.0).to(tl.float32)
            w_i = tl.load(w + at, mask, 0.0).to(tl.float32)
            dw_i = dz_i.to(tl.float32) * v_i
            if ACTIVATE:
                w_i = tl.sigmoid(w_i)
                dw_i *= w_i * (1.0 - w_i)
            tl.store(dv + at, (dz_i.to(tl.float32) * w_i).to(dv.dtype.element_ty), mask)
            tl.store(dw + at, dw_i.to(dw.dtype.element_ty), mask)
    square = r[:, None] * C + r[None, :]
    tl.store(d_aqk + square, da.to(IO))
    tl.store(d_t + square, (-dt).to(IO))

    column = tl.arange(0, 16)[None, :]
    for start_k in tl.range(0, K, BK, disable_licm=True):
        c = start_k + tl.arange(0, BK)
        in_k = (c < K)[None, :]
        # Read inside the loop, so that values derived from them are computed when they are needed. Held over the loop,
        # they take more registers than there are.
        start, count = tl.load(chunk_start + chunk), tl.load(chunk_rows + chunk)
        valid = (r < count)[:, None]
        rate = 0.0
        bias = tl.zeros((BK,), tl.float32)
        if ACTIVATE:
            rate = -tl.exp(tl.load(A_log + head).to(tl.float32))
            bias += tl.load(dt_bias + head * K + c, c < K, 0.0).to(tl.float32)
        at, mask = r[:, None] * STRIDE + c[None, :], valid & in_k

        # Decay q, e and k to the borders of their blocks of 8.
        q_i, k_i, b_i, alpha = read_of_8(
            q, k, b, g, rate, bias, q_rstd, k_rstd, block, c, count, scale, erase_range, H, K, NORM, ACTIVATE
        )
        within, after = products_of_8(alpha)
        q_8, e_8, k_8 = (), (), ()
        for i in tl.static_range(8):
            q_8, e_8, k_8 = (
                q_8 + (q_i[i] * within[i],),
                e_8 + (b_i[i] * k_i[i] * within[i],),
                k_8 + (k_i[i] * after[i],),
            )
        store_rows_of_8(dq, q_8, block, c, count, STRIDE, K)
        store_rows_of_8(db, e_8, block, c, count, STRIDE, K)
        store_rows_of_8(dk, k_8, block, c, count, STRIDE, K)
        tl.debug_barrier()

        # Gradients that reach the chunk's borders, through the state it starts from and the state it leaves.
        dq_j = tl.zeros((C, BK), tl.float32)
        de_j = tl.zeros((C, BK), tl.float32)
        dk_j = tl.zeros((C, BK), tl.float32)
        d_total = tl.zeros((BK,), tl.float32)
        for member in tl.range(0, GROUP, disable_licm=True):
            hv = head * GROUP + member
            token, inner = (start * HV + hv) * V, (chunk * HV + hv) * (C * V)
            for start_v in tl.range(0, V, BV, disable_licm=True):
                x = start_v + tl.arange(0, BV)
                in_v = (x < V)[None, :]
                kv = (chunk * HV + hv) * (K * V) + c[:, None] * V + x[None, :]
                in_kv = (c < K)[:, None] & in_v
                s_i = tl.load(states + kv, in_kv, 0.0)
                ds_i = tl.load(d_states + kv, in_kv, 0.0)
                do_i = tl.load(do + token + r[:, None] * (HV * V) + x[None, :], valid & in_v, 0.0).to(IO)
                tile = inner + r[:, None] * V + x[None, :]
                dz_i = tl.load(dz + tile, in_v, 0.0)
                r_i = tl.load(r_saved + tile, in_v, 0.0)
                dq_j = dot(do_i, tl.trans(s_i), dq_j, PRECISION)
                de_j = dot(dz_i, tl.trans(s_i), de_j, PRECISION)
                dk_j = dot(r_i, tl.trans(ds_i), dk_j, PRECISION)
                d_total += tl.sum(s_i.to(tl.float32) * ds_i.to(tl.float32), 1)
        q_j = tl.load(dq + at, mask, 0.0)
        e_j = tl.load(db + at, mask, 0.0)
        k_j = tl.load(dk + at, mask, 0.0)
        row_factor = tl.full((C, BK), 1.0, tl.float32)
        key_factor = tl.full((C, BK), 1.0, tl.float32)
        for level in tl.static_range(3):
            if (8 << level) < C:
                sibling, right = sibling_product(whole, r, c, 8 << level, K), ((r & (8 << level)) != 0)[:, None]
                row_factor *= tl.where(right, sibling, 1.0)
                key_factor *= tl.where(right, 1.0, sibling)
        dq_j *= row_factor
        de_j *= -row_factor
        dk_j *= key_factor
        total = tl.full((BK,), 1.0, tl.float32)
        for i in tl.static_range(C // 8):
            total *= tl.load(whole + c + i * K, c < K, 1.0)
        tl.store(d_whole + 4 * (C // 8 * K) + c, d_total * total, c < K)
        _store_block_sums(dq_j * q_j + de_j * e_j, d_whole + 2 * (C // 8 * K), c, K, C, BK)
        _store_block_sums(dk_j * k_j, d_whole + 3 * (C // 8 * K), c, K, C, BK)

        # Pairs between blocks of 8, 16 and 32.
        dq_j, de_j, dk_j = _levels(
            dq_j, de_j, dk_j, d_whole, d_aqk, d_t, dq + at, db + at, dk + at, mask, whole, r, c, K, C, BK, PRECISION
        )
        tl.debug_barrier()
        tl.store(dq + at, dq_j.to(dq.dtype.element_ty), mask)
        tl.store(db + at, de_j.to(db.dtype.element_ty), mask)
        tl.store(dk + at, dk_j.to(dk.dtype.element_ty), mask)
        tl.debug_barrier()

        # Pairs inside blocks of 8.
        q_i, k_i, b_i, alpha = read_of_8(
            q, k, b, g, rate, bias, q_rstd, k_rstd, block, c, count, scale, erase_range, H, K, NORM, ACTIVATE
        )
        within, after = products_of_8(alpha)
        dq_8 = rows_of_8(dq, block, c, count, STRIDE, K)
        de_8 = rows_of_8(db, block, c, count, STRIDE, K)
        dk_8 = rows_of_8(dk, block, c, count, STRIDE, K)
        reaching = _whole_shares(d_whole, block, c, K, C)
        dq_i, de_i, dk_i, e_i, dlog = (), (), (), (), ()
        for i in tl.static_range(8):
            e_i = e_i + (b_i[i] * k_i[i],)
            dq_i, de_i, dk_i = (
                dq_i + (dq_8[i] * within[i],),
                de_i + (de_8[i] * within[i],),
                dk_i + (dk_8[i] * after[i],),
            )
        for back in tl.static_range(8):  # log α_i enters the products up to rows i, …, 7 and the whole block's
            reaching += dq_i[7 - back] * q_i[7 - back] + de_i[7 - back] * e_i[7 - back]
            dlog = (reaching,) + dlog
        passing = tl.zeros_like(reaching)
        for i in tl.static_range(8):  # and the products after rows 0, …, i - 1
            dlog = _with(dlog, i, dlog[i] + passing)
            passing += dk_i[i] * k_i[i]
        dq_i, de_i, dk_i, dlog = _pairs_of_8(dq_i, de_i, dk_i, dlog, d_aqk, d_t, q_i, e_i, k_i, alpha, block, C)

        if ACTIVATE:  # read again, like b and g below: held since above, they take registers that the pairs need
            rate = -tl.exp(tl.load(A_log + head).to(tl.float32))
            bias = tl.load(dt_bias + head * K + c, c < K, 0.0).to(tl.float32)
        bias_sum = tl.zeros((BK,), tl.float32)
        log_sum = tl.zeros((BK,), tl.float32)
        radials = tl.zeros((C // 8, 16), tl.float32)  # q's in columns 0 to 7, k's in 8 to 15
        of_8 = block[:, None] * (8 * STRIDE) + c[None, :]
        for i in tl.static_range(8):
            out, in_tile = i * STRIDE, (block * 8 < count - i)[:, None] & in_k
            b_row = tl.load(b + of_8 + out, in_tile, 0.0).to(tl.float32)
            db_row, dg_row = de_i[i] * k_i[i], dlog[i]
            if ACTIVATE:
                b_row = erase_range * tl.sigmoid(b_row)
                db_row *= b_row * (1.0 - b_row / erase_range)
                raw = tl.load(g + of_8 + out, in_tile, 0.0).to(tl.float32) + bias[None, :]
                log_sum += tl.sum(tl.where(in_tile, dg_row * (rate * softplus(raw)), 0.0), 0)
                dg_row *= rate * tl.sigmoid(raw)
                bias_sum += tl.sum(tl.where(in_tile, dg_row, 0.0), 0)
            dk_row = dk_i[i] + de_i[i] * b_row
            tl.store(dg + of_8 + out, dg_row.to(dg.dtype.element_ty), in_tile)
            tl.store(db + of_8 + out, db_row.to(db.dtype.element_ty), in_tile)
            dq_row = dq_i[i] * scale
            if NORM:
                radials += tl.where(column == i, tl.sum(dq_i[i] * q_i[i], 1)[:, None], 0.0)
                radials += tl.where(column == i + 8, tl.sum(dk_row * k_i[i], 1)[:, None], 0.0)
                dq_row *= tl.load(q_rstd + block * 8 + i)[:, None]
                dk_row *= tl.load(k_rstd + block * 8 + i)[:, None]
            tl.store(dq + of_8 + out, dq_row.to(dq.dtype.element_ty), in_tile)
            tl.store(dk + of_8 + out, dk_row.to(dk.dtype.element_ty), in_tile)
        if ACTIVATE:
            tl.store(d_bias + pid * K + c, bias_sum, c < K)
            tl.store(d_log + pid * K + c, log_sum, c < K)
        if NORM:
            at_radial = radial + column // 8 * C + block[:, None] * 8 + column % 8
            if start_k > 0:
                radials += tl.load(at_radial)
            tl.store(at_radial, radials)

    if NORM:
        # A normalised vector does not depend on its length, so the radial part of the gradient goes, over all channels.
        tl.debug_barrier()
        q_scale, k_scale = tl.load(q_rstd + r) * scale, tl.load(k_rstd + r)
        q_part, k_part = (
            tl.load(radial + r) * q_scale * q_scale / (scale * scale),
            tl.load(radial + C + r) * k_scale * k_scale,
        )
        for start_k in range(0, K, BK):
            c = start_k + tl.arange(0, BK)
            at, mask = r[:, None] * STRIDE + c[None, :], valid & (c < K)[None, :]
            dq_j = tl.load(dq + at, mask, 0.0).to(tl.float32)
            dk_j = tl.load(dk + at, mask, 0.0).to(tl.float32)
            dq_j -= tl.load(q + at, mask, 0.0).to(tl.float32) * q_part[:, None]
            dk_j -= tl.load(k + at, mask, 0.0).to(tl.float32) * k_part[:, None]
            tl.store(dq + at, dq_j.to(dq.dtype.element_ty), mask)
            tl.store(dk + at, dk_j.to(dk.dtype.element_ty), mask)


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    """Return one configuration per GPU generation: every other one that was compiled spills."""
    fp32 = arguments["states"].dtype == torch.float32
    key, value, warps = (16, 16, 8) if fp32 else (16, 32, 4) if capability < 90 else (32, 32, 8)
    if warps == 8 and any(arguments[size] % 32 for size in ("K", "V")):
        value = 16  # the masks of other sizes take registers too
    blocks = {"BK": min(key, padded(arguments["K"])), "BV": min(value, padded(arguments["V"]))}
    # With its default register usage ptxas spills a few bytes. Told to save registers, it spills none.
    return [triton.Config(blocks | {"ptx_options": "--register-usage-level=0"}, num_warps=warps, num_stages=1)]


def _flops(arguments: dict[str, Any]) -> int:
    """Count dAqk and dT, the three gradients through the states, and four products below the diagonal."""
    (chunks, heads, size, _), key_dim = arguments["d_aqk"].shape, arguments["K"]
    values = arguments["HV"] * arguments["V"]
    return chunks * (values * (4 * size * size + 6 * size * key_dim) + heads * 4 * size * size * key_dim)


CHUNK_GRADIENTS = Kernel(
    chunk_gradients,
    _candidates,
    _flops,
    scratch=("d_aqk", "d_t", "d_whole", "radial"),
)
