"""Spikes of the loss."""

import torch

from harness.training.spikes import is_spike


def test_a_spike_is_a_loss_far_above_the_last_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    before = (3 + 0.1 * torch.randn(100, generator=generator)).tolist()
    assert not any(is_spike(before[i], before[:i]) for i in range(100))
    assert is_spike(4.0, before) and not is_spike(3.4, before) and not is_spike(1.0, before)
    assert not is_spike(4.0, before[:19])
    # Losses further back than the window do not count.
    assert is_spike(4.0, [9.0, 1.0] * 50 + before)
