"""Synthetic recall as training data, in the model's own words; suites/recall.py scores it.

A row is a pure function of (task, seed, its number): writes of values to keys, then the keys again and again in random
order, each to be answered with the value written to it last. The tasks differ in what is written, and each has one
difficulty:

    mqar          `pairs` different keys, each written once (Zoology, arXiv 2312.04927): how much the state holds.
    overwrite     8 keys; then four of them again, `rewrites` times each: whether the old value is erased.
    protect       2 keys, then `writes` writes to 6 others: whether decay or those writes wear the first away. The
                  number of different keys stays, so that the state never has more to hold.
    interference  16 keys of two words in grids of `shared` first words by `shared` second words: every key differs in
                  one word from 2 (shared - 1) others, so that keys overlap while their number stays. From 2 on neither
                  word tells alone, and keys that add up their words' vectors are linearly dependent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # harness.experiments.schema reads this module's tasks and needs neither
    from transformers import PreTrainedTokenizerFast

    from harness.data.shards import TokenData

WORDS = 128
REWRITTEN, LEFT_ALONE = 4, 4  # keys of overwrite
PROTECTED, OTHERS = 2, 6  # keys of protect
COMPOSITE = 16  # keys of interference
# RULER's wording (arXiv 2404.06654): a needle, the question about it, and how its answer begins.
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
QUESTION = "What is the special magic {kind} for {key} mentioned in the provided text?"
PREFIX = " The special magic {kind} for {key} mentioned in the provided text is"
_ORDINARY = re.compile(r"[Ġ▁]([a-z]{3,})")  # with the mark that byte-level BPE or SentencePiece gives a word's start

Words = tuple[list[str], list[str]]
"""Key words and value words."""
Key = tuple[str, ...]
"""The words of a key."""


@dataclass(frozen=True)
class Sample:
    """writes: in order. asked: those keys whose answers show what the task is about; training asks for all keys."""

    writes: list[tuple[Key, str]]
    asked: list[Key]

    @property
    def answers(self) -> dict[Key, str]:
        """What was written last to every key, keys in the order in which they were first written."""
        return dict(self.writes)

    def old_values(self, key: Key) -> list[str]:
        """What was written to a key before its answer."""
        return [value for written, value in self.writes if written == key][:-1]

    @property
    def listing(self) -> list[str]:
        """The writes as words."""
        return [word for key, value in self.writes for word in (*key, value)]


@lru_cache
def recall_words(tokenizer: PreTrainedTokenizerFast) -> Words:
    """Key words and value words: ordinary lower-case words that are one token each with the space before them.

    Raises ValueError when the vocabulary has fewer than WORDS of them.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [match[1] for token, _ in vocabulary if (match := _ORDINARY.fullmatch(token))][:WORDS]
    if len(words) < WORDS:
        raise ValueError(
            f"tokenizer: only {len(words)} whole words are single tokens, recall tasks need {WORDS}; use a larger "
            "vocabulary"
        )
    return words[::2], words[1::2]


def mqar(rng: random.Random, words: Words, pairs: int) -> Sample:
    """`pairs` different keys with values drawn at random."""
    keys, values = words
    if not 0 < pairs <= len(keys):
        raise ValueError(f"pairs: {pairs} is outside 1 to {len(keys)}, the number of key words")
    drawn = [(key,) for key in rng.sample(keys, pairs)]
    return Sample(list(zip(drawn, rng.choices(values, k=pairs), strict=True)), drawn)


def overwrite(rng: random.Random, words: Words, rewrites: int) -> Sample:
    """Every key once, then the rewritten ones `rewrites` times each in random order, never twice with one value."""
    keys, values = words
    if not 0 < rewrites < len(values):
        raise ValueError(f"rewrites: {rewrites} is outside 1 to {len(values) - 1}, the number of value words less one")
    drawn = [(key,) for key in rng.sample(keys, REWRITTEN + LEFT_ALONE)]
    rewritten = rng.sample(drawn, REWRITTEN)
    again = rewritten * rewrites
    rng.shuffle(again)
    series = {key: iter(rng.sample(values, rewrites + 1)) for key in drawn}
    return Sample([(key, next(series[key])) for key in drawn + again], rewritten)


