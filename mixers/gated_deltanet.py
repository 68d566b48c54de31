"""Gated DeltaNet (arXiv 2412.06464): one decay and one write strength per head.

    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

Initialisation and names follow flash-linear-attention 0.6.0's GatedDeltaNet.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.backends import FLA, TORCH
from mixers.parts.common import accumulator_dtype, inverse_softplus_dt, l2_normalise
from mixers.parts.delta_layer import DeltaMixer, ScalarWriteConfig, by_fla
from mixers.parts.delta_rule import delta_rule_chunked, operands, without_autocast
from mixers.registry import register_mixer


@without_autocast
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    backend: Literal["recurrent", "chunked"] = "chunked",
) -> tuple[Tensor, Tensor]:
    """q, k: [B, T, H, K]; v: [B, T, HV, V]; g ≤ 0, beta: [B, T, HV]; initial_state: [B, HV, K, V].

    Returns (o [B, T, HV, V], final state). scale defaults to K^-1/2.
    """
    dtype = v.dtype
    q, k, v, g, beta, state = operands(q, k, v, g.unsqueeze(-1), beta, scale, initial_state)
    if backend == "chunked":
        o, state = delta_rule_chunked(q, k, v, g, beta, beta, state, chunk_size)
        return o.to(dtype), state
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None] * state
        old = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t] * (v[:, t] - old))
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1).to(dtype), state


class GatedDeltaNetConfig(ScalarWriteConfig):
    """output_gate: its activation; the paper's is SiLU."""

    output_gate: Literal["silu", "sigmoid"] = "silu"


@register_mixer("gated_deltanet", display="Gated DeltaNet")
class GatedDeltaNet(DeltaMixer):
    """The layer: decay exp(-exp(A_log) · softplus(a(x) + dt_bias)), write strength σ(b(x)), SiLU output gate."""

    config_class = GatedDeltaNetConfig
    backends = (FLA, TORCH)

    def __init__(self, d_model: int, config: GatedDeltaNetConfig):
        super().__init__(d_model, config, config.output_gate)
        self.a_proj = nn.Linear(d_model, self.value_heads, bias=False)
        self.b_proj = nn.Linear(d_model, self.value_heads, bias=False)
        # U(0, 16) can draw 0, whose logarithm is -inf: a head that would never forget, and no gradient for it.
        self.A_log = nn.Parameter(torch.empty(self.value_heads).uniform_(0, 16).clamp(min=1e-4).log())
        self.dt_bias = nn.Parameter(inverse_softplus_dt(self.value_heads))
        self.g_proj = nn.Linear(d_model, self.value_heads * self.value_dim, bias=False)

    def operate(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, recurrent: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
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
        return self.g_proj(x)
