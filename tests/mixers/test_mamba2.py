"""Mamba-2: its gated norm, fla's layer on the same weights, and options that it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mixers.mamba2 import GatedRMSNorm
from mixers.registry import build_mixer
from tests.mixers.mamba import error, layer, tokens


def test_the_layer_computes_what_fla_computes_with_the_same_weights():
    from fla.layers.mamba2 import Mamba2 as Theirs

    ours = layer("mamba2", d_model=8).float()
    theirs = Theirs(num_heads=4, head_dim=4, hidden_size=8, state_size=8, chunk_size=8)
    theirs.load_state_dict(ours.state_dict())
    weight = theirs.norm.weight

    class Norm(torch.nn.Module):  # fla's gated norm and its SiLU are Triton kernels, which need a GPU
        def forward(self, y, z):
            return F.rms_norm(y * F.silu(z), y.shape[-1:], weight, 1e-5)

    theirs.norm, theirs.act = Norm(), F.silu
    x = tokens(2, 29, 8).float()
    expected, *_ = theirs.torch_forward(x)
    assert error(ours(x)[0], expected) < 1e-5  # both in fp32, sums in different orders


def test_the_gate_comes_before_a_norm_over_each_group():
    norm = GatedRMSNorm(12, groups=3).double()
    torch.nn.init.normal_(norm.weight)
    y, z = tokens(2, 5, 12), tokens(2, 5, 12, seed=3)
    parts = (y * z * torch.sigmoid(z)).chunk(3, -1)
    normed = torch.cat([part / (part.square().sum(-1, keepdim=True) / 4 + 1e-5).sqrt() for part in parts], -1)
    assert error(norm(y, z), normed * norm.weight) < 1e-14


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mamba2", {"head_dim": 7}, "mamba2.head_dim: 7 does not divide d_inner=24"),
        ("mamba2", {"head_dim": 8, "n_groups": 2}, "mamba2.n_groups: 2 does not divide the 3 heads"),
        ("mamba2", {"head_dim": 8, "chunk_size": 24}, "mamba2.chunk_size: 24 is not a power of two"),
    ],
)
def test_impossible_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer(name, 12, options)
