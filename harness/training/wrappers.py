"""Wrappers around a model for training: its loss as a module, and blocks that are recomputed or compiled."""

from __future__ import annotations

from functools import partial

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from harness.experiments.schema import TrainConfig
from harness.model.language_model import LanguageModel
from harness.model.loss import linear_cross_entropy, scored_cross_entropy


def masked_loss(
    model: LanguageModel, inputs: Tensor, targets: Tensor, counted: Tensor, scored: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy in nats, summed over the targets that count, and how many of them are the likeliest token.

    inputs, targets: [B, T] int64. counted: [B, T] bool. scored: whether to count the latter; it is None otherwise. Both
    are scalars. Logits are computed for counted targets only, a few at a time.
    """
    hidden, _ = model.hidden(inputs)
    function = scored_cross_entropy if scored else linear_cross_entropy
    result = function(hidden[counted], model.head.weight, targets[counted])
    return result if scored else (result, None)


class MaskedLoss(nn.Module):
    """`masked_loss` as a module: DDP and FSDP must see the forward pass whose gradients they reduce."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(
        self, inputs: Tensor, targets: Tensor, counted: Tensor, scored: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return masked_loss(self.model, inputs, targets, counted, scored)


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
