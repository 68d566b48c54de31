"""The paper's optimiser: AdamW with its parameter groups, and a cosine with warm-up counted in tokens."""

from __future__ import annotations

import math

import torch
from torch import nn

from harness.config import TrainConfig


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay reaches a parameter: matrices only. Biases (mamba-3's B_bias and C_bias have three axes),
    norms, A_log, dt_bias and D do not decay; the released GDN-2 code marks them so and then decays all the same. What a
    layer of fla or mamba-ssm marks so does not decay either."""
    return parameter.dim() >= 2 and not name.endswith("bias") and not getattr(parameter, "_no_weight_decay", False)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups, with and without weight decay, in the order of the model's parameters."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, tokens_seen: int, total: int) -> float:
    """Linear from 0 over the warm-up, then half a cosine from lr to final_lr_ratio · lr at the last token."""
    warmup = config.warmup_ratio * total
    if tokens_seen < warmup:
        return config.lr * tokens_seen / warmup
    progress = min(1.0, (tokens_seen - warmup) / max(1.0, total - warmup))
    floor = config.final_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
