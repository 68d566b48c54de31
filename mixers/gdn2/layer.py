"""Gated DeltaNet-2 (arXiv 2605.22791): an erase gate per key channel and a write gate per value channel.

    b = erase_range · σ(W_b x),  w = σ(W_w x),  g = -exp(A_log) · softplus(W_f x + dt_bias)        W_f has low rank

The output is an RMSNorm per head times SiLU of a low-rank gate (the paper's recipe). Parameter names are those of
flash-linear-attention. Options undo each difference from Gated DeltaNet and from KDA by itself. With all of them
undone, and one value head per key head, the layer computes that mixer's function of parameters with the same names and
initial values.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mixers.backends import TORCH, Backend, needs_gpu
from mixers.gdn2.operator import KERNEL_CHUNK, gated_delta_rule_2, unserved
from mixers.identity import Neutral
from mixers.parts.common import accumulator_dtype, inverse_softplus_dt
from mixers.parts.delta_layer import BoundedDecayConfig, DeltaMixer, initial_decay_rates, log_decay
from mixers.registry import register_mixer


class GatedDeltaNet2Config(BoundedDecayConfig):
    """Options of Gated DeltaNet-2."""

    erase_gate: Literal["channel", "scalar", "head"] = "channel"
    """`channel`; `scalar`: the mean over channels replaces the gate (the paper's ablation; the projection stays); or
    `head`: the projection has one output per key head."""
    write_gate: Literal["channel", "scalar", "head", "tied"] = "channel"
    """`channel`; `scalar`, as for the erase gate; `head`: the projection has one output per value head; or `tied`: the
    erase gate of each head, which must be `head`, writes as well, as β of Gated DeltaNet and KDA does."""
    erase_range: Literal[1, 2] = 1
    """Upper end of the erase gate b: 1 for [0, 1], 2 for [0, 2], which lets the state change sign."""
    output_gate: Literal["silu", "sigmoid"] = "silu"
    """Activation of the output gate. The paper uses SiLU, flash-linear-attention a sigmoid."""
    output_gate_projection: Annotated[Literal["low_rank", "full"], Neutral("low_rank")] = "low_rank"
    """`low_rank`: through `value_dim` channels, with a bias; or `full`: one matrix, no bias, as in Gated DeltaNet."""
    decay: Annotated[Literal["channel", "head"], Neutral("channel")] = "channel"
    """`channel`: a decay per key channel, projected through `value_dim` channels; or `head`: one decay per key head,
    projected by one matrix, as in Gated DeltaNet."""
    initial_rate_min: Annotated[Literal[0, 1], Neutral(1)] = 1
    """Lower end of the initial decay rates exp(A_log), which are uniform up to 16; 0 in Gated DeltaNet."""

    @model_validator(mode="after")
    def _tied_to_a_gate_per_head(self) -> GatedDeltaNet2Config:
        if self.write_gate == "tied" and self.erase_gate != "head":
            raise ValueError(
                f"write_gate: 'tied' writes with one erase gate per head, and erase_gate is {self.erase_gate!r}; set "
                "erase_gate: head"
            )
        return self


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
        if config.decay == "head":
            self.a_proj = nn.Linear(d_model, self.heads, bias=False)
        else:
            self.f_proj = nn.Sequential(
                nn.Linear(d_model, self.value_dim, bias=False), nn.Linear(self.value_dim, key_width, bias=False)
            )
        self.b_proj = nn.Linear(d_model, self.heads if config.erase_gate == "head" else key_width, bias=False)
        if config.write_gate != "tied":
            writes = self.value_heads if config.write_gate == "head" else value_width
            self.w_proj = nn.Linear(d_model, writes, bias=False)
        self.A_log = nn.Parameter(initial_decay_rates(self.heads, config.lower_bound, config.initial_rate_min))
        self.dt_bias = nn.Parameter(inverse_softplus_dt(self.heads if config.decay == "head" else key_width))
        if config.output_gate_projection == "full":
            self.g_proj = nn.Linear(d_model, value_width, bias=False)
        else:
            self.g_proj = nn.Sequential(
                nn.Linear(d_model, self.value_dim, bias=False), nn.Linear(self.value_dim, value_width, bias=True)
            )

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-decay and the erase gate, [B, T, H, K or 1], and the write gate, [B, T, HV, V or 1].

        x: [B, T, D]. The last size is 1 where all channels of a head have one value.
        """
        g, b, w = self._projections(x)
        dtype = accumulator_dtype(x)
        b = self.config.erase_range * b.sigmoid()
        # The mean is over gates, not over projections.
        b = b.mean(-1, keepdim=True) if self.config.erase_gate == "scalar" else b
        w = b.repeat_interleave(self.value_heads // self.heads, 2) if w is None else w.sigmoid()
        w = w.mean(-1, keepdim=True) if self.config.write_gate == "scalar" else w
        return log_decay(g.to(dtype), self.A_log, self.dt_bias, self.config.lower_bound), b, w

    def operate(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, recurrent: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Compute the log-decay and both gates from x, then run the operator; see `DeltaMixer.operate`."""
        run = partial(
            gated_delta_rule_2,
            initial_state=recurrent,
            output_final_state=True,
            use_qk_l2norm=True,
            chunk_size=self.config.chunk_size,
            backend=TRITON.name if backend == TRITON.name else self.form(x.shape[1]),
        )
        config = self.config
        if config.lower_bound is None and config.decay == config.erase_gate == config.write_gate == "channel":
            # The kernels activate projections themselves, which saves writing and reading the gates.
            activation = dict(A_log=self.A_log, dt_bias=self.dt_bias, erase_range=float(config.erase_range))
            return run(q, k, v, *self._projections(x), **activation)
        return run(q, k, v, *self.gates(x))

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `gates` activates, in its shapes but before a mean; None for a write gate that is tied."""
        # Autograd sums the gradient of x in the reverse order of these products; another order rounds differently.
        g = (self.a_proj if self.config.decay == "head" else self.f_proj)(x).unflatten(-1, (self.heads, -1))
        b = self.b_proj(x).unflatten(-1, (self.heads, -1))
        w = None if self.config.write_gate == "tied" else self.w_proj(x).unflatten(-1, (self.value_heads, -1))
        return g, b, w

    def gate(self, x: Tensor) -> Tensor:
        """Return the output gate before its activation, [B, T, HV·V]."""
        return self.g_proj(x)
