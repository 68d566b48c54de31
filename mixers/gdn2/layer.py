"""Gated DeltaNet-2 (arXiv 2605.22791): an erase gate per key channel and a write gate per value channel.

    b = erase_range · σ(W_b x),  w = σ(W_w x),  g = -exp(A_log) · softplus(W_f x + dt_bias)        W_f has low rank

The output is an RMSNorm per head times SiLU of a low-rank gate (the paper's recipe). Parameter names are those of
flash-linear-attention.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.backends import TORCH, Backend, needs_gpu
from mixers.gdn2.operator import KERNEL_CHUNK, gated_delta_rule_2, unserved
from mixers.parts.common import accumulator_dtype, inverse_softplus_dt
from mixers.parts.delta_layer import DeltaConfig, DeltaMixer
from mixers.registry import register_mixer


class GatedDeltaNet2Config(DeltaConfig):
    """Options of Gated DeltaNet-2."""

    erase_gate: Literal["channel", "scalar"] = "channel"
    """`channel`, or `scalar`: the mean over channels replaces the gate (the paper's ablation; the projection stays)."""
    write_gate: Literal["channel", "scalar"] = "channel"
    """`channel`, or `scalar`: the mean over channels replaces the gate (the paper's ablation; the projection stays)."""
    erase_range: Literal[1, 2] = 1
    """Upper end of the erase gate b: 1 for [0, 1], 2 for [0, 2], which lets the state change sign."""
    output_gate: Literal["silu", "sigmoid"] = "silu"
    """Activation of the output gate. The paper uses SiLU, flash-linear-attention a sigmoid."""


def _absent(device: torch.device, dtype: torch.dtype, config: GatedDeltaNet2Config | None) -> str | None:
    if (reason := needs_gpu(device, dtype)) is not None or config is None:
        return reason
    return unserved(config.head_dim, config.value_dim or config.head_dim, config.chunk_size or KERNEL_CHUNK)


TRITON = Backend("triton", _absent)


@register_mixer("gdn2", display="Gated DeltaNet-2")
class GatedDeltaNet2(DeltaMixer):
    """The layer: gates and their projections around the operator `gated_delta_rule_2`."""

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
        """Compute the log-decay and both gates from x, then run the operator; see `DeltaMixer.operate`."""
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
        # The mean is over gates, not over projections, so the activation comes before the operator.
        dtype = accumulator_dtype(x)
        g = -self.A_log.to(dtype).exp()[:, None] * F.softplus(g.to(dtype) + self.dt_bias.unflatten(0, (self.heads, -1)))
        b, w = self.config.erase_range * b.sigmoid(), w.sigmoid()
        if self.config.erase_gate == "scalar":
            b = b.mean(-1, keepdim=True).expand_as(b)
        if self.config.write_gate == "scalar":
            w = w.mean(-1, keepdim=True).expand_as(w)
        return run(q, k, v, g, b, w)

    def gate(self, x: Tensor) -> Tensor:
        """Return the low-rank output gate before its activation, [B, T, HV·V]."""
        return self.g_proj(x)
