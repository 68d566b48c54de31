"""RULER's thirteen tasks: the text of one sample, made from a generator and the size of its context.

Templates, numbers of needles and the composition of a sample are those of RULER (arXiv 2404.06654; NVIDIA/RULER) as
lm-eval 0.4.13 runs it; as there, `cwe` has no solved example, with which NVIDIA's version begins. Ours differs in three
points: needles, documents and the numbers and places of `vt`'s example are drawn anew for each sample, keys never
collide, and in `fwe` the third word is more frequent than the fourth at every length.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Literal

from harness.data.needles import FORMATS, NOISE, Format, Parts, vocabulary
from suites.ruler.haystack import Passages
from suites.shared.lm_requests import token_count

VT_TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assgined the "
    "value {value}, they are:"
)
CWE_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
CWE_PREFIX = "\n\nAnswer: The top 10 words that appear most often in the list are:"
FWE_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
QA_TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    "\n\nThe following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    "\n\nQuestion: {question}"
)
QA_PREFIX = " Answer:"
DOCUMENT = "Document {number}:\n{text}"

VARIABLES = 5
EXAMPLE_TOKENS = 500
COMMON = 10
FEWEST_CODED = 53
"""Coded words of the shortest `fwe` text; from here on each of its three words is more frequent than the next."""


@dataclass(frozen=True, kw_only=True)
class Spec(Format):
    """A task.

    hay: the context's content; of niah noise, essay or needles. Only niah has the other fields of its format. family:
    tasks that are composed alike. max_new_tokens: RULER's room for the answer. lengths: the paper's in tokens; for
    tasks that it leaves out, the shortest of RULER's.
    """

    family: Literal["niah", "vt", "cwe", "fwe", "qa"] = "niah"
    max_new_tokens: int = 128
    lengths: tuple[int, ...] = (4096,)


SPECS: dict[str, Spec] = {
    "s_niah_1": Spec(**vars(FORMATS["s_niah_1"]), lengths=(1024, 2048, 4096, 8192)),
    "s_niah_2": Spec(**vars(FORMATS["s_niah_2"]), lengths=(1024, 2048, 4096, 8192)),
    "s_niah_3": Spec(**vars(FORMATS["s_niah_3"]), lengths=(1024, 2048, 4096)),
    "mk_niah_1": Spec(**vars(FORMATS["mk_niah_1"]), lengths=(1024, 2048, 4096)),
    "mk_niah_2": Spec(hay="needles"),
    "mk_niah_3": Spec(hay="needles", kind="uuid", key="uuid"),
    "mv_niah": Spec(hay="essay", values=4),
    "mq_niah": Spec(hay="essay", keys=4, queries=4),
    "vt": Spec(family="vt", hay="noise", max_new_tokens=30),
    "cwe": Spec(family="cwe", hay="words", max_new_tokens=120),
    "fwe": Spec(family="fwe", hay="coded words", max_new_tokens=50),
    "qa_1": Spec(family="qa", hay="squad", max_new_tokens=32),
    "qa_2": Spec(family="qa", hay="hotpotqa", max_new_tokens=32),
}


@dataclass(frozen=True)
class Sample:
    """A prompt and its gold answers.

    without: the prompt without the needles that are asked for (for `vt`, without the chain). None for cwe, fwe and qa,
    where no removable part is the only ground of the answer: a list without its common words has other common words,
    and other passages or world knowledge may give the answer. continuation: the answers as they would follow the
    prompt, in the order of the text (mv_niah, vt), of the question (mq_niah) or of frequency (fwe); for qa the first
    answer. tokens: tokens that a model reads for the prompt, BOS included.
    """

    prompt: str
    without: str | None
    answers: tuple[str, ...]
    continuation: str
    tokens: int


def draw_letters(rng: Random, alphabet: str, length: int, count: int) -> list[str]:
    """Return `count` distinct strings of `length` letters of an alphabet, never the keyword VAR."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(alphabet, k=length))] = None
        words.pop("VAR", None)
    return list(words)


def chain(rng: Random, lines: int, letters: int) -> tuple[str, str, list[str]]:
    """Compose a chain of assignments between lines of noise, with a question about it.

    Returns the text, the text without the chain, and the chain's variables. letters: of each variable's name.
    """
    names = draw_letters(rng, string.ascii_uppercase, letters, VARIABLES)
    value = rng.randrange(10000, 99999)
    statements = [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(names))]
    hay = [f"{NOISE}\n"] * lines
    pieces = list(hay)
    for shift, place in enumerate(sorted(rng.sample(range(lines), VARIABLES))):
        pieces.insert(place + shift, statements[shift])

    def ask(parts: list[str]) -> str:
        return (VT_TEMPLATE + VT_PREFIX).format(context=" ".join(parts), value=value, count=VARIABLES)

    return ask(pieces), ask(hay), names


