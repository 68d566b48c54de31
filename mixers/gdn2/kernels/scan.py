"""From chunk to chunk with the state on chip, forward and backward; sequences, value heads and blocks of V in parallel."""

from typing import Any

import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import dot


@triton.jit
def scan_forward(
    v, w, q_decayed, e_decayed, k_decayed, total, inverse, aqk, initial, sequence_start, sequence_chunk,
    o, r, states, final,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, KP: tl.constexpr,
    ACTIVATE: tl.constexpr, HAS_INITIAL: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """R = A (z - e S), O = q S + Aqk R, S ← total ⊙ S + kᵀ R. KEEP: write R and the states that chunks start from."""
    IO: tl.constexpr = q_decayed.dtype.element_ty
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    n, hv = pid // (HV * BLOCKS), pid // BLOCKS % HV
    h = hv // (HV // H)
    i, c, x = tl.arange(0, C), tl.arange(0, KP), pid % BLOCKS * BV + tl.arange(0, BV)
    in_k, in_v = c < K, x < V
    first, last = tl.load(sequence_chunk + n), tl.load(sequence_chunk + n + 1)
    begin, end = tl.load(sequence_start + n), tl.load(sequence_start + n + 1)

    kv = c[:, None] * V + x[None, :]
    in_kv = in_k[:, None] & in_v[None, :]
    state = tl.zeros((KP, BV), tl.float32)
    if HAS_INITIAL:
        state += tl.load(initial + (n * HV + hv) * (K * V) + kv, in_kv, 0.0)
    for chunk in range(first, last):
        key_tile, value_tile = (chunk * H + h) * (C * K), chunk * HV + hv
        ck, in_ck = i[:, None] * K + c[None, :], in_k[None, :]
        cc = (chunk * H + h) * (C * C) + i[:, None] * C + i[None, :]
        token = begin + (chunk - first) * C + i
        at = (token * HV + hv)[:, None] * V + x[None, :]
        mask = (token < end)[:, None] & in_v[None, :]
        z = tl.load(v + at, mask, 0.0).to(tl.float32)
        w_i = tl.load(w + at, mask, 0.0).to(tl.float32)
        z *= tl.sigmoid(w_i) if ACTIVATE else w_i
        e_i = tl.load(e_decayed + key_tile + ck, in_ck, 0.0)
        q_i = tl.load(q_decayed + key_tile + ck, in_ck, 0.0)
        k_i = tl.load(k_decayed + key_tile + i[None, :] * K + c[:, None], in_k[:, None], 0.0)
        keep = tl.load(total + (chunk * H + h) * K + c, in_k, 0.0)

        entering = state.to(IO)
        z -= dot(e_i, entering, None, PRECISION)
        r_i = dot(tl.load(inverse + cc), z.to(IO), None, PRECISION).to(IO)
        o_i = dot(q_i, entering, None, PRECISION)
        o_i = dot(tl.load(aqk + cc), r_i, o_i, PRECISION)
        tl.store(o + at, o_i.to(o.dtype.element_ty), mask)
        if KEEP:
            tl.store(states + value_tile * (K * V) + kv, entering, in_kv)
            tl.store(r + value_tile * (C * V) + i[:, None] * V + x[None, :], r_i, in_v[None, :])
        state = dot(k_i, r_i, state * keep[:, None], PRECISION)
    tl.store(final + (n * HV + hv) * (K * V) + kv, state, in_kv)


@triton.jit
def scan_backward(
    do, q_decayed, e_decayed, k_decayed, total, inverse, aqk, d_final, sequence_start, sequence_chunk,
    dz, d_states, d_initial,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, KP: tl.constexpr,
    HAS_FINAL: tl.constexpr, PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dR = Aqkᵀ dO + k dS, dz = Aᵀ dR, dS ← total ⊙ dS + qᵀ dO - eᵀ dz; writes dz and the dS that chunks end with."""
    IO: tl.constexpr = q_decayed.dtype.element_ty
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    n, hv = pid // (HV * BLOCKS), pid // BLOCKS % HV
    h = hv // (HV // H)
    i, c, x = tl.arange(0, C), tl.arange(0, KP), pid % BLOCKS * BV + tl.arange(0, BV)
    in_k, in_v = c < K, x < V
    first, last = tl.load(sequence_chunk + n), tl.load(sequence_chunk + n + 1)
    begin, end = tl.load(sequence_start + n), tl.load(sequence_start + n + 1)

    kv = c[:, None] * V + x[None, :]
    in_kv = in_k[:, None] & in_v[None, :]
    d_state = tl.zeros((KP, BV), tl.float32)
    if HAS_FINAL:
        d_state += tl.load(d_final + (n * HV + hv) * (K * V) + kv, in_kv, 0.0)
    for step in range(0, last - first):
        chunk = last - 1 - step
        key_tile, value_tile = (chunk * H + h) * (C * K), chunk * HV + hv
        kc, in_kc = i[None, :] * K + c[:, None], in_k[:, None]
        cc = (chunk * H + h) * (C * C) + i[None, :] * C + i[:, None]  # transposed
        token = begin + (chunk - first) * C + i
        at = (token * HV + hv)[:, None] * V + x[None, :]
        do_i = tl.load(do + at, (token < end)[:, None] & in_v[None, :], 0.0).to(IO)
        k_i = tl.load(k_decayed + key_tile + i[:, None] * K + c[None, :], in_k[None, :], 0.0)
        e_i = tl.load(e_decayed + key_tile + kc, in_kc, 0.0)
        q_i = tl.load(q_decayed + key_tile + kc, in_kc, 0.0)
        keep = tl.load(total + (chunk * H + h) * K + c, in_k, 0.0)

        leaving = d_state.to(IO)
        tl.store(d_states + value_tile * (K * V) + kv, leaving, in_kv)
        dr = dot(tl.load(aqk + cc), do_i, None, PRECISION)
        dr = dot(k_i, leaving, dr, PRECISION)
        dz_i = dot(tl.load(inverse + cc), dr.to(IO), None, PRECISION)
        tl.store(dz + value_tile * (C * V) + i[:, None] * V + x[None, :], dz_i.to(IO), in_v[None, :])
        d_state = dot(q_i, do_i, d_state * keep[:, None], PRECISION)
        d_state = dot(e_i, (-dz_i).to(IO), d_state, PRECISION)
    tl.store(d_initial + (n * HV + hv) * (K * V) + kv, d_state, in_kv)


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    widest = padded(arguments["V"])
    return [
        triton.Config({"BV": min(block, widest)}, num_warps=warps, num_stages=stages)
        for block, warps, stages in ((32, 4, 1), (32, 4, 2), (64, 8, 1), (64, 8, 2), (16, 4, 2), (32, 8, 2), (64, 4, 1))
    ]


def _flops(arguments: dict[str, Any]) -> int:
    """Three products with the state and two inside the chunk."""
    (chunks, _, size, _), heads = arguments["aqk"].shape, arguments["HV"]
    return chunks * heads * 2 * size * arguments["V"] * (3 * arguments["K"] + 2 * size)


SCAN_FORWARD = Kernel(scan_forward, _candidates, _flops, writes=("o", "r", "states", "final"))
SCAN_BACKWARD = Kernel(scan_backward, _candidates, _flops, writes=("dz", "d_states", "d_initial"))
