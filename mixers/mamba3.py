"""Mamba-3, SISO and MIMO, with the parameters and computation of Mamba3 in mamba-ssm 2.3.2.post1.

There the kernels are in ops/triton/mamba3 and ops/tilelang/mamba3, and MIMO's decoding step is in ops/cute/mamba3.

    [z, x, B, C, dd_dt, dd_A, trap, angle] = in_proj(u)                    dd_dt, dd_A, trap per head
    dt_t = softplus(dd_dt + dt_bias)
    A_t  = min(-softplus(dd_A), -1e-4),  g_t = A_t · dt_t,  λ_t = σ(trap)
    θ_t  = θ_{t-1} + π · tanh(angle_t) · dt_t                              per head; all heads share angle
    B_t  = rotate(RMSNorm(B) + B_bias, θ_t),  C_t = rotate(RMSNorm(C) + C_bias, θ_t)

SISO, with a state S of P × N per head (exponential-trapezoidal discretisation):

    S_t = exp(g_t) · S_{t-1} + exp(g_t) · (1 - λ_t) · dt_t · x_{t-1} B_{t-1}ᵀ + λ_t · dt_t · x_t B_tᵀ
    y_t = (S_t C_t + D · x_t) · SiLU(z_t)

The λ, dt and decay of the current token weight the term of the previous token; the first token has no previous one.
MIMO of rank R has R pairs B_r, C_r per token and x_r = x · mimo_x[r]. Both terms are summed over r, and

    y_t = Σ_r mimo_o[r] · (S_t C_{t,r} + D · x_{t,r}) · SiLU(z_t · mimo_z[r])

A rotation turns (a, b) into (a cos θ - b sin θ, a sin θ + b cos θ). SISO pairs neighbours, (2i, 2i + 1), and MIMO pairs
(i, i + N/2). `rope_fraction` of the N numbers rotate: the pairs with the lowest i. There is no convolution.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from mixers.backends import MAMBA_SSM, TORCH, Backend, mamba_ssm, mamba_ssm_absent
from mixers.identity import INCIDENTAL
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import RMSNorm, accumulator_dtype, inverse_softplus_dt, is_power_of_two, require
from mixers.parts.ranks import GateRanks, SpreadRanks
from mixers.parts.ssd import ssd_chunked, ssd_recurrent
from mixers.registry import register_mixer

A_FLOOR = 1e-4
KERNEL_CHUNK = 64  # rows (tokens × rank) per chunk of mamba-ssm's kernels, the value that its layer recommends
MIMO_STATES, MIMO_HEADS = (16, 32, 64, 128, 256), (32, 64, 128)  # sizes that mamba-ssm tests its kernels with
# Rows (tokens × rank) per chunk of the torch form. About this many are fastest on a CPU.
CHUNK_ROWS = 32


class Mamba3Config(MixerConfig):
    """Options of Mamba-3, with d_inner / head_dim heads that have a state of head_dim × d_state numbers each."""

    mimo: bool
    """Whether there are several inputs and outputs per head (MIMO) or one (SISO). The mixer's name fixes it."""
    rank: PositiveInt | None = None
    """Pairs B, C per token; None for 4. Only for MIMO: SISO has one."""
    d_inner: PositiveInt | None = None
    """Inner width; None for twice the model's width."""
    d_state: PositiveInt = 64
    """State numbers per channel of a head: the length of B and C, an even number."""
    head_dim: PositiveInt = 64
    """Channels per head, a divisor of `d_inner`."""
    rope_fraction: Literal[0.5, 1.0] = 0.5
    """Fraction of `d_state` that rotates."""
    chunk_size: Annotated[PositiveInt | None, INCIDENTAL] = None
    """Tokens per chunk of the torch form, a power of two; None for about 32 / rank. It never changes the result."""


