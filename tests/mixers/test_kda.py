"""KDA: the operator by its equation, the range of its write strength, and sizes that fla's kernels do not take."""

import pytest
import torch

from mixers import build_mixer
from mixers.backends import reasons
from mixers.kda import kimi_delta_rule


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_two_tokens_follow_the_equation_with_a_decay_per_key_channel(backend: str) -> None:
    q, k = torch.randn(2, 1, 2, 1, 4, dtype=torch.float64)
    v, beta = torch.randn(1, 2, 1, 3, dtype=torch.float64), torch.rand(1, 2, 1, dtype=torch.float64)
    g = -torch.rand(1, 2, 1, 4, dtype=torch.float64)
    state = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    o, final = kimi_delta_rule(q, k, v, g, beta, initial_state=state, backend=backend)
    S = state[0, 0]
    for t in range(2):
        k_t, b = k[0, t, 0], beta[0, t, 0]
        S = (torch.eye(4) - b * torch.outer(k_t, k_t)) @ torch.diag(g[0, t, 0].exp()) @ S
        S = S + b * torch.outer(k_t, v[0, t, 0])
        torch.testing.assert_close(o[0, t, 0], S.T @ q[0, t, 0] / 2)  # 4^-1/2 is the default scale
    torch.testing.assert_close(final[0, 0], S)


def test_a_wider_range_doubles_the_write_strength() -> None:
    options = {"heads": 1, "head_dim": 8}
    one, two = build_mixer("kda", 16, options), build_mixer("kda", 16, options | {"beta_range": 2})
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 1, 16)
    (_, once), (_, twice) = one(x, return_state=True), two(x, return_state=True)
    torch.testing.assert_close(twice["recurrent"], 2 * once["recurrent"])  # the first token finds an empty state


def test_heads_beyond_256_run_in_torch() -> None:
    built = build_mixer("kda", 16, {"heads": 1, "head_dim": 257})
    reason = reasons(built.backends, torch.device("cuda"), torch.bfloat16, built.config)["fla"]
    assert reason == "fla's KDA takes head_dim up to 256, not 257; use torch"