def protect(rng: random.Random, words: Words, writes: int) -> Sample:
    """The protected keys once, then `writes` writes, each to one of the other keys."""
    keys, values = words
    if writes < 1:
        raise ValueError(f"writes: {writes} later writes protect from nothing; use at least 1")
    drawn = [(key,) for key in rng.sample(keys, PROTECTED + OTHERS)]
    order = drawn[:PROTECTED] + rng.choices(drawn[PROTECTED:], k=writes)
    return Sample(list(zip(order, rng.choices(values, k=len(order)), strict=True)), drawn[:PROTECTED])


def interference(rng: random.Random, words: Words, shared: int) -> Sample:
    """Grids of `shared` by `shared` words, as many as make up the keys, in random order."""
    keys, values = words
    if shared < 1 or COMPOSITE % shared**2:
        fit = [n for n in range(1, COMPOSITE + 1) if COMPOSITE % n**2 == 0]
        raise ValueError(f"shared: {shared} by {shared} grids do not make up {COMPOSITE} keys; use one of {fit}")
    drawn = iter(rng.sample(keys, 2 * COMPOSITE // shared))
    composite: list[Key] = []
    for _ in range(COMPOSITE // shared**2):
        first, second = ([next(drawn) for _ in range(shared)] for _ in range(2))
        composite += [(a, b) for a in first for b in second]
    rng.shuffle(composite)
    return Sample(list(zip(composite, rng.choices(values, k=COMPOSITE), strict=True)), composite)


@dataclass(frozen=True)
class Task:
    """draw: a sample of a difficulty. trained: difficulties of training rows, those whose listing fills less than half
    of the row. unit: what a difficulty counts; its last word follows the number in tables."""

    draw: Callable[[random.Random, Words, int], Sample]
    trained: tuple[int, ...]
    unit: str


TASKS = {
    "mqar": Task(mqar, (4, 8, 16), "key-value pairs"),
    "overwrite": Task(overwrite, (1, 2, 4), "rewrites"),
    "protect": Task(protect, (4, 8, 16, 24), "later writes"),
    "interference": Task(interference, (1, 2, 4), "keys with a word shared"),
}


def sample_text(words: list[str]) -> str:
    """A listing, a key or a value as the models read it."""
    return "".join(f" {word}" for word in words)


@lru_cache
def listing_tokens(task: str, difficulty: int) -> int:
    """Tokens of a sample's listing; every word is one."""
    words = [str(n) for n in range(WORDS)]
    return len(TASKS[task].draw(random.Random(0), (words[::2], words[1::2]), difficulty).listing)


def shortest_row(task: str) -> int:
    """The least seq_len of a task's rows: room for its shortest listing and as many tokens of questions."""
    return 2 * min(listing_tokens(task, difficulty) for difficulty in TASKS[task].trained) + 1


def _row(task: str, rng: random.Random, tokenizer: PreTrainedTokenizerFast, length: int) -> tuple[list[int], list[int]]:
    """One sample a row: were a second one listed behind it, its keys would be keys of the first with other values."""
    words = recall_words(tokenizer)
    fitting = [n for n in TASKS[task].trained if listing_tokens(task, n) < length // 2]
    sample = TASKS[task].draw(rng, words, rng.choice(fitting))
    listing, answers = sample.listing, sample.answers
    asked: list[str] = []
    targets = [0] * (1 + len(listing))
    while len(listing) + len(asked) < length:
        for key in rng.sample(list(answers), len(answers)):
            asked += [*key, answers[key]]
            targets += [0] * len(key) + [1]
    ids = [tokenizer.bos_token_id, *tokenizer.encode(sample_text(listing + asked), add_special_tokens=False)]
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
    numbers = range(start, start + count)
    drawn = [_row(task, random.Random(f"{task} {seed} {number}"), tokenizer, seq_len + 1) for number in numbers]
    return torch.tensor([ids for ids, _ in drawn]), torch.tensor([asked for _, asked in drawn])[:, 1:].bool()
