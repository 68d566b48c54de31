"""Small Mamba layers, their inputs and the error between two tensors, for the tests of Mamba-2 and Mamba-3."""

from __future__ import annotations

import torch

from mixers.interface import Mixer
from mixers.registry import build_mixer

LAYERS = ("mamba2", "mamba3_siso", "mamba3_mimo")


def layer(name, d_model=12, randomised=True, **options) -> Mixer:
    """Return a small fp64 layer. All its weights are random, even those that start as constants."""
    torch.manual_seed(1)
    mixer = build_mixer(name, d_model, {"d_inner": 16, "d_state": 8, "head_dim": 4, "chunk_size": 4} | options)
    if randomised:
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return mixer.double()


def tokens(*shape, seed=2):
    """Return fp64 noise."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def error(actual, expected):
    """Return the largest deviation over the largest magnitude."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
