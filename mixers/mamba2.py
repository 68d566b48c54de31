"""Mamba-2 (Dao and Gu, arXiv 2405.21060), parameters and computation as in mamba-ssm 2.3.2.post1's Mamba2.

    [z, x, B, C, dt] = in_proj(u)
    x, B, C = SiLU(causal depthwise convolution of [x, B, C])
    dt_t = softplus(dt + dt_bias),  g_t = -exp(A_log) · dt_t                      per head
    S_t = exp(g_t) · S_{t-1} + dt_t · x_t B_tᵀ,  y_t = S_t C_t + D · x_t          S: P × N per head
    out_proj(RMSNorm(y · SiLU(z)))                                                 the norm over each group's heads

B and C are shared by the heads of a group. A is drawn from U(1, 16), dt log-uniform in [0.001, 0.1].
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from mixers.backends import MAMBA_SSM, TORCH, mamba_ssm
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import ShortConvolution, accumulator_dtype, inverse_softplus_dt, require
from mixers.parts.ssd import ssd_chunked, ssd_recurrent
from mixers.registry import register_mixer

KERNEL_CHUNK = 256  # tokens a chunk of mamba-ssm's kernels, as its layer sets it


class Mamba2Config(MixerConfig):
    """d_inner (twice the width if None) / head_dim heads, each with a state of head_dim × d_state numbers.

    n_groups: how many B and C there are for all heads. conv_width: taps of the short convolution.
    chunk_size: tokens a chunk of the torch form, a power of two; it changes the speed, never the result.
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

    def forward(self, y: Tensor, z: Tensor, backend: str = TORCH.name) -> Tensor:
        """y, z: [..., size] → in y's dtype."""
        if backend == MAMBA_SSM.name:
            norm = mamba_ssm("ops.triton.layernorm_gated").rmsnorm_fn
            group_size = y.shape[-1] // self.groups
            return norm(y, self.weight, None, z=z, eps=self.eps, group_size=group_size, norm_before_gate=False)
        h = (y * F.silu(z.to(accumulator_dtype(y, z)))).unflatten(-1, (self.groups, -1))
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h.flatten(-2) * self.weight).to(y.dtype)


@register_mixer("mamba2", display="Mamba-2")
class Mamba2(Mixer):
    """State: `conv` [B, conv_width - 1, channels], the convolution's last inputs, and `ssm` [B, H, P, N]."""

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
        """x: [B, T, H, P]; dt before its activation [B, T, H]; B, C: [B, T, G, N] → y like x, the state."""
        dtype = accumulator_dtype(x, self.A_log)
        dt = F.softplus(dt.to(dtype) + self.dt_bias)
        g = -self.A_log.to(dtype).exp() * dt
        scan = ssd_recurrent if x.shape[1] == 1 else partial(ssd_chunked, chunk_size=self.config.chunk_size)
        y, ssm = scan(x.unsqueeze(3), g, dt, B.unsqueeze(3), C.unsqueeze(3), ssm)
        return y.squeeze(3) + self.D[:, None] * x, ssm

    def _by_mamba_ssm(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, ssm: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same by mamba-ssm's kernels."""
        A = -self.A_log.float().exp()
        if x.shape[1] == 1 and ssm is not None and not torch.is_grad_enabled():
            per_head = (self.heads, self.config.head_dim)
            update = mamba_ssm("ops.triton.selective_state_update").selective_state_update
            ssm = ssm.clone()  # updated in place
            # Strides of 0 tell the kernel that a head's channels share A, dt, dt_bias and D.
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
        """For each number of the state 5: decay 1, write 2, read 2. Norms, gates and activations are not counted."""
        products = self.in_proj.weight.numel() + self.out_proj.weight.numel() + self.conv1d.weight.numel()
        tail = 2 * (self.config.conv_width - 1) * self.conv1d.weight.shape[0]
        return Cost.recurrent(self.parameter_count(), products, self.d_inner * self.config.d_state, 5, tail)
