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
    """Summed cross-entropy, in nats, over the counted targets; logits exist for those alone, and for few at a time."""
    hidden, _ = model.hidden(tokens[:, :-1])
    return linear_cross_entropy(hidden[counted], model.head.weight, tokens[:, 1:][counted])


class MaskedLoss(nn.Module):
    """`masked_loss` as a module, for DDP and FSDP to see the forward pass that they reduce gradients of."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        return masked_loss(self.model, tokens, counted)


def wrap_blocks(model: LanguageModel, config: TrainConfig) -> None:
    """Recompute and compile the blocks of a model as its recipe says, in place; names of weights stay."""
    for block in model.blocks:
        if config.compile:  # inside what recomputes, which dynamo leaves alone
            block.forward = torch.compile(block.forward)
        if config.recompute:
            block.forward = partial(  # no dropout anywhere: there is no random state to bring back
                torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
