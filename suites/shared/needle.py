"""The continuous needle score: how much likelier an answer is made by the passage that holds it.

Accuracy by substring is all or nothing, and near zero for small models. The log-likelihood of the gold answer at the
answer position, and its gain over the same prompt with the needle removed, tell a small model that reads its context
from one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import LM

from harness.records.store import Measurement
from suites.shared.lm_requests import log_likelihoods, mean_measurement


@dataclass(frozen=True)
class Probe:
    """A question asked twice: over a passage that holds the needle, and over the same passage `without` it.

    continuation: the gold answer as it would follow either prompt, its leading space included. without: None where
    there is no needle to take out; then there is no gain either.
    """

    prompt: str
    without: str | None
    continuation: str


def needle_scores(lm: LM, task: str, probes: Sequence[Probe]) -> tuple[list[float], list[float]]:
    """Per probe, the answer's log-likelihood and its gain over the prompt without the needle, both in nats per token.

    Gains are of the probes that have a prompt without the needle.
    Tokens of the answer are counted with the model's own tokenizer where they stand, after the prompt, as lm-eval
    scores them: SentencePiece splits a leading space differently on its own.
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
    found, lost = values[: len(probes)], values[len(probes) :]
    return (
        [value / count for value, count in zip(found, counts, strict=True)],
        [(found[i] - other) / counts[i] for i, other in zip(paired, lost, strict=True)],
    )


def needle_measurements(lm: LM, probes: Sequence[Probe], task: str, **rest: Any) -> list[Measurement]:
    """needle_logprob of the probes, and needle_gain where they have a prompt without the needle; `rest` are further
    fields of Measurement."""
    logprobs, gains = needle_scores(lm, task, probes)
    found = [mean_measurement("needle_logprob", logprobs, task=task, **rest)]
    return [*found, mean_measurement("needle_gain", gains, task=task, **rest)] if gains else found
