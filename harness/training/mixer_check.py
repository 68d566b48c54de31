"""Check before training that each mixer keeps the shape of its input and reads no later token."""

from __future__ import annotations

import copy
import json

import torch

from harness.model.language_model import LanguageModel
from harness.training.gradient_check import CHECK_TOKENS
from mixers import Mixer

CUT = 33
"""Tokens whose outputs must not change with later ones: half a chunk, so that those lie inside it and past it."""
ROUNDINGS = 8
"""Largest relative change of the outputs before CUT, in roundings of the dtype. What is masked enters sums as exactly
0, so that the change is 0 unless a kernel was tuned in between."""


class MixerWrong(RuntimeError):
    """A mixer breaks the interface in a way that training would not notice. The message names the mixer."""


def check_mixers(model: LanguageModel, device: torch.device, dtype: torch.dtype) -> None:
    """Try each kind of mixer of a model, as it is at initialisation, on a few tokens: one pair of forward passes.

    Raises MixerWrong if outputs have another shape than the input, are not finite, change with later tokens, or do not
    change with their own: residual streams hide the first by broadcasting, and a loss falls in spite of the others.
    """
    tried = set()
    for index, block in enumerate(model.blocks):
        name, options = model.config.block_mixer(index)
        if (kind := json.dumps([name, options])) not in tried:
            tried.add(kind)
            _try(copy.deepcopy(block.mixer).to(device), name, device, dtype)


@torch.no_grad()
def _try(mixer: Mixer, name: str, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, CHECK_TOKENS, mixer.d_model, generator=generator).to(device)
    changed = x.clone()
    changed[:, CUT:] += 1
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, other = (mixer(each)[0] for each in (x, changed))
    fault = None
    if y.shape != x.shape:
        fault = f"its output has the shape {list(y.shape)}, its input {list(x.shape)}"
    elif not bool(y.isfinite().all()):
        fault = "its outputs are not finite at the initial weights"
    else:
        before = y[:, :CUT].float()
        change = float((other[:, :CUT].float() - before).norm() / before.norm().clamp_min(torch.finfo(y.dtype).tiny))
        if not change <= ROUNDINGS * torch.finfo(dtype).eps:
            fault = f"it is not causal: outputs before token {CUT} change by {change:.2g} when only later inputs do"
        elif bool(y.any()) and y[:, CUT:].equal(other[:, CUT:]):  # one that starts at 0 says nothing yet
            fault = f"its outputs from token {CUT} on do not change with their inputs"
    if fault is not None:
        raise MixerWrong(f"{name}: {fault}; correct it, `run.py check {name}` tries more")
