"""Small parts of mixers: convolution, norms, initial decays and checks of options."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.backends import TORCH, convolution


def accumulator_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of states and sums: fp32, or fp64 if any input is fp64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the backward pass of an autograd function that is written by hand, and so has no derivative itself.

    Raises RuntimeError under `create_graph=True`, also where torch.autograd.function.once_differentiable would return
    gradients without a graph, whose derivatives later count as zero.
    """

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # compiled graphs refuse it themselves
            raise RuntimeError(
                "create_graph=True: this gradient is written by hand and has no second derivative; for the delta "
                "rules, backend='recurrent' without normalisation inside has one"
            )
        with torch.no_grad():
            return backward(ctx, *gradients)

    return run


class DepthwiseConvolution(torch.autograd.Function):
    """Causal depthwise convolution as a sum of shifted products, several times faster on a CPU than F.conv1d."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        """Return y like x, with zeros before the first token. x: [B, T, C]; taps: [W, C], the current token's last."""
        ctx.save_for_backward(x, taps)
        y = x * taps[-1]
        for shift in range(1, min(len(taps), x.shape[1])):
            y[:, shift:].addcmul_(x[:, :-shift], taps[-1 - shift])
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and taps."""
        x, taps = ctx.saved_tensors
        d_x, d_taps = d_y * taps[-1], torch.zeros_like(taps)
        d_taps[-1] = (d_y * x).sum((0, 1))
        for shift in range(1, min(len(taps), x.shape[1])):
            later = d_y[:, shift:]
            d_x[:, :-shift].addcmul_(later, taps[-1 - shift])
            d_taps[-1 - shift] = (later * x[:, :-shift]).sum((0, 1))
        return d_x, d_taps


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over time, then SiLU.

    `weight` is [C, 1, W] and `bias` is [C], as in `torch.nn.Conv1d`, so that the weights of fla's ShortConvolution and
    of mamba-ssm's conv1d load by name.
    """

    def __init__(self, channels: int, width: int = 4, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly in ±1/√W, as torch.nn.Conv1d does for a depthwise kernel."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, tail: Tensor | None = None, backend: str = TORCH.name) -> tuple[Tensor, Tensor]:
        """Convolve x [B, T, C]. Returns y like x, and the tail for the tokens that follow.

        tail: the last W-1 inputs before x, [B, W-1, C], zeros if None. backend: the mixer's. Any backend but torch uses
        the kernel of `mixers.backends.convolution()`, the same for all mixers.
        """
        channels, _, width = self.weight.shape
        if backend != TORCH.name:
            tail = x.new_zeros(x.shape[0], width - 1, channels) if tail is None else tail.to(x.dtype)
            missing = max(0, width - 1 - x.shape[1])
            left = torch.cat([tail[:, width - 1 - missing :], x[:, max(0, x.shape[1] - (width - 1)) :]], 1)
            return self._by_kernel(x, tail), left
        seen = x if tail is None else torch.cat([tail.to(x.dtype), x], 1)
        h = seen.to(accumulator_dtype(x))
        y = DepthwiseConvolution.apply(h, self.weight.squeeze(1).t().to(h.dtype))[:, seen.shape[1] - x.shape[1] :]
        y = F.silu(y if self.bias is None else y + self.bias).to(x.dtype)
        left = F.pad(seen, (0, 0, max(0, width - 1 - seen.shape[1]), 0))
        return y, left[:, left.shape[1] - (width - 1) :]

    def _by_kernel(self, x: Tensor, tail: Tensor) -> Tensor:
        weight = self.weight.squeeze(1).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        channels, width = weight.shape
        # causal-conv1d is compiled for two to four taps, and for rows of channels that start at multiples of 16 bytes.
        if convolution() == "causal-conv1d" and 2 <= width <= 4 and channels % 8 == 0 and x.shape[1] > 1:
            from causal_conv1d import causal_conv1d_fn

            y = causal_conv1d_fn(
                x.contiguous().transpose(1, 2),
                weight,
                bias,
                initial_states=tail.contiguous().transpose(1, 2),
                activation="silu",
            )
            return y.transpose(1, 2)
        from fla.modules.causal_conv1d import causal_conv1d

        # fla keeps the last W inputs, but never reads the first of them again.
        cache = F.pad(tail.transpose(1, 2), (1, 0))
        return causal_conv1d(x.contiguous(), weight, bias, initial_state=cache, activation="silu")[0]


class Normalise(torch.autograd.Function):
    """x / √(share · Σ x² + eps) over the last axis: an RMS norm without weights, or an L2 norm.

    Its gradient is written by hand because autograd would pass over x six more times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, eps: float) -> Tensor:
        """Return y like x. share: 1 / size for the mean of squares, 1 for their sum."""
        rate = x.square().sum(-1, keepdim=True).mul_(share).add_(eps).rsqrt_()
        y = x * rate
        ctx.save_for_backward(y, rate)
        ctx.share = share
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x, (dy - share · (dy · y) y) · rate."""
        y, rate = ctx.saved_tensors
        radial = (d_y * y).sum(-1, keepdim=True)
        return torch.addcmul(d_y, y, radial, value=-ctx.share).mul_(rate), None, None


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, computed in at least fp32."""

    def __init__(self, size: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised and weighted, in the dtype of x."""
        h = Normalise.apply(x.to(accumulator_dtype(x)), 1 / x.shape[-1], self.eps)
        return (h * self.weight).to(x.dtype)


def inverse_softplus_dt(size: int, dt_min: float = 0.001, dt_max: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Draw time steps log-uniformly in [dt_min, dt_max], floored. Returns their inverse softplus, for `dt_bias`."""
    dt = torch.exp(torch.rand(size) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


def initial_log_rates(size: int, low: Literal[0, 1] = 1) -> Tensor:
    """Draw decay rates uniformly in [low, 16]. Returns their logarithms, for `A_log`."""
    # U(0, 16) can draw 0, whose logarithm is -inf: that head would never forget and get no gradient.
    return torch.empty(size).uniform_(low, 16).clamp(min=1e-4).log()


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` (field, value, remedy) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def is_power_of_two(size: int) -> bool:
    """Whether size is 1, 2, 4, …"""
    return size > 0 and size & (size - 1) == 0


def l2_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Return x / √(Σ x² + eps) over the last axis, computed in at least fp32, in the dtype of x."""
    return Normalise.apply(x.to(accumulator_dtype(x)), 1.0, eps).to(x.dtype)