def solved_chain(rng: Random, lines: int) -> str:
    """Return the solved example that RULER shows first; its variables have three letters."""
    text, _, names = chain(rng, lines, 3)
    return f"{text}  {' '.join(names)}\n\n\n\n"


def example_lines(tokenizer: Any) -> int:
    """Return the example's lines of noise: a multiple of five that fits RULER's 500 tokens, and enough for a chain."""
    lines = 5
    while lines < EXAMPLE_TOKENS and (
        token_count(tokenizer, solved_chain(Random("vt example"), lines + 5)) + SPECS["vt"].max_new_tokens
        <= EXAMPLE_TOKENS
    ):
        lines += 5
    return max(lines, VARIABLES + 1)


def variable_tracking(lines: int, rng: Random, size: int) -> Parts:
    """Compose a chain among `size` lines of noise, after an example with `lines` lines of noise."""
    example = solved_chain(rng, lines)
    text, without, names = chain(rng, size, 5)
    return example + text, example + without, tuple(names), " " + " ".join(names)


def cwe_words() -> tuple[str, ...]:
    """Return the words that `cwe` draws from."""
    return vocabulary("noun", "adjective", "verb")


def common_words(length: int, rng: Random, size: int) -> Parts:
    """Compose a list of `size` distinct words, ten of which occur several times as often as the rest.

    length: tokens of the prompt; it sets how often words occur.
    """
    words = rng.sample(cwe_words(), size)
    often, seldom = (6, 1) if length < 4096 else (30, 3)
    gold = words[:COMMON]
    listed = gold * often + words[COMMON:] * seldom
    rng.shuffle(listed)
    prompt = CWE_TEMPLATE.format(context=numbered(listed)) + CWE_PREFIX
    return prompt, None, tuple(gold), f" {numbered(gold)}"


def cwe_example(length: int) -> str:
    """Return an example as long as the one for which lm-eval keeps tokens free in `cwe`, and which it never sends."""
    size, often, seldom = (20, 3, 1) if length < 4096 else (40, 10, 3)
    words = Random("cwe example").sample(cwe_words(), size)
    listed = words[:COMMON] * often + words[COMMON:] * seldom
    return CWE_TEMPLATE.format(context=numbered(listed)) + CWE_PREFIX + f" {numbered(words[:COMMON])}"


def numbered(words: list[str]) -> str:
    """Return words as a numbered list on one line, as RULER writes it."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def frequent_words(length: int, rng: Random, size: int) -> Parts:
    """Compose a text of about `size` coded words; the k-th most frequent has the share k⁻² / ζ(2), and dots come first.

    length: tokens of the prompt; it sets the number of distinct words.
    """
    words = ["...", *draw_letters(rng, string.ascii_lowercase, 6, max(length // 50, 5) - 1)]
    share = size / (math.pi**2 / 6)
    text = [word for rank, word in enumerate(words, 1) for _ in range(int(share / rank**2))]
    rng.shuffle(text)
    gold = tuple(words[1:4])
    return FWE_TEMPLATE.format(context=" ".join(text)) + FWE_PREFIX, None, gold, " " + ", ".join(gold)


def document_question(passages: Passages, index: int, rng: Random, size: int) -> Parts:
    """Compose a question over `size` documents: its gold ones, then those of the same article, then others."""
    asked, documents = passages.questions[index], passages.documents
    others = max(0, size - len(asked.gold))
    if others <= len(asked.related):
        chosen = rng.sample(asked.related, others)
    else:
        # A few extra documents are drawn, so enough remain once those of the article are removed.
        article = {*asked.gold, *asked.related}
        extra = rng.sample(range(len(documents)), min(len(documents), others + len(article)))
        chosen = [*asked.related, *[i for i in extra if i not in article][: others - len(asked.related)]]
    order = [*asked.gold, *chosen]
    rng.shuffle(order)
    context = "\n\n".join(DOCUMENT.format(number=n, text=documents[i]) for n, i in enumerate(order, 1))
    prompt = QA_TEMPLATE.format(context=context, question=asked.text) + QA_PREFIX
    return prompt, None, asked.answers, f" {asked.answers[0]}"
