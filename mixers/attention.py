"""Softmax attention with rotary positions, full or over a sliding window: the baseline, and half of every hybrid.

Parameter names and the rotate-half pairing of RoPE are LLaMA's, so that weights move to and from transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from mixers.common import accumulator_dtype, require
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.registry import register_mixer

QUERY_BLOCK = 1024


class AttentionConfig(MixerConfig):
    """heads × head_dim is the inner width; kv_heads < heads shares keys and values among heads.

    window: how many tokens a query sees, itself included; None is all. rope_base: RoPE's base.
    """

    heads: PositiveInt
    head_dim: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    window: PositiveInt | None = None
    rope_base: PositiveFloat = 10000.0


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """RoPE. x: [B, T, H, D] with an even D, positions: [B, T] → the same shape; angles in at least fp32."""
    half = x.shape[-1] // 2
    dtype = accumulator_dtype(x)
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = positions.to(dtype)[..., None, None] * frequencies  # [B, T, 1, D/2]
    cos, sin = angles.cos(), angles.sin()
    a, b = x.to(dtype).split(half, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


@register_mixer("attention", display="Transformer")
class Attention(Mixer):
    """Multi-head attention. State: `k`, `v` [B, S, kv_heads, D] aligned to the right, `length` [B] tokens seen.

    A row that has seen fewer tokens than S has padding on its left, which the mask hides, so sequences of
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
        batch, steps, _ = x.shape
        window = self.config.window
        seen = x.new_zeros(batch, dtype=torch.long) if state is None else state["length"]
        positions = seen[:, None] + torch.arange(steps, device=x.device)
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), positions, self.config.rope_base)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), positions, self.config.rope_base)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if state is not None:
            k, v = torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1)
        cached = k.shape[1] - steps
        ragged = cached > 0 and bool((seen < cached).any())
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        if self.kv_heads < self.heads:
            keys, values = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (keys, values))
        queries, blocks, starts = q.transpose(1, 2), [], range(0, steps, QUERY_BLOCK)
        # Without a mask of ours torch takes its flash kernels; else in blocks, so that scores never exist all at once.
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
            blocks.append(
                F.scaled_dot_product_attention(queries[:, :, start:stop], keys[:, :, keep], values[:, :, keep], mask)
            )
        y = self.o_proj(torch.cat(blocks, 2).transpose(1, 2).flatten(-2))
        if not return_state:
            return y, None
        if window is not None and k.shape[1] > window - 1:
            k, v = (t[:, t.shape[1] - (window - 1) :] for t in (k, v))
        return y, {"k": k, "v": v, "length": seen + steps}

    @staticmethod
    def cat_states(states: list[State]) -> State:
        longest = max(s["k"].shape[1] for s in states)
        pad = {
            key: torch.cat([F.pad(s[key], (0, 0, 0, 0, longest - s[key].shape[1], 0)) for s in states])
            for key in ("k", "v")
        }
        return {**pad, "length": torch.cat([s["length"] for s in states])}

    def cost(self, seq_len: int) -> Cost:
        window = min(self.config.window or seq_len, seq_len)
        # A query at position t sees min(t + 1, window) keys; the mean over the sequence, exactly.
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
            # Keys and values in bf16: those seen so far are read, those of the token written.
            decode_bytes=2 * floats * (window + 1),
        )
