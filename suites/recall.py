"""Recall from context: multi-query associative recall (Zoology, arXiv 2312.04927) in words of the model's vocabulary.

A sample lists `pairs` keys with their values and then names one key; the model recalls when the most likely next
token, out of its whole vocabulary, is that key's value. Our training data of the same form is in harness.synthetic.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator
from transformers import PreTrainedTokenizerBase

from harness.records import Measurement
from harness.synthetic import mqar, mqar_text, recall_words
from suites.requests import each_once, fingerprint, measure, tokenizer_of

SUITE = "recall"


class Config(BaseModel):
    """pairs: numbers of key–value pairs, each a difficulty of its own. samples: of each. seed: of the samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: list[PositiveInt] = Field(default=[4, 8, 16, 32], min_length=1)
    samples: PositiveInt = 500
    seed: int = 0

    _each_once = field_validator("pairs")(each_once)


def samples(words: tuple[list[str], list[str]], pairs: int, count: int, seed: int) -> list[tuple[str, str]]:
    """(listing and query, answer) of `count` samples, a function of the arguments alone."""
    drawn = []
    for index in range(count):
        rng = Random(f"mqar evaluation {seed} {pairs} {index}")
        keys, values = mqar(rng, words, pairs)
        asked = rng.randrange(pairs)
        listing = [word for pair in zip(keys, values, strict=True) for word in pair]
        drawn.append((mqar_text([*listing, keys[asked]]), mqar_text([values[asked]])))
    return drawn


def check(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError when the tokenizer has too few words for the most pairs."""
    samples(recall_words(tokenizer), max(config.pairs), 1, config.seed)


def run(lm: LM, config: Config, progress: Callable[[str], None] = lambda message: None) -> list[Measurement]:
    """`acc` of mqar at every number of pairs, which the measurements carry as their length, on any lm-eval model.

    Raises ValueError when the model's vocabulary has too few words that are single tokens.
    """
    words = recall_words(tokenizer_of(lm, SUITE))
    results = []
    for pairs in config.pairs:
        progress(f"recall mqar@{pairs}: {config.samples} samples")
        drawn = samples(words, pairs, config.samples, config.seed)
        instances = [Instance("loglikelihood", {}, pair, i, ("mqar", i, 1)) for i, pair in enumerate(drawn)]
        scores = [float(greedy) for _, greedy in lm.loglikelihood(instances)]
        settings = {"items_sha256": fingerprint(drawn), "length_unit": "key-value pairs"}
        results.append(measure("acc", scores, suite=SUITE, task="mqar", length=pairs, settings=settings))
    return results
