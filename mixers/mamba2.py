"""Mamba-2 (Dao and Gu, arXiv 2405.21060), with the parameters and computation of mamba-ssm 2.3.2.post1.

    [z, x, B, C, dt] = in_proj(u)
    x, B, C = SiLU(causal depthwise convolution of [x, B, C])
    dt_t = softplus(dt + dt_bias),  g_t = -exp(A_log) · dt_t                      per head
    S_t = exp(g_t) · S_{t-1} + dt_t · x_t B_tᵀ,  y_t = S_t C_t + D · x_t          S: P × N per head
    out_proj(RMSNorm(y · SiLU(z)))                                                 the norm over each group's heads

The heads of a group share B and C. At initialisation, A is drawn from U(1, 16) and dt log-uniformly in [0.001, 0.1].
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from mixers.backends import MAMBA_SSM, TORCH, mamba_ssm
from mixers.identity import INCIDENTAL
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import (
    Normalise,
    ShortConvolution,
    accumulator_dtype,
    initial_log_rates,
    inverse_softplus_dt,
    is_power_of_two,
    require,
)
from mixers.parts.ssd import ssd_chunked, ssd_recurrent
from mixers.registry import register_mixer

KERNEL_CHUNK = 256  # tokens per chunk of mamba-ssm's kernels, the value that its layer uses


class Mamba2Config(MixerConfig):
    """Options of Mamba-2, with d_inner / head_dim heads that have a state of head_dim × d_state numbers each."""

    d_inner: PositiveInt | None = None
    """Inner width; None for twice the model's width."""
    d_state: PositiveInt = 64
    """State numbers per channel of a head: the length of B and C."""
    head_dim: PositiveInt = 64
    """Channels per head, a divisor of `d_inner`."""
    n_groups: PositiveInt = 1
    """Groups of heads that share one B and one C; a divisor of the number of heads."""
    conv_width: PositiveInt = 4
    """Taps of the short convolution."""
    chunk_size: Annotated[PositiveInt, INCIDENTAL] = 16
    """Tokens per chunk of the torch form, a power of two. It changes the speed, never the result."""


class GatedRMSNorm(nn.Module):
    """RMSNorm(y · SiLU(z)) over each of `groups` equal parts of the last axis, computed in at least fp32."""

    def __init__(self, size: int, groups: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups = groups
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor, backend: str = TORCH.name) -> Tensor:
        """Gate y by z, then norm. y, z: [..., size] → like y, in its dtype."""
        if backend == MAMBA_SSM.name:
            norm = mamba_ssm("ops.triton.layernorm_gated").rmsnorm_fn
            group_size = y.shape[-1] // self.groups
            return norm(y, self.weight, None, z=z, eps=self.eps, group_size=group_size, norm_before_gate=False)
        h = (y * F.silu(z.to(accumulator_dtype(y, z)))).unflatten(-1, (self.groups, -1))
        h = Normalise.apply(h, 1 / h.shape[-1], self.eps)
        return (h.flatten(-2) * self.weight).to(y.dtype)


@register_mixer("mamba2", display="Mamba-2")
class Mamba2(Mixer):
    """The Mamba-2 layer.

    State: `conv` [B, conv_width - 1, channels], the convolution's last inputs, and `ssm` [B, H, P, N].
    """

    config_class = Mamba2Config
    backends = (MAMBA_SSM, TORCH)

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
            is_power_of_two(c.chunk_size),
            f"mamba2.chunk_size: {c.chunk_size} is not a power of two; take 16 or another power of two",
        )
        self.shared = c.n_groups * c.d_state
        channels = self.d_inner + 2 * self.shared
        self.in_proj = nn.Linear(d_model, self.d_inner + channels + self.heads, bias=False)
        self.conv1d = ShortConvolution(channels, c.conv_width, bias=True)
        self.dt_bias = nn.Parameter(inverse_softplus_dt(self.heads))
        self.A_log = nn.Parameter(initial_log_rates(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.d_inner, c.n_groups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Project, convolve, scan, norm and project back; see `Mixer.forward`."""
        c, backend = self.config, self.implementation(x)
        tail, ssm = (None, None) if state is None else (state["conv"], state["ssm"])
        z, xBC, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * self.shared, self.heads], -1)
        xBC, tail = self.conv1d(xBC, tail, backend)
        inputs, B, C = xBC.split([self.d_inner, self.shared, self.shared], -1)
        inputs = inputs.unflatten(-1, (self.heads, c.head_dim))
        B, C = (t.unflatten(-1, (c.n_groups, c.d_state)) for t in (B, C))
        scan = self._by_mamba_ssm if backend == MAMBA_SSM.name else self._in_torch
        y, ssm = scan(inputs, dt, B, C, ssm)
        y = self.out_proj(self.norm(y.flatten(2), z, backend).to(inputs.dtype))
        return y, {"conv": tail, "ssm": ssm} if return_state else None

    def _in_torch(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, ssm: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scan in torch. x: [B, T, H, P]; dt, before softplus: [B, T, H]; B, C: [B, T, G, N] → y like x, the state."""
        dtype = accumulator_dtype(x, self.A_log)
        dt = F.softplus(dt.to(dtype) + self.dt_bias)
        g = -self.A_log.to(dtype).exp() * dt
        scan = ssd_recurrent if x.shape[1] == 1 else partial(ssd_chunked, chunk_size=self.config.chunk_size)
        y, ssm = scan(x.unsqueeze(3), g, dt, B.unsqueeze(3), C.unsqueeze(3), ssm, skip=self.D)
        return y.squeeze(3), ssm

    def _by_mamba_ssm(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, ssm: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute `_in_torch` with mamba-ssm's kernels."""
        A = -self.A_log.float().exp()
        if x.shape[1] == 1 and ssm is not None and not torch.is_grad_enabled():
            per_head = (self.heads, self.config.head_dim)
            update = mamba_ssm("ops.triton.selective_state_update").selective_state_update
            ssm = ssm.clone()  # the kernel updates it in place
            # Expanded axes have stride 0: it tells the kernel that the channels of a head share A, dt, dt_bias and D.
            y = update(
                ssm,
                x[:, 0],
                dt[:, 0, :, None].expand(-1, -1, self.config.head_dim),
                A[:, None, None].expand(*per_head, self.config.d_state),
                B[:, 0],
                C[:, 0],
                self.D[:, None].expand(per_head),
                dt_bias=self.dt_bias[:, None].expand(per_head),
                dt_softplus=True,
            )
            return y.unsqueeze(1), ssm
        scan = mamba_ssm("ops.triton.ssd_combined").mamba_chunk_scan_combined
        return scan(
            x, dt, A, B, C, KERNEL_CHUNK, D=self.D, dt_bias=self.dt_bias, initial_states=ssm, dt_softplus=True,
            return_final_states=True,
        )  # fmt: skip

    def cost(self, seq_len: int) -> Cost:
        """Return the cost. FLOPs per number of the state: decay 1, write 2, read 2.

        Norms, gates and activations are not counted.
        """
        products = self.in_proj.weight.numel() + self.out_proj.weight.numel() + self.conv1d.weight.numel()
        tail = 2 * (self.config.conv_width - 1) * self.conv1d.weight.shape[0]
        return Cost.recurrent(self.parameter_count(), products, self.d_inner * self.config.d_state, 5, tail)
