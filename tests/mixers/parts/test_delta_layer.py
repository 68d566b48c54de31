"""The layer that the delta-rule mixers share: shapes of its state, its gated norm, its cost and its refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from mixers import build_mixer
from mixers.parts.delta_layer import FLA_SHORT, GatedNorm, by_fla, log_decay

NAMES = ("gdn2", "gated_deltanet", "kda")
OPTIONS = {"heads": 2, "head_dim": 8, "value_heads": 4, "value_dim": 6}


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_a_matrix_per_value_head_and_the_convolutions_last_inputs(name: str) -> None:
    _, state = build_mixer(name, 16, OPTIONS)(torch.randn(3, 5, 16), return_state=True)
    assert {key: list(value.shape) for key, value in state.items()} == {
        "conv": [3, 3, 2 * 16 + 24],
        "recurrent": [3, 4, 8, 6],
    }


@pytest.mark.parametrize("name", NAMES)
def test_value_heads_and_their_size_default_to_those_of_keys(name: str) -> None:
    built = build_mixer(name, 16, {"heads": 2, "head_dim": 8})
    assert (built.value_heads, built.value_dim) == (2, 8)


def test_a_decoding_step_costs_seven_flops_per_number_of_the_state() -> None:
    built = build_mixer("gated_deltanet", 16, OPTIONS)
    products = sum(p.numel() for n, p in built.named_parameters() if "proj" in n or "conv" in n)
    cost = built.cost(100)
    assert cost.state_floats == 4 * 8 * 6
    assert cost.decode_flops == cost.flops_per_token == 2 * products + 7 * cost.state_floats


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_the_gated_norm_is_a_norm_times_the_activated_gate(activation: str) -> None:
    norm = GatedNorm(6, 1e-5, activation)
    torch.nn.init.normal_(norm.weight)
    o, gate = torch.randn(2, 3, 4, 6)
    activated = F.silu(gate) if activation == "silu" else gate.sigmoid()
    torch.testing.assert_close(norm(o, gate), F.rms_norm(o, (6,), norm.weight, 1e-5) * activated)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_heads": 3}, "value_heads: 3 is no multiple of heads=2"),
        ({"chunk_size": 24}, "chunk_size: 24 is no power of two; choose 16, 32, 64 or 128"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_impossible_shapes_are_refused_by_name(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_mixer(name, 16, OPTIONS | options)


@pytest.mark.parametrize(
    ("steps", "gradient", "chosen"),
    [(FLA_SHORT, False, "recurrent"), (FLA_SHORT + 1, False, "chunked"), (1, True, "chunked")],
)
def test_flas_operators_are_chosen_as_its_layers_choose(steps: int, gradient: bool, chosen: str) -> None:
    def operator(name: str):
        return lambda **arguments: (name, arguments)

    q = torch.zeros(1, steps, 1, 4, requires_grad=gradient)
    name, arguments = by_fla(operator("chunked"), operator("recurrent"), {"q": q}, torch.zeros(1).double(), 2)
    assert name == chosen
    assert arguments["allow_neg_eigval"] and arguments["initial_state"].dtype == torch.float32
    assert "lower_bound" not in arguments and "safe_gate" not in arguments
    _, arguments = by_fla(operator("chunked"), operator("recurrent"), {"q": q}, None, 1, lower_bound=-5.0)
    assert arguments["lower_bound"] == -5.0
    assert arguments.get("safe_gate", False) == (chosen == "chunked")


def test_a_decay_with_a_bound_is_a_sigmoid_between_it_and_zero() -> None:
    projection = torch.tensor([-1e4, -1.0, 0.5, 1e4]).view(1, 1, 2, 2)
    A_log, dt_bias = torch.tensor([0.0, 1.0]), torch.tensor([0.1, -0.2, 0.3, -0.4])
    g = log_decay(projection, A_log, dt_bias, -5.0).flatten()
    assert g[0] == 0 and g[3] == -5
    # g = -5 σ(exp(A_log) (f + dt_bias)): heads have A_log 0 and 1, channels 1 and 2 have f + dt_bias = -1.2 and 0.8.
    torch.testing.assert_close(g[1:3], -5 / (1 + torch.tensor([1.2, -0.8 * math.e]).exp()))
    free = log_decay(projection[..., :1], A_log, dt_bias[::2], None)
    torch.testing.assert_close(free.flatten()[1], -math.e * torch.tensor(0.8).exp().log1p())


@pytest.mark.parametrize("name", ["gdn2", "kda"])
def test_a_layer_with_a_bound_starts_at_rate_one_and_refuses_a_bound_that_is_none(name: str) -> None:
    bounded = build_mixer(name, 16, OPTIONS | {"lower_bound": -5})
    assert bounded.A_log.count_nonzero() == 0
    x = torch.randn(2, 7, 16)
    free = build_mixer(name, 16, OPTIONS)
    free.load_state_dict(bounded.state_dict())
    assert not torch.allclose(bounded(x)[0], free(x)[0])
    for bound in (0, 1, -5.5):
        with pytest.raises(ValueError, match="lower_bound"):
            build_mixer(name, 16, OPTIONS | {"lower_bound": bound})
