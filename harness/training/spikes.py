"""The rule for calling a training loss a spike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SPIKE_WINDOW = 100  # recent losses that a new one is compared with
SPIKE_LEAST = 20  # a standard deviation of fewer losses says little
SPIKE_DEVIATIONS = 6.0


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss lies more than SPIKE_DEVIATIONS standard deviations above the mean of the last SPIKE_WINDOW.

    before: earlier losses, oldest first. With fewer than SPIKE_LEAST nothing is a spike.
    """
    window = before[-SPIKE_WINDOW:]
    if len(window) < SPIKE_LEAST:
        return False
    return loss > statistics.fmean(window) + SPIKE_DEVIATIONS * statistics.stdev(window)
