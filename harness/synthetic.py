"""Synthetic recall as training data, in the model's own words; suites/recall.py scores it.

A row is a pure function of (seed, its number). `mqar` (Zoology, arXiv 2312.04927): key–value pairs, then their keys
again and again in random order, each to be answered with its value.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.data import TokenData

MQAR_PAIRS = (4, 8, 16)
MQAR_WORDS = 128
_ORDINARY = re.compile(r"[Ġ▁]([a-z]{3,})")  # with the mark that byte-level BPE or SentencePiece gives a word's start


@lru_cache
def recall_words(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """Key words and value words: ordinary lower-case words that are one token each with the space before them.

    Raises ValueError when the vocabulary has fewer than MQAR_WORDS of them.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [match[1] for token, _ in vocabulary if (match := _ORDINARY.fullmatch(token))][:MQAR_WORDS]
    if len(words) < MQAR_WORDS:
        raise ValueError(
            f"tokenizer: only {len(words)} whole words are single tokens, recall tasks need {MQAR_WORDS}; use a larger "
            "vocabulary"
        )
    return words[::2], words[1::2]


def mqar(rng: random.Random, words: tuple[list[str], list[str]], pairs: int) -> tuple[list[str], list[str]]:
    """One sample: `pairs` different keys with values drawn at random."""
    keys, values = words
    if not 0 < pairs <= len(keys):
        raise ValueError(f"pairs: {pairs} is outside 1 to {len(keys)}, the number of key words")
    return rng.sample(keys, pairs), rng.choices(values, k=pairs)


def mqar_text(words: list[str]) -> str:
    """A listing of keys and values as the models read it."""
    return "".join(f" {word}" for word in words)


def _mqar_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast, length: int) -> tuple[list[int], list[int]]:
    """One sample a row: were a second one listed behind it, its keys would be keys of the first with other values."""
    words = recall_words(tokenizer)
    pairs = rng.choice([pairs for pairs in MQAR_PAIRS if 2 * pairs < length // 2])
    keys, values = mqar(rng, words, pairs)
    table = dict(zip(keys, values, strict=True))
    queries: list[str] = []
    while 2 * (pairs + len(queries)) < length:
        queries += rng.sample(keys, pairs)
    text = mqar_text([word for key in keys + queries for word in (key, table[key])])
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    targets = [0] * (1 + 2 * pairs) + [0, 1] * len(queries)
    return ids[:length], targets[:length]


def rows(
    task: str, seed: int, start: int, count: int, seq_len: int, tokenizer: PreTrainedTokenizerFast, data: TokenData
) -> tuple[Tensor, Tensor]:
    """Rows start … start + count - 1 of a task's endless order under `seed`: tokens [count, seq_len + 1] int64 and,
    over their targets, which of them count in the loss, [count, seq_len] bool.
    """
    if task == "text":
        tokens = data.samples("train", seed, start, count, seq_len)
        return tokens, torch.ones(count, seq_len, dtype=torch.bool)
    drawn = [_mqar_row(random.Random(f"mqar {seed} {start + row}"), tokenizer, seq_len + 1) for row in range(count)]
    return torch.tensor([ids for ids, _ in drawn]), torch.tensor([asked for _, asked in drawn])[:, 1:].bool()
