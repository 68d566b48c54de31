"""Every metric's direction, unit and printed name, declared once and read everywhere."""

from __future__ import annotations

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
    detail: takes another number apart, for figures of its own; no column of tables.
    """

    display: str
    higher_is_better: bool
    percent: bool = False
    of_device: bool = False
    logarithmic: bool = False
    detail: bool = False

    @property
    def scale(self) -> int:
        """The factor from the stored value to the printed one: 100 for percent, else 1."""
        return 100 if self.percent else 1

    @property
    def arrow(self) -> str:
        """The direction as headings show it."""
        return "↑" if self.higher_is_better else "↓"


METRICS: dict[str, Metric] = {
    "word_perplexity": Metric("ppl", higher_is_better=False, logarithmic=True),
    "perplexity": Metric("ppl", higher_is_better=False, logarithmic=True),
    "bits_per_byte": Metric("bits/byte", higher_is_better=False),
    "acc": Metric("acc", higher_is_better=True, percent=True),
    "acc_norm": Metric("acc_n", higher_is_better=True, percent=True),
    "scaled_acc": Metric("scaled acc", higher_is_better=True, percent=True),
    "acc_by_position": Metric("acc by position", higher_is_better=True, percent=True, detail=True),
    "acc_by_distance": Metric("acc by distance", higher_is_better=True, percent=True, detail=True),
    "stale": Metric("stale", higher_is_better=False, percent=True),
    "contains": Metric("contains", higher_is_better=True, percent=True),
    "needle_logprob": Metric("needle nats/token", higher_is_better=True),
    "needle_gain": Metric("needle gain, nats/token", higher_is_better=True),
    "train_loss": Metric("train loss", higher_is_better=False),
    "tokens_per_second": Metric("tokens/s", higher_is_better=True, of_device=True),
    "train_tokens_per_second": Metric("training tokens/s", higher_is_better=True, of_device=True),
    "mfu": Metric("MFU", higher_is_better=True, percent=True, of_device=True),
    "peak_memory_bytes": Metric("peak memory, bytes", higher_is_better=False, of_device=True),
    "train_out_of_memory": Metric("training out of memory", higher_is_better=False, of_device=True),
    "prefill_tokens_per_second": Metric("prefill tokens/s", higher_is_better=True, of_device=True),
    "decode_tokens_per_second": Metric("decoding tokens/s", higher_is_better=True, of_device=True),
    "state_bytes": Metric("state, bytes a sequence", higher_is_better=False),
    "decode_out_of_memory": Metric("decoding out of memory", higher_is_better=False, of_device=True),
    "matmul_tflops": Metric("matrix products, TFLOP/s", higher_is_better=True, of_device=True),
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
