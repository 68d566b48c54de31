"""Decays between tokens: each against its definition, and exact after a token that forgets everything."""

import torch

from mixers.parts.decay import segment_decays


def test_segment_decays_are_those_between_two_tokens() -> None:
    g = -torch.rand(2, 5, dtype=torch.float64)
    decays = segment_decays(g)
    for row in range(5):
        for key in range(5):
            expected = g[:, key + 1 : row + 1].sum(-1).exp() if key <= row else torch.zeros(2).double()
            torch.testing.assert_close(decays[:, row, key], expected)


def test_a_token_that_forgets_everything_costs_later_sums_no_digits() -> None:
    g = torch.tensor([-0.1, -1e4, -0.2, -0.3])
    # A difference of cumulative sums in fp32 would be off by 1e-3: 1e4 leaves no digits below that.
    torch.testing.assert_close(segment_decays(g)[3, 1], torch.tensor(-0.5).exp(), rtol=1e-6, atol=0)


def test_an_infinite_log_decay_forgets_everything_and_nothing_after_it() -> None:
    g = torch.tensor([-0.1, -torch.inf, -0.2], requires_grad=True)
    decays = segment_decays(g)
    torch.testing.assert_close(decays, torch.tensor([[1, 0, 0], [0, 1, 0], [0, torch.tensor(-0.2).exp(), 1]]))
    assert torch.autograd.grad(decays.sum(), g)[0].isfinite().all()
