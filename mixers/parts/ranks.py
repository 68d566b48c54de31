"""The elementwise products of Mamba-3's MIMO: one token's numbers spread over ranks, and ranks gated and summed.

Both walk over the ranks one by one and have their gradient written by hand. So no tensor that is R times as large as
the token's numbers is made except the result, and on a CPU, memory takes most of the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.parts.common import first_order


class SpreadRanks(torch.autograd.Function):
    """x_r = x · weight_r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return [..., H, R, P]. x: [..., H, P]; weight: [H, R, P]."""
        ctx.save_for_backward(x, weight)
        return x.unsqueeze(-2) * weight

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.zeros_like(x), torch.empty_like(weight)
        for d_r, weight_r, d_weight_r in zip(d_out.unbind(-2), weight.unbind(1), d_weight.unbind(1), strict=True):
            d_x.addcmul_(d_r, weight_r)
            d_weight_r.copy_((d_r * x).sum_to_size(weight_r.shape))
        return d_x, d_weight


class GateRanks(torch.autograd.Function):
    """Σ_r y_r · SiLU(z · gate_r) · out_r."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        """Return [..., H, P]. y: [..., H, R, P]; z: [..., H, P]; gate, out: [H, R, P]."""
        ctx.save_for_backward(y, z, gate, out)
        total = torch.zeros_like(z)
        for y_r, gate_r, out_r in zip(y.unbind(-2), gate.unbind(1), out.unbind(1), strict=True):
            total.addcmul_(F.silu(z * gate_r).mul_(out_r), y_r)
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of y, z, gate and out."""
        y, z, gate, out = ctx.saved_tensors
        d_y, d_z, d_gate, d_out = (torch.zeros_like(t) for t in (y, z, gate, out))
        for r in range(gate.shape[1]):
            gate_r, out_r = gate[:, r], out[:, r]
            h = z * gate_r
            activated = F.silu(h)
            d_y[..., r, :] = (d_total * out_r).mul_(activated)
            d_product = d_total * y[..., r, :]
            d_out[:, r] = activated.mul_(d_product).sum_to_size(out_r.shape)
            d_h = torch.ops.aten.silu_backward(d_product.mul_(out_r), h)
            d_z.addcmul_(d_h, gate_r)
            d_gate[:, r] = d_h.mul_(z).sum_to_size(gate_r.shape)
        return d_y, d_z, d_gate, d_out
