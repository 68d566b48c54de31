"""Gated DeltaNet (arXiv 2412.06464): one decay and one write strength per head.

    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

Initialisation and parameter names follow GatedDeltaNet of flash-linear-attention 0.6.0.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.backends import FLA, TORCH, Backend, fla_scalar_decay_gradient_absent
from mixers.parts.common import accumulator_dtype, initial_log_rates, inverse_softplus_dt, l2_normalise
from mixers.parts.delta_layer import DeltaMixer, ScalarWriteConfig, by_fla
from mixers.parts.delta_rule import scalar_delta_rule
from mixers.registry import register_mixer


def gated_delta_rule(
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
    """The Gated DeltaNet operator: the gated delta rule with one log-decay g ≤ 0 per head, [B, T, HV].

    q, k: [B, T, H, K]; v: [B, T, HV, V]; beta: [B, T, HV]; initial_state: [B, HV, K, V], zeros if None. scale defaults
    to K^-1/2. Returns (o [B, T, HV, V], final state).
    """
    return scalar_delta_rule(q, k, v, g.unsqueeze(-1), beta, scale, initial_state, chunk_size, backend)


def _absent(device: torch.device, dtype: torch.dtype, config: ScalarWriteConfig | None) -> str | None:
    if config is not None and config.head_dim > 256:
        return f"fla's Gated DeltaNet takes head_dim up to 256, not {config.head_dim}; use torch"
    return FLA.absent(device, dtype, config)


class GatedDeltaNetConfig(ScalarWriteConfig):
    """Options of Gated DeltaNet."""

    output_gate: Literal["silu", "sigmoid"] = "silu"
    """Activation of the output gate. The paper uses SiLU."""


@register_mixer("gated_deltanet", display="Gated DeltaNet")
class GatedDeltaNet(DeltaMixer):
    """The layer: decay exp(-exp(A_log) · softplus(a(x) + dt_bias)), write strength σ(b(x)), full-rank output gate."""

    config_class = GatedDeltaNetConfig
    backends = (Backend(FLA.name, _absent, fla_scalar_decay_gradient_absent), TORCH)

    def __init__(self, d_model: int, config: GatedDeltaNetConfig):
        super().__init__(d_model, config, config.output_gate)
        self.a_proj = nn.Linear(d_model, self.value_heads, bias=False)
        self.b_proj = nn.Linear(d_model, self.value_heads, bias=False)
        self.A_log = nn.Parameter(initial_log_rates(self.value_heads, low=0))
        self.dt_bias = nn.Parameter(inverse_softplus_dt(self.value_heads))
        self.g_proj = nn.Linear(d_model, self.value_heads * self.value_dim, bias=False)

    def operate(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, recurrent: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Compute log-decays and write strengths from x, then run the delta rule; see `DeltaMixer.operate`."""
        g, beta = self.a_proj(x), self.b_proj(x)
        if backend == FLA.name:
            from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

            inputs = dict(q=q, k=k, v=v, g=g, beta=beta, A_log=self.A_log, dt_bias=self.dt_bias)
            operators = chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
            return by_fla(*operators, inputs, recurrent, self.config.beta_range)
        dtype = accumulator_dtype(x)
        return gated_delta_rule(
            l2_normalise(q),
            l2_normalise(k),
            v,
            -self.A_log.to(dtype).exp() * F.softplus(g.to(dtype) + self.dt_bias),
            self.config.beta_range * beta.sigmoid(),
            initial_state=recurrent,
            chunk_size=self.config.chunk_size,
            backend=self.form(x.shape[1]),
        )

    def gate(self, x: Tensor) -> Tensor:
        """Return the output gate before its activation, [B, T, HV·V]."""
        return self.g_proj(x)
