"""An lm-eval model that answers by searching its prompt, or never; a suite's score must distinguish the two."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

from lm_eval.api.model import TemplateLM
from transformers import PreTrainedTokenizerFast

from harness.data.corpus import TOKENIZER

# Log-likelihood in nats per token of an answer that the prompt contains, and of any other.
KNOWN, UNKNOWN = -0.25, -4.0
NEEDLE_ASKED = " mentioned in the provided text is"


class RememberingTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that encodes a text once: tests ask for the same documents and prompts again and again."""

    def encode(self, text: str, **options: Any) -> list[int]:
        if set(options) - {"add_special_tokens"}:
            return super().encode(text, **options)
        return list(_ids(text))  # with and without special tokens, since it adds none


@lru_cache(maxsize=2048)
def _ids(text: str) -> tuple[int, ...]:
    return tuple(PreTrainedTokenizerFast.encode(tokenizer(), text, add_special_tokens=False))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return the embedded tokenizer, with a BOS token."""
    return RememberingTokenizer(tokenizer_file=str(TOKENIZER), bos_token="<|bos|>")


def read_out(prompt: str) -> str | None:
    """Return the value that a prompt contains for the key asked at its end, or None."""
    if prompt.endswith(NEEDLE_ASKED):
        key = prompt.removesuffix(NEEDLE_ASKED).rsplit(" for ", 1)[1]
        found = re.search(rf"for {re.escape(key)} is: (\S+)\.", prompt)
        return found[1] if found else None
    last = prompt.rsplit("\n", 1)[1].removesuffix(":")
    # The question follows a full stop, but parts of the line before it may, too.
    for key in [last[m.end() :] for m in re.finditer(r"\. ", last)]:
        # The question begins with a capital, its line may not.
        if found := re.search(rf"^{re.escape(key)}: (.*)$", prompt, re.MULTILINE | re.IGNORECASE):
            return found[1].removesuffix(f". {key}:")
    return None


class SearchingLM(TemplateLM):
    """A model that is perfect with `sees` and blind without; its text and log-likelihoods follow from read_out."""

    def __init__(self, sees: bool, max_length: int | None = None):
        super().__init__()
        self.sees = sees
        self.tokenizer = tokenizer()
        self.max_length = max_length
        self.generation_options: list[dict[str, Any]] = []

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.bos_token_id

    def tok_encode(self, string: str, **kwargs: Any) -> list[int]:
        return [self.tokenizer.bos_token_id, *self.tokenizer.encode(string, add_special_tokens=False)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        self.generation_options += [request.args[1] for request in requests]
        return [f" {read_out(request.args[0]) or '?'}" if self.sees else " ?" for request in requests]

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        known = [self.sees and read_out(context) == continuation.strip() for (context, continuation), _, _ in requests]
        return [((KNOWN if k else UNKNOWN) * len(tokens), k) for k, (_, _, tokens) in zip(known, requests, strict=True)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        raise NotImplementedError("no retrieval suite asks for it")
