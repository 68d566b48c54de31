"""Synthetic recall tasks as training rows; suites/recall.py scores them. Needles are in harness.data.needles.

A row first writes values to keys. Then it asks for the keys over and over in random order, and the answer is the value
last written to the key. Keys and values are words of the model's own vocabulary, and so is the marker that stands
before every question: without it the question about the last key written would directly follow its value, as no other
question does. A row is a pure function of (task, seed, row number). The tasks differ in what they write, and each has
one difficulty:

    mqar          `pairs` different keys, each written once (Zoology, arXiv 2312.04927). Tests how much the state holds.
    overwrite     8 keys, then 4 of them again, `rewrites` times each. Tests whether the old value is erased.
    protect       2 keys, then `writes` writes to 6 others. Tests whether the first values survive decay and later
                  writes. The number of different keys is constant, so the state never has more to hold.
    interference  16 keys of two words, in grids of `shared` first words by `shared` second words. Every key shares one
                  word with 2 (shared - 1) others, so keys overlap while their number is constant. From 2 on, neither
                  word alone identifies a key, and keys built as sums of word vectors are linearly dependent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from harness.data import needles

if TYPE_CHECKING:  # harness.experiments.schema imports this module for its tasks and needs neither
    from transformers import PreTrainedTokenizerFast

    from harness.data.shards import TokenData

WORDS = 128
REWRITTEN, LEFT_ALONE = 4, 4  # keys of overwrite
PROTECTED, OTHERS = 2, 6  # keys of protect
COMPOSITE = 16  # keys of interference
_ORDINARY = re.compile(r"[Ġ▁]([a-z]{3,})")  # preceded by the mark of a word start in byte-level BPE or SentencePiece

Questions = Literal["marked", "bare"]
"""Questions of a key alone (`bare`), or with the marker before it."""
Words = tuple[list[str], list[str]]
"""Key words and value words."""
Key = tuple[str, ...]
"""The words of a key."""


@dataclass(frozen=True)
class Sample:
    """One draw of a task.

    writes: (key, value) pairs in order. asked: the keys whose answers the task is about; training asks for all keys.
    """

    writes: list[tuple[Key, str]]
    asked: list[Key]

    @property
    def answers(self) -> dict[Key, str]:
        """The last value written to each key; keys in the order of their first write."""
        return dict(self.writes)

    def old_values(self, key: Key) -> list[str]:
        """The values of a key that were overwritten, oldest first."""
        return [value for written, value in self.writes if written == key][:-1]

    @property
    def listing(self) -> list[str]:
        """The writes as a list of words."""
        return [word for key, value in self.writes for word in (*key, value)]


@lru_cache
def _ordinary_words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The first WORDS + 1 lower-case words that are a single token together with the space before them."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [match[1] for token, _ in vocabulary if (match := _ORDINARY.fullmatch(token))][: WORDS + 1]
    if len(words) <= WORDS:
        raise ValueError(
            f"tokenizer: only {len(words)} whole words are single tokens, recall tasks need {WORDS + 1}; use a larger "
            "vocabulary"
        )
    return words


def recall_words(tokenizer: PreTrainedTokenizerFast) -> Words:
    """Key words and value words: lower-case words that are a single token together with the space before them.

    Raises ValueError if the vocabulary has too few of them.
    """
    words = _ordinary_words(tokenizer)[:WORDS]
    return words[::2], words[1::2]


def question(tokenizer: PreTrainedTokenizerFast, key: Key, form: Questions) -> list[str]:
    """The words that ask for a key."""
    return [_ordinary_words(tokenizer)[WORDS], *key] if form == "marked" else list(key)


def mqar(rng: random.Random, words: Words, pairs: int) -> Sample:
    """Write a random value to each of `pairs` different keys. Raises ValueError if there are fewer key words."""
    keys, values = words
    if not 0 < pairs <= len(keys):
        raise ValueError(f"pairs: {pairs} is outside 1 to {len(keys)}, the number of key words")
    drawn = [(key,) for key in rng.sample(keys, pairs)]
    return Sample(list(zip(drawn, rng.choices(values, k=pairs), strict=True)), drawn)


def overwrite(rng: random.Random, words: Words, rewrites: int) -> Sample:
    """Write every key once, then some `rewrites` times more each, in random order and each time with a new value.

    Raises ValueError if there are too few value words for that.
    """
    keys, values = words
    if not 0 < rewrites < len(values):
        raise ValueError(f"rewrites: {rewrites} is outside 1 to {len(values) - 1}, the number of value words minus one")
    drawn = [(key,) for key in rng.sample(keys, REWRITTEN + LEFT_ALONE)]
    rewritten = rng.sample(drawn, REWRITTEN)
    again = rewritten * rewrites
    rng.shuffle(again)
    series = {key: iter(rng.sample(values, rewrites + 1)) for key in drawn}
    return Sample([(key, next(series[key])) for key in drawn + again], rewritten)


def protect(rng: random.Random, words: Words, writes: int) -> Sample:
    """Write the protected keys once, then `writes` times to other keys. Raises ValueError if `writes` < 1."""
    keys, values = words
    if writes < 1:
        raise ValueError(f"writes: {writes} later writes test no protection; use at least 1")
    drawn = [(key,) for key in rng.sample(keys, PROTECTED + OTHERS)]
    order = drawn[:PROTECTED] + rng.choices(drawn[PROTECTED:], k=writes)
    return Sample(list(zip(order, rng.choices(values, k=len(order)), strict=True)), drawn[:PROTECTED])


def interference(rng: random.Random, words: Words, shared: int) -> Sample:
    """Write 16 two-word keys from grids of `shared` by `shared` words, in random order.

    Raises ValueError if such grids do not add up to 16 keys.
    """
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
    """A recall task.

    draw: draws a sample of a given difficulty. trained: difficulties that training draws from; a row uses those whose
    listing fills less than half of it. unit: what the difficulty counts; tables print its last word after the number.
    """

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
    """A listing, a key or a value as text, with a space before each word."""
    return "".join(f" {word}" for word in words)


@lru_cache
def listing_tokens(task: str, difficulty: int) -> int:
    """Number of tokens in a sample's listing, one per word."""
    words = [str(n) for n in range(WORDS)]
    return len(TASKS[task].draw(random.Random(0), (words[::2], words[1::2]), difficulty).listing)


