"""The continuous needle score: how much likelier an answer becomes through the passage that holds it.

Accuracy by substring is all or nothing, and near zero for small models. The log-likelihood of the gold answer after
the prompt, and its gain over the same prompt without the needle, distinguish a small model that reads its context from
one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.records.record import Measurement
from suites.shared.lm_requests import log_likelihoods, mean_measurement

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass(frozen=True)
class Probe:
    """A question asked twice: over a passage that holds the needle, and over the same passage without it.

    without: the prompt without the needle. None if the needle cannot be taken out; then there is no gain.
    continuation: the gold answer as it would follow either prompt, leading space included.
    """

    prompt: str
    without: str | None
    continuation: str


def needle_scores(lm: LM, task: str, probes: Sequence[Probe]) -> tuple[list[float], list[float]]:
    """Return the answers' log-likelihoods and their gains over the prompts without needles, in nats per token.

    There is one log-likelihood per probe, and one gain per probe whose `without` is not None. The model's own
    tokenizer counts the answer's tokens in place, after the prompt, as lm-eval scores them: SentencePiece splits a
    leading space differently when it tokenises an answer alone. Raises ValueError if an answer adds no token.
    """
    counts = []
    for probe in probes:
        count = len(lm.tok_encode(probe.prompt + probe.continuation)) - len(lm.tok_encode(probe.prompt))
        if count < 1:
            raise ValueError(f"{task}: the answer {probe.continuation!r} adds no token to its prompt; use another task")
        counts.append(count)
    pairs = [(probe.prompt, probe.continuation) for probe in probes]
    paired = [i for i, probe in enumerate(probes) if probe.without is not None]
    pairs += [(probes[i].without, probes[i].continuation) for i in paired]
    values = log_likelihoods(lm, task, pairs)
    with_needle, without_needle = values[: len(probes)], values[len(probes) :]
    return (
        [value / count for value, count in zip(with_needle, counts, strict=True)],
        [(with_needle[i] - value) / counts[i] for i, value in zip(paired, without_needle, strict=True)],
    )


def needle_measurements(lm: LM, probes: Sequence[Probe], task: str, **fields: Any) -> list[Measurement]:
    """Return `needle_logprob` of the probes, and `needle_gain` if any has a prompt without the needle.

    fields: further fields of Measurement.
    """
    logprobs, gains = needle_scores(lm, task, probes)
    measurements = [mean_measurement("needle_logprob", logprobs, task=task, **fields)]
    if gains:
        measurements.append(mean_measurement("needle_gain", gains, task=task, **fields))
    return measurements
