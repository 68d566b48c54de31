"""The layer around the operators of Gated DeltaNet, KDA and Gated DeltaNet-2.

Projections to q, k and v, each through a short convolution and SiLU; q and k L2-normalised per head; the operator;
gated RMSNorm per head; output projection. Parameter names are those of flash-linear-attention's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mixers.backends import TORCH
from mixers.identity import INCIDENTAL, Neutral
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import (
    Normalise,
    ShortConvolution,
    accumulator_dtype,
    initial_log_rates,
    is_power_of_two,
    require,
)


class DeltaConfig(MixerConfig):
    """Options that all delta-rule mixers share."""

    heads: PositiveInt
    """Query and key heads."""
    head_dim: PositiveInt
    """Channels per query and key head."""
    value_heads: PositiveInt | None = None
    """Value heads, a multiple of `heads`; None for as many as `heads`."""
    value_dim: PositiveInt | None = None
    """Channels per value head; None for `head_dim`."""
    conv_width: PositiveInt = 4
    """Taps of the short convolutions over q, k and v."""
    chunk_size: Annotated[PositiveInt | None, INCIDENTAL] = None
    """Tokens per chunk, a power of two; None for 64 in kernels and 16 in torch. It never changes the result."""
    norm_eps: float = 1e-5
    """Number added to the mean square in the output RMSNorm."""


class ScalarWriteConfig(DeltaConfig):
    """Options of delta-rule mixers with one write strength β per head."""

    beta_range: Literal[1, 2] = 1
    """Upper end of β: 1 for [0, 1], 2 for [0, 2], which lets the state change sign (arXiv 2411.12537)."""


class BoundedDecayConfig(DeltaConfig):
    """Options of delta-rule mixers with a decay per channel."""

    lower_bound: Annotated[float | None, Field(ge=-5, lt=0), Neutral(None)] = None
    """Lower bound of the log-decay per token, in [-5, 0), for g = lower_bound · σ(exp(A_log) · (f(x) + dt_bias)), which
    is flash-linear-attention's `safe_gate`; None for g = -exp(A_log) · softplus(f(x) + dt_bias), without a bound."""


def log_decay(projection: Tensor, A_log: Tensor, dt_bias: Tensor, lower_bound: float | None) -> Tensor:
    """Return the log-decay g ≤ 0 of both forms of `BoundedDecayConfig.lower_bound`, like projection.

    projection: [B, T, H, K], in the dtype of the result; A_log: [H]; dt_bias: [H·K].
    """
    raw = projection + dt_bias.unflatten(0, (A_log.shape[0], -1))
    rate = A_log.to(raw.dtype).exp()[:, None]
    return -rate * F.softplus(raw) if lower_bound is None else lower_bound * (rate * raw).sigmoid()


def initial_decay_rates(heads: int, lower_bound: float | None, low: Literal[0, 1] = 1) -> Tensor:
    """Return the initial A_log [heads]: logarithms of rates in [low, 16], or 0 for a decay with a bound, as in fla."""
    return initial_log_rates(heads, low) if lower_bound is None else torch.zeros(heads)


class GatedNorm(nn.Module):
    """RMSNorm of each head's output, times an activation of the gate."""

    def __init__(self, size: int, eps: float, activation: Literal["silu", "sigmoid"]):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.activation = activation

    def forward(self, o: Tensor, gate: Tensor, backend: str = TORCH.name) -> Tensor:
        """Norm and gate o. o, gate: [..., size] → like o. Any backend but torch uses fla's fused kernel."""
        if backend != TORCH.name:
            from fla.modules.norm.fused_norm_gate import rms_norm_gated

            return rms_norm_gated(o, gate.to(o.dtype), self.weight, None, activation=self.activation, eps=self.eps)
        h = Normalise.apply(o.to(accumulator_dtype(o)), 1 / o.shape[-1], self.eps) * self.weight
        activation = F.silu if self.activation == "silu" else torch.sigmoid
        return (h * activation(gate.to(h.dtype))).to(o.dtype)


