"""Decoding form of Gated Delta Rule-2: one launch for any batch and a few tokens, with the state on chip.

At K = V = 128, a step moves the fp32 state in and out (128 KB) and 2 KB of vectors per sequence and head. The state's
bytes determine the time of decoding, so nothing else is stored or launched.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from torch import Tensor

from mixers.gdn2.kernels.launch import padded
from mixers.gdn2.kernels.recurrent import RECURRENT_STEPS


@lru_cache(maxsize=64)
def _starts(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(offsets, device=device)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None, dt_bias: Tensor | None,
    initial: Tensor | None, offsets: tuple[int, ...], scale: float, erase_range: float, norm: bool, in_place: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the operator token by token. Returns (o [B, T, HV, V], final state [N, HV, K, V] in fp32).

    offsets: the N sequences' first tokens and the total, in tokens of the flattened B × T. norm: L2-normalise q and k.
    in_place: write the final state over `initial`, which must be fp32 and contiguous. The other arguments are those of
    `gated_delta_rule_2`.
    """
    q, k, v, g, b, w = (x.contiguous() for x in (q, k, v, g, b, w))
    (*_, heads, key_dim), (*_, value_heads, value_dim) = q.shape, v.shape
    sequences = len(offsets) - 1
    if initial is not None:
        initial = initial.to(torch.float32).contiguous()
    o = torch.empty_like(v)
    final = initial
    if not in_place:
        final = torch.empty(sequences, value_heads, key_dim, value_dim, dtype=torch.float32, device=q.device)
    RECURRENT_STEPS(
        lambda meta: (sequences * value_heads * triton.cdiv(value_dim, meta["BV"]),),
        q=q, k=k, v=v, g=g, b=b, w=w, A_log=A_log, dt_bias=dt_bias, initial=initial,
        sequence_start=_starts(offsets, q.device), o=o, final=final, scale=scale, erase_range=erase_range,
        H=heads, HV=value_heads, K=key_dim, V=value_dim, KP=padded(key_dim),
        NORM=norm, ACTIVATE=A_log is not None, HAS_INITIAL=initial is not None,
    )  # fmt: skip
    return o, final
