"""Requests that suites send to any lm-eval model, and the scores of its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor

from harness.lm.mixer_lm import ENOUGH, WINDOW, require_finite
from harness.records.record import Measurement
from harness.records.stats import mean_stderr


def generate(
    lm: LM,
    task: str,
    prompts: Sequence[str],
    until: Sequence[str],
    max_new_tokens: int,
    enough: Sequence[Sequence[Sequence[str]]] | None = None,
) -> list[str]:
    """Return one greedy continuation per prompt, cut before the first string of `until`.

    enough: for each prompt, lists of strings. A text that contains every string of one list, ignoring case, has the
    full score; a model that supports it stops decoding there.
    """
    options = {"until": list(until), "max_gen_toks": max_new_tokens, "do_sample": False}
    stops_early = enough is not None and getattr(lm, "stops_when_enough", False)
    instances = [
        # Each request has its own options, because some models modify them in place.
        Instance(
            "generate_until",
            {},
            (prompt, options | ({ENOUGH: [list(strings) for strings in enough[index]]} if stops_early else {})),
            index,
            (task, index, 1),
        )
        for index, prompt in enumerate(prompts)
    ]
    return lm.generate_until(instances)


def log_likelihoods(lm: LM, task: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return log p(continuation | context) of each pair (context, continuation), in nats.

    Raises NotFinite with the task and the number of a pair whose log-likelihood is not finite.
    """
    instances = [Instance("loglikelihood", {}, pair, index, (task, index, 1)) for index, pair in enumerate(pairs)]
    values = [float(value) for value, _ in lm.loglikelihood(instances)]
    require_finite(instances, values)  # not every model class refuses them
    return values


class Windowed(LM):
    """A MixerLM, or a wrapper of one, that reads documents in windows of `window` tokens, or in one go for None."""

    def __init__(self, lm: LM, window: int | None):
        super().__init__()
        self.lm, self.window = lm, window

    def loglikelihood_rolling(self, requests: list[Instance], **options: Any) -> list[float]:
        """Log-likelihood in nats of each request's document."""
        asked = [
            # The window is an argument, so that a journal of answers tells one reading from another.
            Instance(r.request_type, r.doc, (*r.args, {WINDOW: self.window}), r.idx, r.metadata)
            for r in requests
        ]
        return self.lm.loglikelihood_rolling(asked, **options)

    def loglikelihood(self, requests: list[Instance], **options: Any) -> list[tuple[float, bool]]:
        """As the inner model."""
        return self.lm.loglikelihood(requests, **options)

    def generate_until(self, requests: list[Instance], **options: Any) -> list[str]:
        """As the inner model."""
        return self.lm.generate_until(requests, **options)


def tokenizer_of(lm: LM, suite: str) -> Any:
    """Return the tokenizer of `lm`, which sizes its prompts. Raises ValueError if the model does not expose it."""
    tokenizer = getattr(lm, "tokenizer", None)
    if not callable(getattr(tokenizer, "encode", None)) or not callable(getattr(tokenizer, "decode", None)):
        raise ValueError(
            f"{suite}: {type(lm).__name__} exposes no tokenizer that encodes and decodes, and prompts are sized in "
            "tokens; use a model class with a `tokenizer` attribute"
        )
    return tokenizer


def reader_of_ids(lm: LM, suite: str) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
    """Return the tokenizer of `lm` and its method `likeliest` (harness.lm.mixer_lm), for rows of bare token ids.

    Raises ValueError if the model has none of them.
    """
    tokenizer, likeliest = tokenizer_of(lm, suite), getattr(lm, "likeliest", None)
    if likeliest is None:
        kind = type(lm).__name__
        raise ValueError(f"{suite}: {kind} reads text, and these rows are token ids; evaluate a run of ours")
    return tokenizer, likeliest


def token_count(tokenizer: Any, text: str) -> int:
    """Return how many tokens a model reads for `text`, including the BOS if the tokenizer has one."""
    return len(encode(tokenizer, text)) + (getattr(tokenizer, "bos_token", None) is not None)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of `text` without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False)


def check_prompt_length(lm: LM, field: str, tokens: int) -> None:
    """Raise ValueError if `lm` cannot read `tokens` tokens; lm-eval's models would silently drop the first ones."""
    longest = getattr(lm, "max_length", None)
    if longest is not None and longest < tokens:
        raise ValueError(f"{field}: {tokens} tokens do not fit the model's max_length of {longest}; raise max_length")


def check_distinct(values: list[Any]) -> list[Any]:
    """Return `values`; raise ValueError if one is listed twice, since a run has one value per metric. A validator."""
    if len(set(values)) != len(values):
        raise ValueError(f"{values} names one twice; name each once")
    return values


def contains(text: str, answers: Iterable[str]) -> float:
    """Return 1.0 if the text contains any of the answers, ignoring case, else 0.0."""
    return float(any(answer.lower() in text.lower() for answer in answers))


def fingerprint(items: Iterable[Any]) -> str:
    """Return the SHA-256 of items in order. Scores with equal fingerprints were measured on the same questions."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def mean_measurement(metric: str, scores: Sequence[float], **fields: Any) -> Measurement:
    """Return the mean of per-sample scores, with its standard error; `fields` are other fields of Measurement."""
    value, error = mean_stderr(scores)
    return Measurement(metric=metric, value=value, stderr=error, n=len(scores), samples=tuple(scores), **fields)
