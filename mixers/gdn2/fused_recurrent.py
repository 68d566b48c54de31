"""Decoding form of Gated Delta Rule-2: one launch for any batch and a few tokens, with the state on chip.

At K = V = 128, a step moves the fp32 state in and out (128 KB) and 2 KB of vectors per sequence and head. The state's
bytes determine the time of decoding, so nothing else is stored or launched.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    if initial is not None:
        initial = initial.to(torch.float32).contiguous()
    if torch.compiler.is_compiling():
        numbers = offsets, scale, erase_range, norm
        o, final = torch.ops.mixerbench.gdn2_steps(q, k, v, g, b, w, A_log, dt_bias, initial, *numbers)
        return o, initial.copy_(final) if in_place else final
    final = initial if in_place else _state(q, v, offsets)
    return _launch(q, k, v, g, b, w, A_log, dt_bias, initial, offsets, scale, erase_range, norm, final), final


def _state(q: Tensor, v: Tensor, offsets: Sequence[int]) -> Tensor:
    return torch.empty(len(offsets) - 1, v.shape[2], q.shape[3], v.shape[3], dtype=torch.float32, device=q.device)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None, dt_bias: Tensor | None,
    initial: Tensor | None, offsets: Sequence[int], scale: float, erase_range: float, norm: bool, final: Tensor,
) -> Tensor:  # fmt: skip
    """Run the kernel on contiguous inputs, write the final state to `final`, and return o."""
    (*_, heads, key_dim), (*_, value_heads, value_dim) = q.shape, v.shape
    sequences = len(offsets) - 1
    o = torch.empty_like(v)
    RECURRENT_STEPS(
        lambda meta: (sequences * value_heads * triton.cdiv(value_dim, meta["BV"]),),
        q=q, k=k, v=v, g=g, b=b, w=w, A_log=A_log, dt_bias=dt_bias, initial=initial,
        sequence_start=_starts(tuple(offsets), q.device), o=o, final=final, scale=scale, erase_range=erase_range,
        H=heads, HV=value_heads, K=key_dim, V=value_dim, KP=padded(key_dim),
        NORM=norm, ACTIVATE=A_log is not None, HAS_INITIAL=initial is not None,
    )  # fmt: skip
    return o


# torch.compile sees one operator and does not look inside, at a launch that it cannot trace.
@torch.library.custom_op("mixerbench::gdn2_steps", mutates_args=())
def _steps_operator(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None, dt_bias: Tensor | None,
    initial: Tensor | None, offsets: Sequence[int], scale: float, erase_range: float, norm: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    final = _state(q, v, offsets)
    return _launch(q, k, v, g, b, w, A_log, dt_bias, initial, offsets, scale, erase_range, norm, final), final


@_steps_operator.register_fake
def _(q, k, v, g, b, w, A_log, dt_bias, initial, offsets, scale, erase_range, norm):
    return torch.empty_like(v), _state(q, v, offsets)
