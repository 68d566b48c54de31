"""Softmax attention with rotary positions, full or windowed: the baseline, and half of every hybrid.

Parameter names and the rotate-half pairing of RoPE are those of LLaMA, so that weights move to and from transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import accumulator_dtype, require
from mixers.registry import register_mixer

QUERY_BLOCK = 1024
# Free room of a copied cache, in tokens. A long cache gets half its length instead.
ROOM = 64


class AttentionConfig(MixerConfig):
    """Options of attention."""

    heads: PositiveInt
    """Query heads."""
    head_dim: PositiveInt | None = None
    """Channels per head, an even number; None for the model's width divided by `heads`."""
    kv_heads: PositiveInt | None = None
    """Key and value heads, a divisor of `heads`; None for as many as `heads`. With fewer, query heads share them."""
    window: PositiveInt | None = None
    """Tokens that a query sees, its own included; None for all."""
    rope_base: PositiveFloat = 10000.0
    """Base of RoPE's frequencies."""


def turns(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of RoPE's angles, each [B, T, 1, half]. positions: [B, T]."""
    frequencies = base ** (-torch.arange(half, device=positions.device, dtype=dtype) / half)
    angles = positions.to(dtype)[..., None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [B, T, H, D] with an even D. cos, sin: from `turns`, in at least fp32. Returns y like x."""
    a, b = x.to(cos.dtype).split(x.shape[-1] // 2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def appended(past: Tensor, new: Tensor) -> Tensor:
    """Append new [B, T, H, D] to past [B, S, H, D] along time. Copies `past` only if there is no free room after it.

    Without gradients the result is a view of a buffer [B, H, room, D], laid out by head as attention reads it. The
    buffer notes how much of it is written. The first continuation of a state takes the room after it; a second
    continuation of the same state finds the room taken and copies. So a state that a caller holds never changes.
    """
    held, total = past.shape[1], past.shape[1] + new.shape[1]
    if torch.is_grad_enabled() or past.dtype != new.dtype:
        return torch.cat([past, new], 1)
    buffer, first = past._base, 0
    if hasattr(buffer, "written"):
        first = past.storage_offset() // past.stride(1)
        written = buffer.transpose(1, 2)[:, first : buffer.written]
        whole = (written.shape, written.stride()) == (past.shape, past.stride())
    if not hasattr(buffer, "written") or not whole or first + total > buffer.shape[2]:
        batch, _, heads, size = past.shape
        buffer, first = past.new_empty(batch, heads, total + max(ROOM, total // 2), size), 0
        buffer.transpose(1, 2)[:, :held] = past
    columns = buffer.transpose(1, 2)
    columns[:, first + held : first + total] = new
    buffer.written = first + total
    return columns[:, first : first + total]


@register_mixer("attention", display="Transformer")
class Attention(Mixer):
    """Multi-head attention. State: `k`, `v` [B, S, kv_heads, D], aligned to the right; `length` [B], the tokens seen.

    A row that has seen fewer than S tokens is padded on the left, and the mask hides the padding, so sequences of
    different lengths decode in one batch.
    """

    config_class = AttentionConfig

    def __init__(self, d_model: int, config: AttentionConfig):
        super().__init__(d_model, config)
        require(
            config.head_dim is not None or d_model % config.heads == 0,
            f"attention.heads: {config.heads} does not divide the width {d_model}; change heads or give head_dim",
        )
        self.heads = config.heads
        self.head_dim = config.head_dim or d_model // config.heads
        self.kv_heads = config.kv_heads or config.heads
        require(
            self.heads % self.kv_heads == 0,
            f"attention.kv_heads: {self.kv_heads} does not divide heads={self.heads}; choose a divisor",
        )
        require(self.head_dim % 2 == 0, f"attention.head_dim: {self.head_dim} is odd; RoPE needs an even one")
        self.q_proj = nn.Linear(d_model, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, d_model, bias=False)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Attend from the tokens of x to the cache and to themselves; see `Mixer.forward`."""
        batch, steps, _ = x.shape
        window = self.config.window
        positions = torch.arange(steps, device=x.device)[None]
        if state is not None:
            positions = state["length"][:, None] + positions
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        angles = turns(positions, self.head_dim // 2, self.config.rope_base, accumulator_dtype(q))
        q, k = rotate(q, *angles), rotate(k, *angles)
        seen = x.new_zeros(batch, dtype=torch.long) if state is None else state["length"]
        if state is not None:
            k, v = (
                appended(state[key], t) if return_state else torch.cat([state[key], t], 1)
                for key, t in (("k", k), ("v", v))
            )
        cached = k.shape[1] - steps
        ragged = cached > 0 and bool((seen < cached).any())
        queries, keys, values = (t.transpose(1, 2) for t in (q, k, v))
        if steps == 1:  # heads that share keys take the place of time, so no key is repeated
            queries = queries.reshape(batch, self.kv_heads, -1, self.head_dim)
        elif self.kv_heads < self.heads:
            keys, values = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (keys, values))
        blocks, starts = [], range(0, steps, QUERY_BLOCK)
        # Without an explicit mask torch uses its flash kernels. With one, blocks of queries bound the memory of scores.
        within = window is None or cached + steps <= window
        if within and not ragged and (cached == 0 or steps == 1):
            blocks.append(F.scaled_dot_product_attention(queries, keys, values, is_causal=steps > 1))
            starts = range(0)
        for start in starts:
            stop = min(start + QUERY_BLOCK, steps)
            first = 0 if window is None else max(0, cached + start - window + 1)
            rows = torch.arange(cached + start, cached + stop, device=x.device)[:, None]
            cols = torch.arange(first, cached + stop, device=x.device)[None, :]
            mask = cols <= rows
            if window is not None:
                mask = mask & (cols > rows - window)
            if ragged:
                mask = mask & (cols >= (cached - seen).view(-1, 1, 1, 1))
            keep = slice(first, cached + stop)
            part = queries if steps == 1 else queries[:, :, start:stop]
            blocks.append(F.scaled_dot_product_attention(part, keys[:, :, keep], values[:, :, keep], mask))
        mixed = torch.cat(blocks, 2).reshape(batch, self.heads, steps, self.head_dim)
        y = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        if not return_state:
            return y, None
        if window is not None and k.shape[1] > window - 1:
            k, v = (t[:, t.shape[1] - (window - 1) :] for t in (k, v))
        return y, {"k": k, "v": v, "length": seen + steps}

    @staticmethod
    def cat_states(states: list[State]) -> State:
        """Join states along the batch, with the shorter caches padded on the left."""
        longest = max(s["k"].shape[1] for s in states)
        pad = {
            key: torch.cat([F.pad(s[key], (0, 0, 0, 0, longest - s[key].shape[1], 0)) for s in states])
            for key in ("k", "v")
        }
        return {**pad, "length": torch.cat([s["length"] for s in states])}

    def cost(self, seq_len: int) -> Cost:
        """Return the cost. The FLOPs of a query grow with the number of keys that it sees."""
        window = min(self.config.window or seq_len, seq_len)
        # A query at position t sees min(t + 1, window) keys. This is the exact mean over the sequence.
        visible = (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
        parameters = self.parameter_count()
        width = self.heads * self.head_dim

        def flops(keys: float) -> float:
            return 2 * parameters + 4 * keys * width

        floats = 2 * self.kv_heads * self.head_dim
        return Cost(
            parameters=parameters,
            state_floats=floats * window,
            flops_per_token=flops(visible),
            decode_flops=flops(min(self.config.window or seq_len + 1, seq_len + 1)),
            # Keys and values in bf16: a step reads all earlier ones and writes its own.
            decode_bytes=2 * floats * (window + 1),
        )
