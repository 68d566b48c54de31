"""The scan from chunk to chunk with the state on chip, forward and backward."""

from typing import Any

import torch
import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import dot


@triton.jit
def _read_states(x, at, K: tl.constexpr, V: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, PRESENT: tl.constexpr):
    """Load columns `at` of a state [K, V] from x as ⌈K/KB⌉ tiles [KB, BV]. Without PRESENT, return zeros."""
    tiles = ()
    for j in tl.static_range((K + KB - 1) // KB):
        c = j * KB + tl.arange(0, KB)
        tile = tl.zeros((KB, BV), tl.float32)
        if PRESENT:
            tile += tl.load(x + c[:, None] * V + at[None, :], (c < K)[:, None] & (at < V)[None, :], 0.0)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def _write_states(x, at, tiles, K: tl.constexpr, V: tl.constexpr, KB: tl.constexpr):
    """Store the tiles of `_read_states`."""
    for j in tl.static_range((K + KB - 1) // KB):
        c = j * KB + tl.arange(0, KB)
        mask = (c < K)[:, None] & (at < V)[None, :]
        tl.store(x + c[:, None] * V + at[None, :], tiles[j].to(x.dtype.element_ty), mask)


@triton.jit
def scan_forward(
    v, w, q_decayed, e_decayed, k_decayed, total, inverse, aqk, initial, sequence_start, sequence_chunk,
    o, r, states, final,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, KB: tl.constexpr,
    ACTIVATE: tl.constexpr, HAS_INITIAL: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Compute R = A (z - e S), O = q S + Aqk R, S ← total ⊙ S + kᵀ R, chunk after chunk.

    One program per sequence, value head and block of V. KEEP: also write R and the state that each chunk starts from.
    """
    IO: tl.constexpr = q_decayed.dtype.element_ty
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    n, hv = pid // (HV * BLOCKS), pid // BLOCKS % HV
    h = hv // (HV // H)
    i, x = tl.arange(0, C), pid % BLOCKS * BV + tl.arange(0, BV)
    in_v = (x < V)[None, :]
    first, last = tl.load(sequence_chunk + n), tl.load(sequence_chunk + n + 1)
    begin, end = tl.load(sequence_start + n), tl.load(sequence_start + n + 1)

    source = final
    if HAS_INITIAL:
        source = initial
    state = _read_states(source + (n * HV + hv) * (K * V), x, K, V, KB, BV, HAS_INITIAL)
    for chunk in range(first, last):
        key_tile, value_tile = (chunk * H + h) * (C * K), chunk * HV + hv
        cc = (chunk * H + h) * (C * C) + i[:, None] * C + i[None, :]
        token = begin + (chunk - first) * C + i
        at = (token * HV + hv)[:, None] * V + x[None, :]
        mask = (token < end)[:, None] & in_v
        z = tl.load(v + at, mask, 0.0).to(tl.float32)
        w_i = tl.load(w + at, mask, 0.0).to(tl.float32)
        z *= tl.sigmoid(w_i) if ACTIVATE else w_i
        if KEEP:
            _write_states(states + value_tile * (K * V), x, state, K, V, KB)
        e_s = tl.zeros((C, BV), tl.float32)
        o_i = tl.zeros((C, BV), tl.float32)
        for j in tl.static_range((K + KB - 1) // KB):
            c = j * KB + tl.arange(0, KB)
            ck, in_k = key_tile + i[:, None] * K + c[None, :], (c < K)[None, :]
            entering = state[j].to(IO)
            e_s = dot(tl.load(e_decayed + ck, in_k, 0.0), entering, e_s, PRECISION)
            o_i = dot(tl.load(q_decayed + ck, in_k, 0.0), entering, o_i, PRECISION)
        r_i = dot(tl.load(inverse + cc), (z - e_s).to(IO), None, PRECISION).to(IO)
        o_i = dot(tl.load(aqk + cc), r_i, o_i, PRECISION)
        tl.store(o + at, o_i.to(o.dtype.element_ty), mask)
        if KEEP:
            tl.store(r + value_tile * (C * V) + i[:, None] * V + x[None, :], r_i, in_v)
        left = ()
        for j in tl.static_range((K + KB - 1) // KB):
            c = j * KB + tl.arange(0, KB)
            k_i = tl.load(k_decayed + key_tile + i[None, :] * K + c[:, None], (c < K)[:, None], 0.0)
            keep = tl.load(total + (chunk * H + h) * K + c, c < K, 0.0)
            left = left + (dot(k_i, r_i, state[j] * keep[:, None], PRECISION),)
        state = left
    _write_states(final + (n * HV + hv) * (K * V), x, state, K, V, KB)


@triton.jit
def scan_backward(
    do, q_decayed, e_decayed, k_decayed, total, inverse, aqk, d_final, sequence_start, sequence_chunk,
    dz, d_states, d_initial,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, KB: tl.constexpr,
    HAS_FINAL: tl.constexpr, PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Compute dR = Aqkᵀ dO + k dS, dz = Aᵀ dR, dS ← total ⊙ dS + qᵀ dO - eᵀ dz, from the last chunk to the first.

    One program per sequence, value head and block of V. Writes dz, and dS at the end of each chunk.
    """
    IO: tl.constexpr = q_decayed.dtype.element_ty
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    n, hv = pid // (HV * BLOCKS), pid // BLOCKS % HV
    h = hv // (HV // H)
    i, x = tl.arange(0, C), pid % BLOCKS * BV + tl.arange(0, BV)
    in_v = (x < V)[None, :]
    first, last = tl.load(sequence_chunk + n), tl.load(sequence_chunk + n + 1)
    begin, end = tl.load(sequence_start + n), tl.load(sequence_start + n + 1)

    source = d_initial
    if HAS_FINAL:
        source = d_final
    d_state = _read_states(source + (n * HV + hv) * (K * V), x, K, V, KB, BV, HAS_FINAL)
    for step in range(0, last - first):
        chunk = last - 1 - step
        key_tile, value_tile = (chunk * H + h) * (C * K), chunk * HV + hv
        cc = (chunk * H + h) * (C * C) + i[None, :] * C + i[:, None]  # transposed
        token = begin + (chunk - first) * C + i
        at = (token * HV + hv)[:, None] * V + x[None, :]
        do_i = tl.load(do + at, (token < end)[:, None] & in_v, 0.0).to(IO)
        _write_states(d_states + value_tile * (K * V), x, d_state, K, V, KB)
        dr = dot(tl.load(aqk + cc), do_i, None, PRECISION)
        for j in tl.static_range((K + KB - 1) // KB):
            c = j * KB + tl.arange(0, KB)
            k_i = tl.load(k_decayed + key_tile + i[:, None] * K + c[None, :], (c < K)[None, :], 0.0)
            dr = dot(k_i, d_state[j].to(IO), dr, PRECISION)
        dz_i = dot(tl.load(inverse + cc), dr.to(IO), None, PRECISION)
        tl.store(dz + value_tile * (C * V) + i[:, None] * V + x[None, :], dz_i.to(IO), in_v)
        minus_dz = (-dz_i).to(IO)
        left = ()
        for j in tl.static_range((K + KB - 1) // KB):
            c = j * KB + tl.arange(0, KB)
            kc, in_k = key_tile + i[None, :] * K + c[:, None], (c < K)[:, None]
            keep = tl.load(total + (chunk * H + h) * K + c, c < K, 0.0)
            tile = dot(tl.load(q_decayed + kc, in_k, 0.0), do_i, d_state[j] * keep[:, None], PRECISION)
            left = left + (dot(tl.load(e_decayed + kc, in_k, 0.0), minus_dz, tile, PRECISION),)
        d_state = left
    _write_states(d_initial + (n * HV + hv) * (K * V), x, d_state, K, V, KB)


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    """Return the (BV, num_warps, num_stages) without spills. Narrow blocks of V let few sequences fill the GPU."""
    if arguments["q_decayed"].dtype == torch.float32:
        fitting = [(32, 8, 1)]
    elif arguments["K"] > 128:
        fitting = [(16, 4, 1), (16, 8, 1)] + ([(32, 8, 1)] if capability >= 90 else [])
    elif capability < 90:
        fitting = [(16, 4, 2), (32, 4, 2), (32, 8, 2), (16, 8, 2)]
    else:
        fitting = [(32, 4, 2), (32, 4, 1), (16, 4, 2), (64, 8, 1)]
    widest = padded(arguments["V"])
    within = {(min(block, widest), warps, stages) for block, warps, stages in fitting}
    return [triton.Config({"BV": block}, num_warps=warps, num_stages=stages) for block, warps, stages in sorted(within)]


def _flops(arguments: dict[str, Any]) -> int:
    """Count three products with the state and two inside the chunk."""
    (chunks, _, size, _), heads = arguments["aqk"].shape, arguments["HV"]
    return chunks * heads * 2 * size * arguments["V"] * (3 * arguments["K"] + 2 * size)


SCAN_FORWARD = Kernel(scan_forward, _candidates, _flops)
SCAN_BACKWARD = Kernel(scan_backward, _candidates, _flops)
