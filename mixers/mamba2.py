"""Mamba-2 (Dao and Gu, arXiv 2405.21060), parameters and computation as in mamba-ssm 2.3.2.post1's Mamba2.

    [z, x, B, C, dt] = in_proj(u)
    x, B, C = SiLU(causal depthwise convolution of [x, B, C])
    dt_t = softplus(dt + dt_bias),  g_t = -exp(A_log) · dt_t                      per head
    S_t = exp(g_t) · S_{t-1} + dt_t · x_t B_tᵀ,  y_t = S_t C_t + D · x_t          S: P × N per head
    out_proj(RMSNorm(y · SiLU(z)))                                                 the norm over each group's heads

B and C are shared by the heads of a group. A is drawn from U(1, 16), dt log-uniform in [0.001, 0.1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from mixers.common import ShortConvolution, accumulator_dtype, inverse_softplus_dt, require
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.registry import register_mixer
from mixers.ssd import ssd_chunked, ssd_recurrent


class Mamba2Config(MixerConfig):
    """d_inner (twice the width if None) / head_dim heads, each with a state of head_dim × d_state numbers.

    n_groups: how many B and C there are for all heads. conv_width: taps of the short convolution.
    chunk_size: tokens a chunk, a power of two; it changes the speed, never the result.
    """

    d_inner: PositiveInt | None = None
    d_state: PositiveInt = 64
    head_dim: PositiveInt = 64
    n_groups: PositiveInt = 1
    conv_width: PositiveInt = 4
    chunk_size: PositiveInt = 32


class GatedRMSNorm(nn.Module):
    """RMSNorm(y · SiLU(z)) over each of `groups` equal parts of the last axis, computed in at least fp32."""

    def __init__(self, size: int, groups: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups = groups
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        h = (y * F.silu(z.to(accumulator_dtype(y, z)))).unflatten(-1, (self.groups, -1))
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return h.flatten(-2) * self.weight


@register_mixer("mamba2", display="Mamba-2")
class Mamba2(Mixer):
    """State: `conv` [B, conv_width - 1, channels], the convolution's last inputs, and `ssm` [B, H, P, N]."""

    config_class = Mamba2Config

    def __init__(self, d_model: int, config: Mamba2Config):
        super().__init__(d_model, config)
        c = config
        self.d_inner = c.d_inner or 2 * d_model
        require(
            self.d_inner % c.head_dim == 0,
            f"mamba2.head_dim: {c.head_dim} does not divide d_inner={self.d_inner}; change head_dim or d_inner",
        )
        self.heads = self.d_inner // c.head_dim
        require(
            self.heads % c.n_groups == 0,
            f"mamba2.n_groups: {c.n_groups} does not divide the {self.heads} heads; choose a divisor",
        )
        require(
            c.chunk_size & (c.chunk_size - 1) == 0,
            f"mamba2.chunk_size: {c.chunk_size} is not a power of two; take 32 or another power of two",
        )
        self.shared = c.n_groups * c.d_state
        channels = self.d_inner + 2 * self.shared
        self.in_proj = nn.Linear(d_model, self.d_inner + channels + self.heads, bias=False)
        self.conv1d = ShortConvolution(channels, c.conv_width, bias=True)
        self.dt_bias = nn.Parameter(inverse_softplus_dt(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.d_inner, c.n_groups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        c = self.config
        tail, ssm = (None, None) if state is None else (state["conv"], state["ssm"])
        z, xBC, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * self.shared, self.heads], -1)
        xBC, tail = self.conv1d(xBC, tail)
        inputs, B, C = xBC.split([self.d_inner, self.shared, self.shared], -1)
        inputs = inputs.unflatten(-1, (self.heads, c.head_dim))
        B, C = (t.unflatten(-1, (c.n_groups, 1, c.d_state)) for t in (B, C))

        dtype = accumulator_dtype(x, self.A_log)
        dt = F.softplus(dt.to(dtype) + self.dt_bias)
        g = -self.A_log.to(dtype).exp() * dt
        if x.shape[1] == 1:
            y, ssm = ssd_recurrent(inputs.unsqueeze(3), g, dt, B, C, ssm)
        else:
            y, ssm = ssd_chunked(inputs.unsqueeze(3), g, dt, B, C, ssm, chunk_size=c.chunk_size)
        y = y.squeeze(3) + self.D[:, None] * inputs
        y = self.out_proj(self.norm(y.flatten(2), z).to(inputs.dtype))
        return y, {"conv": tail, "ssm": ssm} if return_state else None

    def cost(self, seq_len: int) -> Cost:
        """The recurrent form's FLOPs: projections, convolution, and for each number of the state 5: decay 1, write 2,
        read 2. Norms, gates and activations are not counted."""
        state = self.d_inner * self.config.d_state
        products = self.in_proj.weight.numel() + self.out_proj.weight.numel() + self.conv1d.weight.numel()
        return Cost(
            parameters=self.parameter_count(),
            state_floats=state,
            flops_per_token=2 * products + 5 * state,
        )