def advance_angles(angle: Tensor, dt: Tensor, start: Tensor | None) -> Tensor:
    """Return θ of every token, [b, T, H, K], in [0, 2π].

    angle: before its tanh, [b, T, K]; dt: [b, T, H]; start: θ of the token before the first, [b, H, K], or None. The
    sum is in fp64, because in fp32 the full turns would take up the digits of a late token's angle.
    """
    angles = math.pi * (angle.tanh().unsqueeze(2) * dt.unsqueeze(-1)).double().cumsum(1)
    if start is not None:
        angles = angles + start.unsqueeze(1)
    return angles.remainder(2 * math.pi).to(dt.dtype)


def turns(angles: Tensor, size: int, pairwise: bool) -> tuple[Tensor, Tensor]:
    """Return the factors of `rotate` that turn the K lowest pairs of `size` numbers, [..., H, 1, N] each.

    angles: [..., H, K], 2K ≤ N. pairwise: pair neighbours (2i, 2i + 1); otherwise pair (i, i + N/2).
    """
    angles = F.pad(angles, (0, size // 2 - angles.shape[-1]))  # the other pairs turn by 0
    cos, sin = angles.cos(), angles.sin()
    if pairwise:
        factors = torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)
    else:
        factors = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return factors[0].unsqueeze(-2), factors[1].unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairwise: bool) -> Tensor:
    """Rotate pairs of the last axis of x [..., H, R, N] by the factors of `turns`. Returns a tensor like x."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if pairwise else x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, swapped, sin)


def _absent(device: torch.device, dtype: torch.dtype, config: Mamba3Config | None) -> str | None:
    if (reason := mamba_ssm_absent(device, dtype, config)) is not None:
        return reason
    if dtype != torch.bfloat16:
        return f"its kernels compute in bfloat16, and this is {str(dtype).removeprefix('torch.')}; use torch"
    return None


def _siso_absent(device: torch.device, dtype: torch.dtype, config: Mamba3Config | None) -> str | None:
    if config is not None:
        for name, size in (("d_state", config.d_state), ("head_dim", config.head_dim)):
            if size < 16 or not is_power_of_two(size):
                return f"its kernels take {name} in powers of two from 16, not {size}; use torch"
        if int(config.d_state * config.rope_fraction) // 2 % 2:
            return f"its kernels take an even number of angles, which d_state={config.d_state} has not; use torch"
    return _absent(device, dtype, config)


def _mimo_absent(device: torch.device, dtype: torch.dtype, config: Mamba3Config | None) -> str | None:
    if config is not None:
        rank = config.rank or 4
        for name, size, known in (("d_state", config.d_state, MIMO_STATES), ("head_dim", config.head_dim, MIMO_HEADS)):
            if size not in known:
                return f"its kernels are tested for {name} in {known}, not for {size}; use torch"
        if rank not in (1, 2, 4, 8):
            return f"its kernels take a rank of 1, 2, 4 or 8, not {rank}; use torch"
    if (reason := _absent(device, dtype, config)) is not None:
        return reason
    if device.type == "cpu":
        return "its TileLang kernels need a CUDA device; use torch"
    if find_spec("tilelang") is None:
        return "TileLang is missing; pip install tilelang==0.1.8"
    return None


def cute_missing() -> str | None:
    """Return why mamba-ssm's decoding step of MIMO cannot run, or None if it can. Torch decodes if it cannot."""
    if find_spec("cutlass") is None or find_spec("quack") is None:
        return "CuTe is missing; pip install nvidia-cutlass-dsl quack-kernels"
    return None


