"""Needles in a haystack: RULER's wording, the composition of a sample, and training rows in four of its formats.

suites/ruler scores the samples, and composes them from `FORMATS` as the rows are. Templates, numbers of needles and the
composition are those of RULER (arXiv 2404.06654; NVIDIA/RULER) as lm-eval 0.4.13 runs it.

A training row is one sample: BOS, prompt, answer, and BOS again up to the row's length. Its context is as large as
fits. Essays are prose of the training split, cut at a random place; no row reads a held-out document or an essay of
the evaluation. The generator of a row is seeded with "TASK SEED NUMBER", and the evaluation's with
"TASK:LENGTH:SEED:INDEX", so the two streams have no sample in common except by chance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Literal
from uuid import UUID

if TYPE_CHECKING:  # harness.experiments.schema imports this module for its formats and needs neither
    from transformers import PreTrainedTokenizerFast

    from harness.data.shards import TokenData

Parts = tuple[str, str | None, tuple[str, ...], str]
"""A prompt, the prompt without the needles that are asked for, the gold answers, and these as they follow it."""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The line that RULER repeats."""
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
QUESTION = "What is the special magic {kind} for {key} mentioned in the provided text?"
PREFIX = " The special magic {kind} for {key} mentioned in the provided text is"
# RULER's wording for one question with one answer (TEMPLATE), and for several of either (TEMPLATE_MANY).
TEMPLATE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n" + QUESTION
)
TEMPLATE_MANY = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind}s afterwards.\n{context}\n"
    "What are all the special magic {kind}s for {key} mentioned in the provided text?"
)
PREFIX_MANY = " The special magic {kind}s for {key} mentioned in the provided text are"

DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Depths of needles in an essay: percentages of its sentences."""
FEWEST_WORDS = 20
"""Words of the shortest essay; a shorter one is shorter than two needles and hides nothing."""
SPARE = 4
"""Tokens up to which a row is not filled any further, as many as few words have."""
TRIED, SLACK = 32, 32
"""Rows from which the shortest length of a format is measured, and the tokens added, since other rows may be longer."""

# A full stop after one of these does not end a sentence.
TITLES = frozenset({"Mr.", "Mrs.", "Dr.", "St.", "Messrs.", "Rev.", "Prof.", "Capt.", "Col.", "e.g.", "i.e.", "viz."})
INITIAL = re.compile(r"[A-Z]\.")
BOUNDARY = re.compile(r"""(\S*[.!?]["'”’)\]]*) (?=["'“‘(\[]*[A-Z0-9])""")


@dataclass(frozen=True)
class Format:
    """The format of a needle task.

    hay: the context's content; for the suite's other tasks, whatever theirs is. kind: values are numbers or UUIDs. key:
    keys are words or UUIDs. keys: number of keys. values: values per key. queries: keys that are asked for.
    """

    hay: str
    kind: Literal["number", "uuid"] = "number"
    key: Literal["word", "uuid"] = "word"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def needles(self) -> int:
        """The number of needles."""
        return self.keys * self.values


FORMATS = {
    "s_niah_1": Format("noise"),
    "s_niah_2": Format("essay"),
    "s_niah_3": Format("essay", kind="uuid"),
    "mk_niah_1": Format("essay", keys=4),
}
"""The formats that training has rows of, by RULER's task: those of the paper. Each has one answer."""


@cache
def vocabulary(*categories: str) -> tuple[str, ...]:
    """Wonderwords' words of some categories, sorted; RULER makes keys and lists of them."""
    from wonderwords import RandomWord

    words = RandomWord()
    return tuple(sorted({word for name in categories for word in words.filter(include_categories=[name])}))


def draw_keys(rng: Random, kind: str, count: int) -> list[str]:
    """`count` distinct keys: adjective-noun pairs, or UUIDs."""
    if kind == "uuid":
        return draw_values(rng, kind, count)
    adjectives, nouns = vocabulary("adjective"), vocabulary("noun")
    picked = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}" for i in picked]


def draw_values(rng: Random, kind: str, count: int) -> list[str]:
    """`count` distinct values: numbers of seven digits, or UUIDs."""
    if kind == "number":
        return [str(value) for value in rng.sample(range(10**6, 10**7), count)]
    return [str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text without line breaks; joining them by spaces restores it.

    The rule is simpler than RULER's nltk: a sentence ends after a full stop, exclamation or question mark and any
    closing quotes or brackets, if a capital or digit follows and the word is neither a title nor an initial. Depths are
    fractions of the number of sentences, so a needle can lie a sentence away from its place under nltk; no word
    changes.
    """
    sentences, start = [], 0
    for match in BOUNDARY.finditer(text):
        last = match.group(1).lstrip("\"'“‘([")
        if last in TITLES or INITIAL.fullmatch(last):
            continue
        sentences.append(text[start : match.end(1)])
        start = match.end()
    sentences.append(text[start:])
    return tuple(sentences)


def compose(form: Format, rng: Random, size: int, essay: Callable[[int], Sequence[str]]) -> Parts:
    """Compose needles in a haystack of `size` words (essays) or lines (noise, needles).

    essay: gives the sentences of an essay of some number of words; only essay formats call it.
    """
    others = size if form.hay == "needles" else 0
    keys = draw_keys(rng, form.key, form.keys + others)
    values = draw_values(rng, form.kind, form.needles + others)
    asked = [rng.randrange(form.keys)] if form.queries == 1 else rng.sample(range(form.keys), form.queries)
    if form.hay == "essay":
        hay, joint = essay(size), " "
        places = sorted(len(hay) * depth // 100 for depth in rng.sample(DEPTHS, form.needles))
    else:
        lines = zip(keys[form.keys :], values[form.needles :], strict=True)
        hay = [NEEDLE.format(kind=form.kind, key=key, value=value) for key, value in lines] or (NOISE,) * size
        joint = "\n"
        places = sorted(rng.sample(range(size), form.needles))
    order = rng.sample(range(form.needles), form.needles)
    pieces, gold, start = [], {}, 0
    for place, index in zip(places, order, strict=True):
        pieces += hay[start:place]
        start = place
        key = index // form.values
        if key in asked:
            gold[len(pieces)] = key, values[index]
        pieces.append(NEEDLE.format(kind=form.kind, key=keys[key], value=values[index]))
    pieces += hay[start:]
    many = form.queries * form.values > 1
    names = [keys[key] for key in asked]
    query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
    answers = tuple(value for key in asked for owner, value in gold.values() if owner == key)

    def prompt(parts: list[str]) -> str:
        template = TEMPLATE_MANY + PREFIX_MANY if many else TEMPLATE + PREFIX
        return template.format(kind=form.kind, context=joint.join(parts), key=query)

    rest = [piece for at, piece in enumerate(pieces) if at not in gold]
    return prompt(pieces), prompt(rest), answers, " " + ", ".join(answers)


def row(
    task: str, stream: str, length: int, tokenizer: PreTrainedTokenizerFast, data: TokenData | None
) -> tuple[list[int], list[int]]:
    """One training row in the format of a task: `length` token ids, and 1 for each token of the answer, else 0.

    stream: names the row. data: essays are cut from its training split; other formats take None. Raises ValueError if
    the smallest context does not fit.
    """
    form = FORMATS[task]
    if form.hay == "essay":
        words, unit = _words(Random(f"{stream} text"), length, tokenizer, data)
        # An essay may be shorter than FEWEST_WORDS where the words of its text have very many tokens.
        least, most = 0, len(words)
    else:
        words, unit = [], len(tokenizer.encode(f"\n{NOISE}", add_special_tokens=False))
        least, most = form.needles, length

    def drawn(size: int) -> tuple[list[int], int]:
        return _sample(task, stream, size, words, tokenizer)

    ids, answer = drawn(_largest(lambda size: len(drawn(size)[0]), least, most, unit, length))
    if len(ids) > length:
        raise ValueError(f"seq_len: {length - 1} is too short for {task}; use at least {len(ids) - 1 + SLACK}")
    rest = length - len(ids)
    return ids + [tokenizer.bos_token_id] * rest, [0] * (len(ids) - answer) + [1] * answer + [0] * rest


def shortest_row(task: str, tokenizer: PreTrainedTokenizerFast, data: TokenData | None) -> int:
    """Smallest seq_len of a format's rows: room for a question, its answer and needles, with a little hay about them.

    Measured over TRIED rows, with SLACK. Raises ValueError if the training split of `data` is shorter than an essay.
    """
    essay, longest = FORMATS[task].hay == "essay", 0
    if essay:
        data.windows("train", 8 * FEWEST_WORDS)
    for number in range(TRIED):
        stream = f"shortest {task} {number}"
        words = _words(Random(stream), 8 * FEWEST_WORDS, tokenizer, data)[0] if essay else []
        size = FEWEST_WORDS if essay else FORMATS[task].needles
        longest = max(longest, len(_sample(task, stream, size, words, tokenizer)[0]))
    return longest - 1 + SLACK


def _sample(
    task: str, stream: str, size: int, words: list[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], int]:
    """The tokens of a sample with a context of some size, BOS included, and how many of them, the last, are the answer.

    The answer's tokens are those that it adds to its prompt, as lm-eval scores them.
    """
    prompt, _, _, answer = compose(FORMATS[task], Random(stream), size, lambda n: split_sentences(" ".join(words[:n])))
    line = prompt.rpartition("\n")[2]
    alone, answered = (len(tokenizer.encode(text, add_special_tokens=False)) for text in (line, line + answer))
    return [tokenizer.bos_token_id, *tokenizer.encode(prompt + answer, add_special_tokens=False)], answered - alone


def _words(rng: Random, length: int, tokenizer: PreTrainedTokenizerFast, data: TokenData) -> tuple[list[str], float]:
    """Words of the training split from a random place on, enough for `length` tokens, and the mean tokens of a word.

    Words are split at white space. The first and the last one, which may be cut, are left out.
    """
    stream = data.tokens("train")
    # Twice as many tokens as are needed: documents lose their line breaks and their BOS.
    count = min(2 * length, len(stream))
    start = rng.randrange(len(stream) - count + 1)
    text = tokenizer.decode(stream[start : start + count].tolist(), clean_up_tokenization_spaces=False)
    words = text.replace(tokenizer.bos_token, " ").split()[1:-1]
    return words, count / max(1, len(words))


def _largest(count: Callable[[int], int], least: int, most: int, unit: float, room: int) -> int:
    """A size from `least` to `most` whose row takes at most `room` tokens, and fills it to within SPARE tokens if any
    does; `least` if nothing fits.

    count: tokens of the row of a size. They are nearly linear in it, so interpolation asks for few sizes. unit: mean
    tokens that a size more takes.
    """
    low, taken = least, count(least)
    high, over = most + 1, None
    while high - low > 1 and room - taken > SPARE:
        step = (room - taken) / unit if over is None else (high - low) * (room - taken) / (over - taken)
        size = min(max(low + int(step), low + 1), high - 1)
        tokens = count(size)
        if tokens <= room:
            low, taken = size, tokens
        else:
            high, over = size, tokens
    return low
