"""Gated DeltaNet-2 (arXiv 2605.22791): an erase gate per key channel and a write gate per value channel.

b = σ(W_b x) · erase_range, w = σ(W_w x), g = -exp(A_log) · softplus(W_f x + dt_bias) with W_f of low rank; output
RMSNorm per head times SiLU of a low-rank gate (the paper's recipe). Parameter names are flash-linear-attention's.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.backends import TORCH, Backend, needs_gpu
from mixers.gdn2.operator import gated_delta_rule_2, unserved
from mixers.parts.common import accumulator_dtype, inverse_softplus_dt
from mixers.parts.delta_layer import DeltaConfig, DeltaMixer
from mixers.registry import register_mixer


class GatedDeltaNet2Config(DeltaConfig):
    """erase_gate, write_gate: `channel`, or `scalar` for the mean over the channel axis broadcast back (the paper's
    ablation; the projections stay). erase_range: 1 for b in [0, 1], 2 for b in [0, 2]. output_gate: its activation; the
    paper's is SiLU, flash-linear-attention's sigmoid.
    """

    erase_gate: Literal["channel", "scalar"] = "channel"
    write_gate: Literal["channel", "scalar"] = "channel"
    erase_range: Literal[1, 2] = 1
    output_gate: Literal["silu", "sigmoid"] = "silu"


def _absent(device: torch.device, dtype: torch.dtype, config: GatedDeltaNet2Config | None) -> str | None:
    if (reason := needs_gpu(device, dtype)) is not None or config is None:
        return reason
    return unserved(config.head_dim, config.value_dim or config.head_dim, config.chunk_size)


TRITON = Backend("triton", _absent)


@register_mixer("gdn2", display="Gated DeltaNet-2")
class GatedDeltaNet2(DeltaMixer):
    """The layer around `gated_delta_rule_2`."""

    config_class = GatedDeltaNet2Config
    config: GatedDeltaNet2Config
    backends = (TRITON, TORCH)

    def __init__(self, d_model: int, config: GatedDeltaNet2Config):
        super().__init__(d_model, config, config.output_gate)
        key_width, value_width = self.heads * self.head_dim, self.value_heads * self.value_dim
        self.f_proj = nn.Sequential(
            nn.Linear(d_model, self.value_dim, bias=False), nn.Linear(self.value_dim, key_width, bias=False)
        )
        self.b_proj = nn.Linear(d_model, key_width, bias=False)
        self.w_proj = nn.Linear(d_model, value_width, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus_dt(key_width))
        self.g_proj = nn.Sequential(
            nn.Linear(d_model, self.value_dim, bias=False), nn.Linear(self.value_dim, value_width, bias=True)
        )

    def operate(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, recurrent: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        g = self.f_proj(x).unflatten(-1, (self.heads, -1))
        b = self.b_proj(x).unflatten(-1, (self.heads, -1))
        w = self.w_proj(x).unflatten(-1, (self.value_heads, -1))
        run = partial(
            gated_delta_rule_2,
            initial_state=recurrent,
            output_final_state=True,
            use_qk_l2norm=True,
            chunk_size=self.config.chunk_size,
            backend=TRITON.name if backend == TRITON.name else self.form(x.shape[1]),
        )
        if self.config.erase_gate == self.config.write_gate == "channel":
            activation = dict(A_log=self.A_log, dt_bias=self.dt_bias, erase_range=float(self.config.erase_range))
            return run(q, k, v, g, b, w, **activation)
        # A mean over channels is taken of gates, not of projections, so these are activated here.
        dtype = accumulator_dtype(x)
        g = -self.A_log.to(dtype).exp()[:, None] * F.softplus(g.to(dtype) + self.dt_bias.unflatten(0, (self.heads, -1)))
        b, w = self.config.erase_range * b.sigmoid(), w.sigmoid()
        if self.config.erase_gate == "scalar":
            b = b.mean(-1, keepdim=True).expand_as(b)
        if self.config.write_gate == "scalar":
            w = w.mean(-1, keepdim=True).expand_as(w)
        return run(q, k, v, g, b, w)

    def gate(self, x: Tensor) -> Tensor:
        return self.g_proj(x)
