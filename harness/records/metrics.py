"""Every metric's direction, unit, range and printed name, declared once and read everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """The unit of a number: how tables and figures name, scale and order it.

    display: the name in headings. higher_is_better: its direction. percent: the stored value is a fraction and is
    printed in percent. of_device: values may be compared only if they were measured on the same device. logarithmic:
    values span orders of magnitude, so tables print large ones as powers of ten and figures use a logarithmic axis.
    detail: takes another number apart, for figures of its own; no column of tables. least, most: bounds of a value in
    the stored unit; None for none, or for 0 and 1 if it is a fraction.
    """

    display: str
    higher_is_better: bool
    percent: bool = False
    of_device: bool = False
    logarithmic: bool = False
    detail: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def scale(self) -> int:
        """The factor from the stored value to the printed one: 100 for percent, else 1."""
        return 100 if self.percent else 1

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest possible value, in the stored unit."""
        least, most = (0.0, 1.0) if self.percent else (-math.inf, math.inf)
        return least if self.least is None else self.least, most if self.most is None else self.most

    @property
    def arrow(self) -> str:
        """The direction as headings show it."""
        return "↑" if self.higher_is_better else "↓"


METRICS: dict[str, Metric] = {
    "word_perplexity": Metric("ppl", higher_is_better=False, logarithmic=True, least=1),
    "perplexity": Metric("ppl", higher_is_better=False, logarithmic=True, least=1),
    "bits_per_byte": Metric("bits/byte", higher_is_better=False, least=0),
    "acc": Metric("acc", higher_is_better=True, percent=True),
    "acc_norm": Metric("acc_n", higher_is_better=True, percent=True),
    "scaled_acc": Metric("scaled acc", higher_is_better=True, percent=True, least=-1),  # of two states, all wrong
    "acc_by_position": Metric("acc by position", higher_is_better=True, percent=True, detail=True),
    "acc_by_distance": Metric("acc by distance", higher_is_better=True, percent=True, detail=True),
    "stale": Metric("stale", higher_is_better=False, percent=True),
    "contains": Metric("contains", higher_is_better=True, percent=True),
    "needle_logprob": Metric("needle nats/token", higher_is_better=True, most=0),
    "needle_gain": Metric("needle gain, nats/token", higher_is_better=True),
    "train_loss": Metric("train loss", higher_is_better=False, least=0),
    "tokens_per_second": Metric("tokens/s", higher_is_better=True, of_device=True, least=0),
    "train_tokens_per_second": Metric("training tokens/s", higher_is_better=True, of_device=True, least=0),
    "mfu": Metric("MFU", higher_is_better=True, percent=True, of_device=True),
    "peak_memory_bytes": Metric("peak memory, bytes", higher_is_better=False, of_device=True, least=0),
    "train_out_of_memory": Metric("training out of memory", higher_is_better=False, of_device=True, least=0),
    "prefill_tokens_per_second": Metric("prefill tokens/s", higher_is_better=True, of_device=True, least=0),
    "decode_tokens_per_second": Metric("decoding tokens/s", higher_is_better=True, of_device=True, least=0),
    "state_bytes": Metric("state, bytes a sequence", higher_is_better=False, least=0),
    "decode_out_of_memory": Metric("decoding out of memory", higher_is_better=False, of_device=True, least=0),
    "matmul_tflops": Metric("matrix products, TFLOP/s", higher_is_better=True, of_device=True, least=0),
}

BUILT_IN = frozenset(METRICS)
"""Names of the metrics declared here; METRICS also holds those of suites from elsewhere, once they are loaded."""


def without_details(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame of records whose metric is no detail of another number."""
    return frame[~frame["metric"].map(lambda name: METRICS[name].detail).astype(bool)]


def declare(metrics: Mapping[str, Metric]) -> None:
    """Add the metrics of a suite. Raises ValueError if one of the names is declared with other fields."""
    for name, metric in metrics.items():
        if METRICS.get(name, metric) != metric:
            raise ValueError(f"metrics: {name!r} is declared already, as {METRICS[name]}; choose another name")
    METRICS.update(metrics)
