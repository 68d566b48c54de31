"""Gated DeltaNet: the operator by its equation, its initial decays, and the choice of its output gate."""

import pytest
import torch

from mixers import build_mixer
from mixers.gated_deltanet import gated_delta_rule


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_two_tokens_follow_the_equation_with_a_decay_per_head(backend: str) -> None:
    q, k = torch.randn(2, 1, 2, 1, 4, dtype=torch.float64)
    v = torch.randn(1, 2, 2, 3, dtype=torch.float64)  # two value heads share the key head
    g, beta = -torch.rand(1, 2, 2, dtype=torch.float64), torch.rand(1, 2, 2, dtype=torch.float64)
    o, final = gated_delta_rule(q, k, v, g, beta, scale=0.3, backend=backend)
    for head in range(2):
        S = torch.zeros(4, 3, dtype=torch.float64)
        for t in range(2):
            k_t, b = k[0, t, 0], beta[0, t, head]
            S = g[0, t, head].exp() * (torch.eye(4) - b * torch.outer(k_t, k_t)) @ S
            S = S + b * torch.outer(k_t, v[0, t, head])
            torch.testing.assert_close(o[0, t, head], 0.3 * S.T @ q[0, t, 0])
        torch.testing.assert_close(final[0, head], S)


def test_initial_rates_are_finite_and_uniform_up_to_16() -> None:
    rates = build_mixer("gated_deltanet", 8, {"heads": 2000, "head_dim": 1}).A_log.exp()
    assert rates.min() >= 0.99e-4 and 15.9 < rates.max() <= 16.01 and abs(rates.mean() - 8) < 0.5


def test_the_output_gate_is_silu_unless_a_sigmoid_is_asked_for() -> None:
    options = {"heads": 1, "head_dim": 8}
    silu = build_mixer("gated_deltanet", 16, options)
    sigmoid = build_mixer("gated_deltanet", 16, options | {"output_gate": "sigmoid"})
    sigmoid.load_state_dict(silu.state_dict())
    with torch.no_grad():  # a gate of 0 closes SiLU and leaves half of a sigmoid
        silu.g_proj.weight.zero_()
        sigmoid.g_proj.weight.zero_()
    x = torch.randn(1, 5, 16)
    assert silu(x)[0].abs().max() == 0 < sigmoid(x)[0].abs().max()
