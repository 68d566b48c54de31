"""Cross-entropy of a linear head that never holds all logits at once.

It computes the logits of a few rows, turns them into their loss and gradients, and drops them. The method is that of
Liger Kernel (arXiv 2410.10989), in plain torch so that one form serves CPUs and GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LIVE_LOGITS = 2**25
"""Logits that exist at once: 128 MiB in fp32, or 1,048 rows of a vocabulary of 32,000."""


def rows_at_once(vocab_size: int) -> int:
    """Number of rows whose logits exist at the same time; at least 1."""
    return max(1, LIVE_LOGITS // vocab_size)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats of the logits hidden · weightᵀ, with the softmax in fp32.

    hidden: [N, D]. weight: [V, D]. targets: [N] in [0, V). Returns a scalar. Under autocast, matrix products run in the
    autocast dtype, and the weight's gradient is summed in the weight's dtype. At most `rows_at_once(V)` rows of logits
    exist at a time, forward and backward.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, False)[0]


def scored_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, and the number of rows whose largest logit is the target's, an int64 scalar."""
    return _LinearCrossEntropy.apply(hidden, weight, targets, True)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while the logits exist; backward only multiplies them by a scalar."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scored: bool
    ) -> tuple[Tensor, Tensor | None]:
        wanted = ctx.needs_input_grad[:2]
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        to_weight = torch.zeros_like(weight) if wanted[1] else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        hits = targets.new_zeros(()) if scored else None
        rows = rows_at_once(weight.shape[0])
        for start in range(0, len(hidden), rows):
            part, at = hidden[start : start + rows], targets[start : start + rows, None]
            logits = part @ weight.t()
            dtype = logits.dtype
            if hits is not None:
                hits += (logits.argmax(-1, keepdim=True) == at).sum()
            logits = logits.to(total.dtype).log_softmax(-1)
            total -= logits.gather(1, at).sum()
            if not any(wanted):
                continue
            towards = logits.exp_()  # softmax - one-hot
            towards.scatter_add_(1, at, towards.new_full(at.shape, -1.0))
            towards = towards.to(dtype)
            if to_hidden is not None:
                to_hidden[start : start + rows] = towards @ weight
            if to_weight is not None:
                to_weight += towards.t() @ part
        ctx.save_for_backward(*(g for g in (to_hidden, to_weight) if g is not None))
        ctx.wanted = wanted
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients = iter(ctx.saved_tensors)
        return *(next(gradients) * factor if wanted else None for wanted in ctx.wanted), None, None
