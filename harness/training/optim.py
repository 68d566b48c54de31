"""The paper's optimiser: AdamW with its parameter groups, and a cosine schedule with warm-up counted in tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.experiments.schema import TrainConfig
from harness.training.distributed import whole


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: to matrices only.

    Biases (mamba-3's B_bias and C_bias have three axes), norms, A_log, dt_bias and D do not decay. Nor does a parameter
    that a layer of fla or mamba-ssm marks with `_no_weight_decay`. The released GDN-2 code sets such marks, but then
    decays the parameters anyway.
    """
    return parameter.dim() >= 2 and not name.endswith("bias") and not getattr(parameter, "_no_weight_decay", False)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Two parameter groups, with and without weight decay, each in the model's order."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, betas=config.betas, fused=True)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale the gradients down to the norm `limit` if theirs is larger. Returns the norm before clipping.

    Waits for the device. All processes must call it if parameters are sharded.

    The result equals that of torch.nn.utils.clip_grad_norm_ bit for bit. That function avoids the wait by multiplying
    by 1 when nothing is clipped. A training step reads the norm anyway, so here a pass over all gradients is saved.
    """
    parameters = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = whole(norm).item()
    if not value < 0.99 * limit:  # true for nan; close to the limit, torch's rounding of limit / norm decides
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return value


def learning_rate(config: TrainConfig, tokens_seen: int, total: int) -> float:
    """Learning rate after `tokens_seen` of `total` tokens.

    It rises linearly from 0 over the warm-up, then follows half a cosine from lr to final_lr_ratio · lr.
    """
    warmup = config.warmup_ratio * total
    if tokens_seen < warmup:
        return config.lr * tokens_seen / warmup
    progress = min(1.0, (tokens_seen - warmup) / max(1.0, total - warmup))
    floor = config.final_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
