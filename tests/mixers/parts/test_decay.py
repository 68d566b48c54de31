"""Sums of log-decays: each against its definition, and exact after a token that forgets everything."""

import torch

from mixers.parts.decay import double_sums, prefix_suffix, segment_sums


def test_segment_sums_are_the_sums_between_two_tokens() -> None:
    g = -torch.rand(2, 5, dtype=torch.float64)
    sums = segment_sums(g)
    for row in range(5):
        for key in range(5):
            expected = g[:, key + 1 : row + 1].sum(-1) if key <= row else torch.full((2,), -torch.inf).double()
            torch.testing.assert_close(sums[:, row, key], expected)


def test_a_token_that_forgets_everything_costs_later_sums_no_digits() -> None:
    g = torch.tensor([-0.1, -1e4, -0.2, -0.3])
    # A difference of cumulative sums in fp32 would be off by 1e-3: 1e4 leaves no digits below that.
    torch.testing.assert_close(segment_sums(g)[3, 1], torch.tensor(-0.5), rtol=1e-6, atol=0)
    prefix, suffix = prefix_suffix(g, 0)
    torch.testing.assert_close(suffix, torch.tensor([-1e4 - 0.5, -0.5, -0.3, 0.0]), rtol=1e-6, atol=0)
    assert torch.equal(prefix, g.cumsum(0))


def test_doubling_blocks_up_gives_the_sums_of_the_whole() -> None:
    g = -torch.rand(8, 3, dtype=torch.float64)
    prefix, suffix = g.unsqueeze(-2), torch.zeros_like(g).unsqueeze(-2)  # eight blocks of one token
    for _ in range(3):
        prefix, suffix = double_sums(prefix, suffix)
    for sums, expected in zip((prefix, suffix), prefix_suffix(g, 0), strict=True):
        torch.testing.assert_close(sums, expected[None])
