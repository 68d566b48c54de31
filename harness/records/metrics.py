"""What is measured: every metric's direction, unit and printed name, declared once and read everywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    higher_is_better: its direction. percent: the stored value is a fraction and tables print it times 100.
    display: the heading that tables print. of_device: values are comparable on the same device alone.
    """

    display: str
    higher_is_better: bool
    percent: bool = False
    of_device: bool = False


METRICS: dict[str, Metric] = {
    "word_perplexity": Metric("ppl", higher_is_better=False),
    "perplexity": Metric("ppl", higher_is_better=False),
    "bits_per_byte": Metric("bits/byte", higher_is_better=False),
    "acc": Metric("acc", higher_is_better=True, percent=True),
    "acc_norm": Metric("acc_n", higher_is_better=True, percent=True),
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
