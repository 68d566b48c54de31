"""Gradients through the states that chunks start from and leave, and those of v and w, all chunks in parallel."""

from typing import Any

import torch
import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import dot


@triton.jit
def state_gradients(
    v, w, o, do, r_saved, dz, states, d_states, chunk_start, chunk_rows,
    dq_border, de_border, dk_border, d_total, d_aqk, d_t, radial, dv, dw,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, KB: tl.constexpr,
    NORM: tl.constexpr, ACTIVATE: tl.constexpr, PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Run one program per chunk, key head and block of K.

    dq_border, de_border, dk_border: [NT, H, C, K], gradients of the queries and erasers decayed to the chunk's start
    and of the keys decayed to its end. d_total: [NT, H, K], of Π α over the chunk. dAqk = dO Rᵀ and dT = -dz Rᵀ, of
    which what is below the diagonal counts: -dz Rᵀ is -Aᵀ dA Aᵀ, since dz = Aᵀ dR and R = A (z - e S).

    radial: [NT, H, ⌈K/KB⌉, 2, C], shares of q·dq and k·dk of the normalised q and k. o is linear in q, so q·dq = o·dO.
    k enters r = z - eᵀS, e = b ⊙ k, and S + k rᵀ, whose gradients are dz: k·dk = r·dz + (r - z)·dz.
    """
    IO: tl.constexpr = states.dtype.element_ty
    GROUP: tl.constexpr = HV // H
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    PARTS: tl.constexpr = (K + KB - 1) // KB
    pid = tl.program_id(0).to(tl.int64)
    part, chunk, head = pid % PARTS, pid // PARTS // H, pid // PARTS % H
    r, c = tl.arange(0, C), part * KB + tl.arange(0, KB)
    start, count = tl.load(chunk_start + chunk), tl.load(chunk_rows + chunk)
    valid = (r < count)[:, None]

    dq = tl.zeros((C, KB), tl.float32)
    de = tl.zeros((C, KB), tl.float32)
    dk = tl.zeros((C, KB), tl.float32)
    dp = tl.zeros((KB,), tl.float32)
    da = tl.zeros((C, C), tl.float32)
    dt = tl.zeros((C, C), tl.float32)
    for step in range(0, GROUP * BLOCKS):
        hv, x = head * GROUP + step // BLOCKS, step % BLOCKS * BV + tl.arange(0, BV)
        in_v = (x < V)[None, :]
        tile = (chunk * HV + hv) * (C * V) + r[:, None] * V + x[None, :]
        kv = (chunk * HV + hv) * (K * V) + c[:, None] * V + x[None, :]
        in_kv = (c < K)[:, None] & in_v
        do_i = tl.load(do + (start * HV + hv) * V + r[:, None] * (HV * V) + x[None, :], valid & in_v, 0.0).to(IO)
        dz_i = tl.load(dz + tile, in_v, 0.0)
        r_i = tl.load(r_saved + tile, in_v, 0.0)
        s_i = tl.load(states + kv, in_kv, 0.0)
        ds_i = tl.load(d_states + kv, in_kv, 0.0)
        dq = dot(do_i, tl.trans(s_i), dq, PRECISION)
        de = dot(dz_i, tl.trans(s_i), de, PRECISION)
        dk = dot(r_i, tl.trans(ds_i), dk, PRECISION)
        dp += tl.sum(s_i.to(tl.float32) * ds_i.to(tl.float32), 1)
        if PARTS == 1:
            da = dot(do_i, tl.trans(r_i), da, PRECISION)
            dt = dot(dz_i, tl.trans(r_i), dt, PRECISION)
        else:  # the first block of K has dAqk, the second dT
            da = dot(tl.where(part == 0, do_i, dz_i), tl.trans(r_i), da, PRECISION)
    border = (chunk * H + head) * (C * K) + r[:, None] * K + c[None, :]
    in_k = (c < K)[None, :]
    tl.store(dq_border + border, dq.to(IO), in_k)
    tl.store(de_border + border, (-de).to(IO), in_k)
    tl.store(dk_border + border, dk.to(IO), in_k)
    tl.store(d_total + (chunk * H + head) * K + c, dp, c < K)
    square = (chunk * H + head) * (C * C) + r[:, None] * C + r[None, :]
    if PARTS == 1:
        tl.store(d_aqk + square, da.to(IO))
        tl.store(d_t + square, (-dt).to(IO))
    else:
        tl.store(d_aqk + square, da.to(IO), (part == 0) & (r >= 0)[:, None])
        tl.store(d_t + square, (-da).to(IO), (part == 1) & (r >= 0)[:, None])

    # Each block of K takes its share of the blocks of V.
    q_radial = tl.zeros((C,), tl.float32)
    k_radial = tl.zeros((C,), tl.float32)
    for step in range(part, GROUP * BLOCKS, PARTS):
        hv, x = head * GROUP + step // BLOCKS, step % BLOCKS * BV + tl.arange(0, BV)
        in_v = (x < V)[None, :]
        at, mask = (start * HV + hv) * V + r[:, None] * (HV * V) + x[None, :], valid & in_v
        tile = (chunk * HV + hv) * (C * V) + r[:, None] * V + x[None, :]
        dz_i = tl.load(dz + tile, in_v, 0.0).to(tl.float32)
        v_i = tl.load(v + at, mask, 0.0).to(tl.float32)
        w_i = tl.load(w + at, mask, 0.0).to(tl.float32)
        dw_i = dz_i * v_i
        if ACTIVATE:
            w_i = tl.sigmoid(w_i)
            dw_i *= w_i * (1.0 - w_i)
        tl.store(dv + at, (dz_i * w_i).to(dv.dtype.element_ty), mask)
        tl.store(dw + at, dw_i.to(dw.dtype.element_ty), mask)
        if NORM:
            do_i = tl.load(do + at, mask, 0.0).to(tl.float32)
            q_radial += tl.sum(do_i * tl.load(o + at, mask, 0.0).to(tl.float32), 1)
            r_i = tl.load(r_saved + tile, in_v, 0.0).to(tl.float32)
            k_radial += tl.sum(dz_i * (2.0 * r_i - w_i * v_i), 1)
    if NORM:
        tl.store(radial + pid * (2 * C) + r, q_radial)
        tl.store(radial + pid * (2 * C) + C + r, k_radial)


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    """Return the (BV, num_warps, num_stages) that compile without spills."""
    if arguments["states"].dtype == torch.float32:
        fitting = [(32, 4, 1)]
    elif capability < 90:
        fitting = [(16, 4, 1), (16, 4, 2)]
    else:
        fitting = [(32, 4, 2), (32, 4, 3)]
        if arguments["V"] % 64 == 0:  # masks take registers
            fitting.append((64, 4, 2))
    widest = padded(arguments["V"])
    within = {(min(block, widest), warps, stages) for block, warps, stages in fitting}
    return [triton.Config({"BV": block}, num_warps=warps, num_stages=stages) for block, warps, stages in sorted(within)]


def _flops(arguments: dict[str, Any]) -> int:
    """Count dAqk and dT, and the three gradients through the states."""
    chunks, _, size, key_dim = arguments["dq_border"].shape
    return chunks * arguments["HV"] * arguments["V"] * (4 * size * size + 6 * size * key_dim)


STATE_GRADIENTS = Kernel(state_gradients, _candidates, _flops)