class DeltaMixer(Mixer):
    """Base of the delta-rule mixers. Subclasses add their gates' parameters and implement `operate` and `gate`.

    State: `conv` [B, conv_width - 1, 2·H·K + HV·V], the last inputs of the convolutions over q, k and v; `recurrent`
    [B, HV, K, V], in fp32.
    """

    config: DeltaConfig

    def __init__(self, d_model: int, config: DeltaConfig, output_gate: Literal["silu", "sigmoid"]):
        super().__init__(d_model, config)
        self.heads, self.head_dim = config.heads, config.head_dim
        self.value_heads = config.value_heads or config.heads
        self.value_dim = config.value_dim or config.head_dim
        require(
            self.value_heads % self.heads == 0,
            f"value_heads: {self.value_heads} is no multiple of heads={self.heads}; choose a multiple",
        )
        require(
            config.chunk_size is None or is_power_of_two(config.chunk_size),
            f"chunk_size: {config.chunk_size} is no power of two; choose 16, 32, 64 or 128",
        )
        key_width, value_width = self.heads * self.head_dim, self.value_heads * self.value_dim
        self.q_proj = nn.Linear(d_model, key_width, bias=False)
        self.k_proj = nn.Linear(d_model, key_width, bias=False)
        self.v_proj = nn.Linear(d_model, value_width, bias=False)
        self.q_conv1d = ShortConvolution(key_width, config.conv_width)
        self.k_conv1d = ShortConvolution(key_width, config.conv_width)
        self.v_conv1d = ShortConvolution(value_width, config.conv_width)
        self.o_norm = GatedNorm(self.value_dim, config.norm_eps, output_gate)
        self.o_proj = nn.Linear(value_width, d_model, bias=False)
        self.widths = [key_width, key_width, value_width]

    def operate(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, recurrent: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Compute the gates from x [B, T, D], then run the operator on q, k and v. Subclasses implement it.

        q, k: [B, T, H, K], not yet L2-normalised; v: [B, T, HV, V]; recurrent: [B, HV, K, V] or None; backend: the
        implementation to use. Returns o like v, and the final state [B, HV, K, V].
        """
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """Return the output gate before its activation, [B, T, HV·V]. Subclasses implement it."""
        raise NotImplementedError

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Project, convolve, run the operator, norm, gate and project back; see `Mixer.forward`."""
        backend = self.implementation(x)
        tails = (None, None, None) if state is None else state["conv"].split(self.widths, -1)
        q, q_tail = self.q_conv1d(self.q_proj(x), tails[0], backend)
        k, k_tail = self.k_conv1d(self.k_proj(x), tails[1], backend)
        v, v_tail = self.v_conv1d(self.v_proj(x), tails[2], backend)
        q, k = q.unflatten(-1, (self.heads, -1)), k.unflatten(-1, (self.heads, -1))
        v = v.unflatten(-1, (self.value_heads, -1))
        o, recurrent = self.operate(q, k, v, x, None if state is None else state["recurrent"], backend)
        o = self.o_norm(o, self.gate(x).unflatten(-1, (self.value_heads, -1)), backend)
        y = self.o_proj(o.flatten(-2))
        if not return_state:
            return y, None
        return y, {"conv": torch.cat([q_tail, k_tail, v_tail], -1), "recurrent": recurrent}

    def form(self, steps: int) -> Literal["recurrent", "chunked"]:
        """Return the form of the operator in torch: recurrent for a single token, chunked for more."""
        return "recurrent" if steps == 1 else "chunked"

    def cost(self, seq_len: int) -> Cost:
        """Return the cost. FLOPs per number of the state: decay 1, erase read 2, rank-one write 2, output read 2.

        Norms, gates and activations are not counted.
        """
        products = sum(m.weight.numel() for m in self.modules() if isinstance(m, (nn.Linear, ShortConvolution)))
        tail = 2 * (self.config.conv_width - 1) * sum(self.widths)
        state = self.value_heads * self.head_dim * self.value_dim
        return Cost.recurrent(self.parameter_count(), products, state, 7, tail)


FLA_SHORT = 64  # fla's layers run up to this many tokens one by one if no gradient is needed


def by_fla(
    chunked: Callable[..., tuple[Tensor, Tensor]],
    recurrent: Callable[..., tuple[Tensor, Tensor]],
    inputs: dict[str, Tensor],
    initial_state: Tensor | None,
    beta_range: int,
    lower_bound: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one of two operators of flash-linear-attention, chosen as fla's layers choose.

    chunked, recurrent: the operators. inputs: q, k, v from the convolutions; g, beta before their activation; A_log,
    dt_bias. initial_state: [B, HV, K, V] or None. beta_range, lower_bound: as in ScalarWriteConfig and
    BoundedDecayConfig. Returns o and the final state.
    """
    gradient = torch.is_grad_enabled() and any(
        t.requires_grad for t in (*inputs.values(), initial_state) if t is not None
    )
    operator = recurrent if not gradient and inputs["q"].shape[1] <= FLA_SHORT else chunked
    bound = {} if lower_bound is None else {"lower_bound": lower_bound}
    if bound and operator is chunked:
        bound["safe_gate"] = True  # without it the chunked kernels ignore the bound
    return operator(
        **inputs,
        **bound,
        initial_state=None if initial_state is None else initial_state.float(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=beta_range == 2,
    )
