"""Mamba-2 and Mamba-3 as layers: this file crosses both modules and tests what they have in common."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mixers.mamba2 import Mamba2, Mamba2Config
from mixers.mamba3 import Mamba3, Mamba3Config
from mixers.registry import build_mixer
from tests.mixers.mamba import LAYERS, error, layer, tokens


@pytest.mark.parametrize("name", LAYERS)
def test_whole_pieces_and_single_tokens_agree(name):
    mixer, x = layer(name), tokens(2, 23, 12)
    whole, last = mixer(x, return_state=True)
    for sizes in ([1] * 23, [2, 5, 1, 15], [16, 7]):
        state, outputs = None, []
        for piece in x.split(sizes, 1):
            before = None if state is None else {key: value.clone() for key, value in state.items()}
            y, new = mixer(piece, state, return_state=True)
            if state is not None:  # the caller's state is left as it was
                assert all(torch.equal(state[key], before[key]) for key in before)
            state = new
            outputs.append(y)
        assert error(torch.cat(outputs, 1), whole) < 1e-9
        for key in last:
            turn = 2 * math.pi if key == "angle" else math.inf  # angles are equal up to full turns
            gap = (state[key] - last[key]).abs()
            assert torch.minimum(gap, (turn - gap).abs()).max() < 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_packed_sequences_never_see_each_other(name):
    mixer, x = layer(name), tokens(1, 19, 12)
    _, state = mixer(tokens(4, 3, 12, seed=5), return_state=True)
    offsets = [0, 5, 6, 11, 19]
    packed, states = mixer(x, state, torch.tensor(offsets), return_state=True)
    for i, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        start = {key: value[i : i + 1] for key, value in state.items()}
        y, last = mixer(x[:, a:b], start, return_state=True)
        assert error(packed[:, a:b], y) < 1e-9
        assert all(error(states[key][i : i + 1], last[key]) < 1e-9 for key in last)


@pytest.mark.parametrize("name", LAYERS)
def test_the_future_changes_nothing_before_it(name):
    mixer, x = layer(name), tokens(2, 13, 12)
    y, _ = mixer(x)
    for cut in (1, 4, 6, 12):
        changed = x.clone()
        changed[:, cut:] = tokens(2, 13 - cut, 12, seed=cut)
        z, _ = mixer(changed)
        assert torch.equal(z[:, :cut], y[:, :cut])
        assert (z[:, cut] - y[:, cut]).abs().max() > 1e-6


UPSTREAM = {
    # mamba_ssm.modules.mamba2.Mamba2(d_model=32, d_state=8, headdim=16, ngroups=2)
    "mamba2": {
        "dt_bias": [4],
        "A_log": [4],
        "D": [4],
        "in_proj.weight": [164, 32],
        "conv1d.weight": [96, 1, 4],
        "conv1d.bias": [96],
        "norm.weight": [64],
        "out_proj.weight": [32, 64],
    },
    # mamba_ssm.modules.mamba3.Mamba3(d_model=32, d_state=8, headdim=16)
    "mamba3_siso": {
        "dt_bias": [4],
        "B_bias": [4, 1, 8],
        "C_bias": [4, 1, 8],
        "D": [4],
        "in_proj.weight": [158, 32],
        "B_norm.weight": [8],
        "C_norm.weight": [8],
        "out_proj.weight": [32, 64],
    },
    # mamba_ssm.modules.mamba3.Mamba3(d_model=32, d_state=8, headdim=16, is_mimo=True, mimo_rank=4)
    "mamba3_mimo": {
        "dt_bias": [4],
        "B_bias": [4, 4, 8],
        "C_bias": [4, 4, 8],
        "mimo_x": [4, 4, 16],
        "mimo_z": [4, 4, 16],
        "mimo_o": [4, 4, 16],
        "D": [4],
        "in_proj.weight": [206, 32],
        "B_norm.weight": [8],
        "C_norm.weight": [8],
        "out_proj.weight": [32, 64],
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_have_upstreams_names_and_shapes(name):
    options = {"d_state": 8, "head_dim": 16} | ({"n_groups": 2} if name == "mamba2" else {})
    mixer = build_mixer(name, 32, options)
    assert {key: list(value.shape) for key, value in mixer.state_dict().items()} == UPSTREAM[name]


def test_initial_rates_and_time_steps_are_upstreams():
    torch.manual_seed(0)
    mamba2 = Mamba2(64, Mamba2Config(d_inner=4096, head_dim=2, d_state=2))
    rates = mamba2.A_log.exp()
    assert rates.min() >= 1 and rates.max() <= 16 and abs(rates.mean() - 8.5) < 0.5
    mamba3 = Mamba3(64, Mamba3Config(mimo=True, d_inner=4096, head_dim=2, d_state=4))
    for mixer in (mamba2, mamba3):
        log_dt = F.softplus(mixer.dt_bias.double()).log()
        assert log_dt.min() > math.log(0.00099) and log_dt.max() < math.log(0.101)
        assert abs(log_dt.mean() - math.log(0.01)) < 0.1  # the middle of a log-uniform draw, 2048 of them
        assert (mixer.D == 1).all()
    assert (mamba3.B_bias == 1).all() and (mamba3.C_bias == 1).all()
    assert (mamba3.mimo_x == 0.25).all() and (mamba3.mimo_z == 1).all() and (mamba3.mimo_o == 0.25).all()


@pytest.mark.parametrize("name", LAYERS)
def test_states_accumulate_in_fp32_in_a_bf16_layer(name):
    x = tokens(2, 30, 12).bfloat16()
    reference, state = layer(name, randomised=False)(x.double(), return_state=True)
    y, low = layer(name, randomised=False).bfloat16()(x, return_state=True)
    assert y.dtype == torch.bfloat16 and low["ssm"].dtype == torch.float32
    assert error(y, reference) < 0.05  # bf16 keeps 8 bits: weights and activations are each off by up to 0.4%
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, low = layer(name, randomised=False).float()(x.float(), return_state=True)
    assert low["ssm"].dtype == torch.float32
    assert error(y, reference) < 0.05 and error(low["ssm"], state["ssm"]) < 0.05


@pytest.mark.parametrize("name", LAYERS)
def test_cost_counts_the_layers_own_numbers(name):
    mixer = layer(name)
    _, state = mixer(tokens(1, 3, 12), return_state=True)
    cost = mixer.cost(128)
    assert cost.parameters == sum(p.numel() for p in mixer.parameters())
    assert cost.state_floats == state["ssm"].numel() == 16 * 8
    with torch.device("meta"):
        assert build_mixer(name, 12, {"d_inner": 16, "d_state": 8, "head_dim": 4}).cost(128) == cost


def test_flops_are_those_of_the_recurrent_form():
    """Computed by hand for width 12, inner width 16, state 8 and four heads."""
    assert layer("mamba2").cost(9).flops_per_token == 2 * (12 * (16 + 32 + 4) + 16 * 12 + 32 * 4) + 5 * 128
    assert layer("mamba3_siso").cost(9).flops_per_token == 2 * (12 * (32 + 16 + 12 + 2) + 16 * 12) + 7 * 128
    assert layer("mamba3_mimo").cost(9).flops_per_token == 2 * (12 * (32 + 64 + 12 + 2) + 16 * 12) + 25 * 128


def test_the_published_runs_state_is_262144_numbers():
    options = {"d_inner": 4096, "d_state": 64, "head_dim": 64}
    with torch.device("meta"):
        assert {build_mixer(name, 2304, options).cost(4096).state_floats for name in LAYERS} == {262144}