def shortest_row(task: str) -> int:
    """Smallest seq_len of a task's rows: room for its shortest listing and as many tokens of questions."""
    return 2 * min(listing_tokens(task, difficulty) for difficulty in TASKS[task].trained) + 1


def _row(
    task: str, rng: random.Random, tokenizer: PreTrainedTokenizerFast, length: int, form: Questions
) -> tuple[list[int], list[int]]:
    """One row: its token ids, and 1 for each token that is an answer, else 0.

    A row holds one sample, since a second one would write other values to some of the same keys.
    """
    words = recall_words(tokenizer)
    fitting = [n for n in TASKS[task].trained if listing_tokens(task, n) < length // 2]
    sample = TASKS[task].draw(rng, words, rng.choice(fitting))
    listing, answers = sample.listing, sample.answers
    asked: list[str] = []
    targets = [0] * (1 + len(listing))
    while len(listing) + len(asked) < length:
        for key in rng.sample(list(answers), len(answers)):
            words_of_question = question(tokenizer, key, form)
            asked += [*words_of_question, answers[key]]
            targets += [0] * len(words_of_question) + [1]
    ids = [tokenizer.bos_token_id, *tokenizer.encode(sample_text(listing + asked), add_special_tokens=False)]
    return ids[:length], targets[:length]


def check_rows(tasks: Iterable[str], seq_len: int, tokenizer: PreTrainedTokenizerFast, data: TokenData | None) -> None:
    """Raise ValueError if rows of some of the tasks cannot be drawn: too little text, too few words, or no room."""
    for task in tasks:
        if task == "text" or (task in needles.FORMATS and needles.FORMATS[task].hay == "essay"):
            data.windows("train", seq_len)
        if task in needles.FORMATS and seq_len < (least := needles.shortest_row(task, tokenizer, data)):
            raise ValueError(f"seq_len: {seq_len} is too short for {task}; use at least {least}")
        if task in TASKS:
            recall_words(tokenizer)


def rows(
    task: str,
    seed: int,
    start: int,
    count: int,
    seq_len: int,
    tokenizer: PreTrainedTokenizerFast,
    data: TokenData,
    form: Questions = "marked",
) -> tuple[Tensor, Tensor]:
    """Rows start … start + count - 1 of a task's endless order under `seed`.

    The task "text" reads `data`, and so do needles in essays.

    Returns tokens [count, seq_len + 1] int64, and a mask [count, seq_len] bool of the targets that count in the loss.
    """
    if task == "text":
        tokens = data.samples("train", seed, start, count, seq_len)
        return tokens, torch.ones(count, seq_len, dtype=torch.bool)
    streams = [f"{task} {seed} {number}" for number in range(start, start + count)]
    if task in needles.FORMATS:
        drawn = [needles.row(task, stream, seq_len + 1, tokenizer, data) for stream in streams]
    else:
        drawn = [_row(task, random.Random(stream), tokenizer, seq_len + 1, form) for stream in streams]
    return torch.tensor([ids for ids, _ in drawn]), torch.tensor([asked for _, asked in drawn])[:, 1:].bool()
