"""The recurrence token by token with the state on chip, for decoding and short prefills. It has no gradient."""

from typing import Any

import triton
import triton.language as tl

from mixers.gdn2.kernels.launch import Kernel, padded
from mixers.gdn2.kernels.tiles import softplus


@triton.jit
def recurrent_steps(
    q, k, v, g, b, w, A_log, dt_bias, initial, sequence_start, o, final,
    scale, erase_range,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr,
    NORM: tl.constexpr, ACTIVATE: tl.constexpr, HAS_INITIAL: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Run one program per sequence, value head and block of V.

    `final` may be `initial`, since each program writes only what it has read.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    n, hv = pid // (HV * BLOCKS), pid // BLOCKS % HV
    h = hv // (HV // H)
    c, x = tl.arange(0, KP), pid % BLOCKS * BV + tl.arange(0, BV)
    in_k, in_v = c < K, x < V
    at = (n * HV + hv) * (K * V) + c[:, None] * V + x[None, :]
    in_kv = in_k[:, None] & in_v[None, :]

    state = tl.zeros((KP, BV), tl.float32)
    if HAS_INITIAL:
        state += tl.load(initial + at, in_kv, 0.0)
    for t in range(tl.load(sequence_start + n), tl.load(sequence_start + n + 1)):
        key, value = (t * H + h) * K + c, (t * HV + hv) * V + x
        q_t = tl.load(q + key, in_k, 0.0).to(tl.float32)
        k_t = tl.load(k + key, in_k, 0.0).to(tl.float32)
        b_t = tl.load(b + key, in_k, 0.0).to(tl.float32)
        g_t = tl.load(g + key, in_k, 0.0).to(tl.float32)
        v_t = tl.load(v + value, in_v, 0.0).to(tl.float32)
        w_t = tl.load(w + value, in_v, 0.0).to(tl.float32)
        if NORM:
            q_t *= tl.rsqrt(tl.sum(q_t * q_t, 0) + 1e-6)
            k_t *= tl.rsqrt(tl.sum(k_t * k_t, 0) + 1e-6)
        if ACTIVATE:
            bias = tl.load(dt_bias + h * K + c, in_k, 0.0).to(tl.float32)
            g_t = -tl.exp(tl.load(A_log + h).to(tl.float32)) * softplus(g_t + bias)
            b_t = erase_range * tl.sigmoid(b_t)
            w_t = tl.sigmoid(w_t)
        state *= tl.exp(g_t)[:, None]
        erased = tl.sum(state * (b_t * k_t)[:, None], 0)
        state += k_t[:, None] * (w_t * v_t - erased)[None, :]
        tl.store(o + value, (scale * tl.sum(state * q_t[:, None], 0)).to(o.dtype.element_ty), in_v)
    tl.store(final + at, state, in_kv)


def _candidates(arguments: dict[str, Any], capability: int) -> list[triton.Config]:
    # Only one: a step is too short to tune, and it may overwrite its own input. A row of 32 numbers of state is a full
    # line of 128 bytes; blocks of V this narrow let a few sequences fill the GPU.
    return [triton.Config({"BV": min(32, padded(arguments["V"]))}, num_warps=4, num_stages=1)]


def _flops(arguments: dict[str, Any]) -> int:
    """Count per token and number of the state: decay 1, erase read 2, rank-one write 2, output read 2."""
    tokens, heads, value_dim = arguments["v"].shape[0] * arguments["v"].shape[1], arguments["HV"], arguments["V"]
    return 7 * tokens * heads * arguments["K"] * value_dim


RECURRENT_STEPS = Kernel(recurrent_steps, _candidates, _flops)