class Mamba3(Mixer):
    """The Mamba-3 layer.

    State: `angle` [B, H, K], θ of the last token; `ssm` [B, H, P, N]; `k` [B, H, R, N], the last token's B after
    rotation; `v` [B, H, P], the last token's x before mimo_x.
    """

    config_class = Mamba3Config

    def __init__(self, d_model: int, config: Mamba3Config):
        super().__init__(d_model, config)
        c = config
        name = "mamba3_mimo" if c.mimo else "mamba3_siso"
        self.d_inner = c.d_inner or 2 * d_model
        require(
            self.d_inner % c.head_dim == 0,
            f"{name}.head_dim: {c.head_dim} does not divide d_inner={self.d_inner}; change head_dim or d_inner",
        )
        require(
            c.mimo or c.rank is None,
            f"{name}.rank: got {c.rank}, but SISO has no rank; remove it or take mamba3_mimo",
        )
        self.heads = self.d_inner // c.head_dim
        self.rank = (c.rank or 4) if c.mimo else 1
        self.angles = int(c.d_state * c.rope_fraction) // 2
        require(
            c.d_state % 2 == 0 and self.angles > 0,
            f"{name}.d_state: {c.d_state} has no pairs to rotate at rope_fraction={c.rope_fraction}; "
            "take an even d_state of at least 2 / rope_fraction",
        )
        self.chunk_size = c.chunk_size or 1 << max(0, (CHUNK_ROWS // self.rank).bit_length() - 1)
        require(
            is_power_of_two(self.chunk_size),
            f"{name}.chunk_size: {c.chunk_size} is not a power of two; take 32 or another power of two",
        )
        per_head = (self.heads, self.rank, c.head_dim)
        self.parts = [self.d_inner] * 2 + [self.rank * c.d_state] * 2 + [self.heads] * 3 + [self.angles]
        self.in_proj = nn.Linear(d_model, sum(self.parts), bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus_dt(self.heads))
        self.B_bias = nn.Parameter(torch.ones(self.heads, self.rank, c.d_state))
        self.C_bias = nn.Parameter(torch.ones(self.heads, self.rank, c.d_state))
        self.B_norm = RMSNorm(c.d_state)
        self.C_norm = RMSNorm(c.d_state)
        if c.mimo:
            self.mimo_x = nn.Parameter(torch.full(per_head, 1 / self.rank))
            self.mimo_z = nn.Parameter(torch.ones(per_head))
            self.mimo_o = nn.Parameter(torch.full(per_head, 1 / self.rank))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Project, scan, gate and project back; see `Mixer.forward`."""
        c = self.config
        z, v, B, C, dd_dt, dd_A, trap, angle = self.in_proj(x).split(self.parts, -1)
        z, v = (t.unflatten(-1, (self.heads, c.head_dim)) for t in (z, v))
        dtype = accumulator_dtype(x, self.dt_bias)
        dt = F.softplus(dd_dt.to(dtype) + self.dt_bias)
        g = (-F.softplus(dd_A.to(dtype))).clamp(max=-A_FLOOR) * dt
        B, C = (
            norm(t.to(dtype).unflatten(-1, (self.rank, c.d_state))) for t, norm in ((B, self.B_norm), (C, self.C_norm))
        )
        operate = self._in_torch
        if self.implementation(x) == MAMBA_SSM.name and self._kernels_serve(x.shape[1], state, return_state):
            operate = self._mimo_kernels if c.mimo else self._siso_kernels
        y, state = operate(z, v, B, C, dt, g, trap.to(dtype), angle.to(dtype), state)
        y = self.out_proj(y.flatten(2).to(v.dtype))
        return y, state if return_state else None

    def _in_torch(
        self, z: Tensor, v: Tensor, B: Tensor, C: Tensor, dt: Tensor, g: Tensor, trap: Tensor, angle: Tensor,
        state: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Rotate, scan and gate in torch. Returns the gated y [b, T, H, P] and the state.

        z, v: [b, T, H, P]; B, C after their norm: [b, T, R, N]; dt, g, trap: [b, T, H]; angle: [b, T, K]. trap and
        angle are before their activations.
        """
        c = self.config
        if state is None:
            start, ssm = None, None
            k = g.new_zeros(v.shape[0], self.heads, self.rank, c.d_state)
            last = v.new_zeros(v.shape[0], self.heads, c.head_dim)
        else:
            start, ssm, k, last = state["angle"], state["ssm"], state["k"], state["v"]
        angles = advance_angles(angle, dt, start)
        factors = turns(angles, c.d_state, pairwise=not c.mimo)
        B, C = (
            rotate(t.unsqueeze(2) + bias, *factors, pairwise=not c.mimo)
            for t, bias in ((B, self.B_bias), (C, self.C_bias))
        )  # [b, T, H, R, N]
        now, before = trap.sigmoid() * dt, (-trap).sigmoid() * dt
        inputs, last_inputs = (
            SpreadRanks.apply(t.to(g.dtype), self.mimo_x) if c.mimo else t.unsqueeze(-2) for t in (v, last)
        )
        previous = (last_inputs, k)
        if v.shape[1] == 1:
            y, ssm = ssd_recurrent(inputs, g, now, B, C, ssm, before, previous, self.D)
        else:
            y, ssm = ssd_chunked(inputs, g, now, B, C, ssm, before, previous, self.D, self.chunk_size)
        z = z.to(g.dtype)
        y = GateRanks.apply(y, z, self.mimo_z, self.mimo_o) if c.mimo else y.squeeze(-2) * F.silu(z)
        return y, {"angle": angles[:, -1], "ssm": ssm, "k": B[:, -1], "v": v[:, -1]}

    def _kernels_serve(self, steps: int, state: State | None, return_state: bool) -> bool:
        """Whether mamba-ssm has a kernel for this call.

        MIMO's scan accepts no state and gives the final state no gradient. MIMO's step needs CuTe.
        """
        if not self.config.mimo:
            return True
        if state is None:
            return not (return_state and torch.is_grad_enabled())
        return steps == 1 and not torch.is_grad_enabled() and cute_missing() is None

    def _siso_kernels(
        self, z: Tensor, v: Tensor, B: Tensor, C: Tensor, dt: Tensor, g: Tensor, trap: Tensor, angle: Tensor,
        state: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Compute `_in_torch` with mamba-ssm's Triton kernels, which work in bf16 whatever the input."""
        angle = angle.unsqueeze(2).expand(-1, -1, self.heads, -1)
        biases = self.C_bias.squeeze(1), self.B_bias.squeeze(1)
        entering = None
        if state is not None:
            entering = state["angle"].float(), state["ssm"], state["k"].squeeze(2), state["v"]
        if state is not None and v.shape[1] == 1 and not torch.is_grad_enabled():
            step = mamba_ssm("ops.triton.mamba3.mamba3_siso_step").mamba3_siso_step
            tokens = C[:, 0], B[:, 0], v[:, 0], g[:, 0], dt[:, 0], trap[:, 0]
            y, left = step(*tokens, *biases, angle[:, 0], self.D, z[:, 0], entering)
            y = y.unsqueeze(1)
        else:
            scan = mamba_ssm("ops.triton.mamba3.mamba3_siso_combined").mamba3_siso_combined
            y, *left = scan(
                C, B, v, *(t.transpose(1, 2) for t in (g, dt, trap)), *biases, angle, self.D, z,
                Input_States=entering, chunk_size=KERNEL_CHUNK, return_final_states=True,
            )  # fmt: skip
        start, ssm, k, last = left
        return y, {"angle": start, "ssm": ssm, "k": k.unsqueeze(2), "v": last}

    def _mimo_kernels(
        self, z: Tensor, v: Tensor, B: Tensor, C: Tensor, dt: Tensor, g: Tensor, trap: Tensor, angle: Tensor,
        state: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Compute `_in_torch` with mamba-ssm's TileLang kernels, or its CuTe kernel for one token after a state."""
        angle = angle.unsqueeze(2).expand(-1, -1, self.heads, -1)
        if state is not None:
            return self._mimo_step(
                z[:, 0], v[:, 0], B[:, 0], C[:, 0], dt[:, 0], g[:, 0], trap[:, 0], angle[:, 0], state
            )
        scan = mamba_ssm("ops.tilelang.mamba3.mamba3_mimo").mamba3_mimo
        B, C = (t.unsqueeze(3).to(v.dtype) for t in (B, C))
        y, start, ssm, k, last = scan(
            C, B, v, *(t.transpose(1, 2) for t in (g, dt, trap)), self.C_bias, self.B_bias,
            self.mimo_x, self.mimo_z, self.mimo_o, angle, self.D, z,
            chunk_size=KERNEL_CHUNK // self.rank,
            rotary_dim_divisor=round(2 / self.config.rope_fraction),
            dtype=v.dtype,
            return_state=True,
        )  # fmt: skip
        return y, {"angle": start, "ssm": ssm, "k": k.transpose(1, 2), "v": last}

    def _mimo_step(
        self, z: Tensor, v: Tensor, B: Tensor, C: Tensor, dt: Tensor, g: Tensor, trap: Tensor, angle: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Decode one token with mamba-ssm's CuTe kernel. Arguments as in `_in_torch`, without T."""
        rotated = mamba_ssm("ops.triton.mamba3.mamba3_mimo_rotary_step").apply_rotary_qk_inference_fwd
        step = mamba_ssm("ops.cute.mamba3.mamba3_step_fn").mamba3_step_fn
        B, C = (t.unsqueeze(2).expand(-1, -1, self.heads, -1).to(v.dtype) for t in (B, C))  # [b, R, H, N]
        C, B, start = rotated(
            q=C, k=B, angle_state=state["angle"], angle_proj=angle, dt=dt, bias_q=self.C_bias.transpose(0, 1),
            bias_k=self.B_bias.transpose(0, 1), rotate_pairwise=False,
        )  # fmt: skip
        x_in, z_in, out = (t.transpose(0, 1).contiguous() for t in (self.mimo_x, self.mimo_z, self.mimo_o))
        ssm, y = state["ssm"].clone(), torch.empty_like(v)  # the kernel updates the state in place
        step(
            ssm, state["k"].transpose(1, 2).to(v.dtype).contiguous(), state["v"].to(v.dtype), g / dt, B, C, self.D,
            v.contiguous(), dt, trap.sigmoid(), x_in, outproj=out, out=y, z=z.contiguous(), zproj=z_in,
            tile_D=64, num_warps=4,
        )  # fmt: skip
        return y.unsqueeze(1), {"angle": start, "ssm": ssm, "k": B.transpose(1, 2), "v": v}

    def cost(self, seq_len: int) -> Cost:
        """Return the cost. FLOPs per number of the state: 1 + 6·R.

        The decay takes 1; writing the previous token, writing the current one and reading take 2·R each.
        Rotations, norms, gates and the elementwise MIMO projections are not counted. The angles and the last token's B
        and x are not counted as state.
        """
        c = self.config
        tail = 4 * self.heads * self.angles + 4 * self.heads * self.rank * c.d_state + 2 * self.d_inner
        products = self.in_proj.weight.numel() + self.out_proj.weight.numel()
        state = self.d_inner * c.d_state
        return Cost.recurrent(self.parameter_count(), products, state, 1 + 6 * self.rank, tail)


@register_mixer("mamba3_siso", display="Mamba-3 SISO", mimo=False)
class Mamba3SISO(Mamba3):
    """Mamba-3 with one input and one output per head."""

    backends = (Backend(MAMBA_SSM.name, _siso_absent), TORCH)


@register_mixer("mamba3_mimo", display="Mamba-3 MIMO", mimo=True)
class Mamba3MIMO(Mamba3):
    """Mamba-3 with `rank` inputs and outputs per head."""

    backends = (Backend(MAMBA_SSM.name, _mimo_absent), TORCH)
