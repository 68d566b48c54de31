"""Wrappers around a model for training: its loss as a module, and blocks that are recomputed or compiled."""

from __future__ import annotations

from functools import partial

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from harness.experiments.schema import TrainConfig
from harness.model.language_model import LanguageModel
from harness.model.loss import linear_cross_entropy


def masked_loss(model: LanguageModel, tokens: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the targets that count; a scalar.

    tokens: [B, T + 1] int64. counted: [B, T] bool. Logits are computed for counted targets only, a few at a time.
    """
    hidden, _ = model.hidden(tokens[:, :-1])
    return linear_cross_entropy(hidden[counted], model.head.weight, tokens[:, 1:][counted])


class MaskedLoss(nn.Module):
    """`masked_loss` as a module: DDP and FSDP must see the forward pass whose gradients they reduce."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        return masked_loss(self.model, tokens, counted)


def wrap_blocks(model: LanguageModel, config: TrainConfig) -> None:
    """Make the blocks of a model recompute activations or run compiled, as the recipe says. In place; names of weights
    do not change."""
    for block in model.blocks:
        if config.compile:  # inside the recomputation, which dynamo does not trace into
            block.forward = torch.compile(block.forward)
        if config.recompute:
            block.forward = partial(  # without dropout there is no random state to restore
                torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
