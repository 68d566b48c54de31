"""Kimi Delta Attention (arXiv 2510.26692): a decay per key channel, one write strength per head.

    S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

Initialisation and parameter names follow KimiDeltaAttention of flash-linear-attention 0.6.0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mixers.backends import FLA, TORCH, Backend
from mixers.parts.common import accumulator_dtype, inverse_softplus_dt, l2_normalise
from mixers.parts.delta_layer import (
    BoundedDecayConfig,
    DeltaMixer,
    ScalarWriteConfig,
    by_fla,
    initial_decay_rates,
    log_decay,
)
from mixers.parts.delta_rule import scalar_delta_rule
from mixers.registry import register_mixer


def kimi_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int | None = None,
    backend: Literal["recurrent", "chunked"] = "chunked",
) -> tuple[Tensor, Tensor]:
    """The KDA operator: the gated delta rule with a log-decay g ≤ 0 per key channel, [B, T, HV, K].

    q, k: [B, T, H, K]; v: [B, T, HV, V]; beta: [B, T, HV]; initial_state: [B, HV, K, V], zeros if None. scale defaults
    to K^-1/2. Returns (o [B, T, HV, V], final state).
    """
    return scalar_delta_rule(q, k, v, g, beta, scale, initial_state, chunk_size, backend)


class KimiDeltaAttentionConfig(BoundedDecayConfig, ScalarWriteConfig):
    """Options of KDA."""


def _absent(device: torch.device, dtype: torch.dtype, config: KimiDeltaAttentionConfig | None) -> str | None:
    if config is not None and config.head_dim > 256:
        return f"fla's KDA takes head_dim up to 256, not {config.head_dim}; use torch"
    return FLA.absent(device, dtype, config)


@register_mixer("kda", display="KDA")
class KimiDeltaAttention(DeltaMixer):
    """The layer: a low-rank decay per channel with A per value head, β = σ(b(x)), a low-rank sigmoid output gate."""

    config_class = KimiDeltaAttentionConfig
    config: KimiDeltaAttentionConfig
    backends = (Backend(FLA.name, _absent), TORCH)

    def __init__(self, d_model: int, config: KimiDeltaAttentionConfig):
        super().__init__(d_model, config, output_gate="sigmoid")
        decay_width = self.value_heads * self.head_dim
        self.f_proj = nn.Sequential(
            nn.Linear(d_model, self.value_dim, bias=False), nn.Linear(self.value_dim, decay_width, bias=False)
        )
        self.b_proj = nn.Linear(d_model, self.value_heads, bias=False)
        self.A_log = nn.Parameter(initial_decay_rates(self.value_heads, config.lower_bound))
        self.dt_bias = nn.Parameter(inverse_softplus_dt(decay_width))
        self.g_proj = nn.Sequential(
            nn.Linear(d_model, self.value_dim, bias=False),
            nn.Linear(self.value_dim, self.value_heads * self.value_dim, bias=True),
        )

    def operate(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, recurrent: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Compute log-decays and write strengths from x, then run the delta rule; see `DeltaMixer.operate`."""
        g, beta = self.f_proj(x).unflatten(-1, (self.value_heads, -1)), self.b_proj(x)
        if backend == FLA.name:
            from fla.ops.kda import chunk_kda, fused_recurrent_kda

            inputs = dict(q=q, k=k, v=v, g=g, beta=beta, A_log=self.A_log, dt_bias=self.dt_bias)
            options = (self.config.beta_range, self.config.lower_bound)
            return by_fla(chunk_kda, fused_recurrent_kda, inputs, recurrent, *options)
        dtype = accumulator_dtype(x)
        return kimi_delta_rule(
            l2_normalise(q),
            l2_normalise(k),
            v,
            log_decay(g.to(dtype), self.A_log, self.dt_bias, self.config.lower_bound),
            self.config.beta_range * beta.sigmoid(),
            initial_state=recurrent,
            chunk_size=self.config.chunk_size,
            backend=self.form(x.shape[1]),
        )

    def gate(self, x: Tensor) -> Tensor:
        """Return the low-rank output gate before its sigmoid, [B, T, HV·V]."""
        return self.g_proj(x)
