"""RULER's thirteen tasks: one sample of each as text, from a generator and the size of its context.

Templates, numbers of needles and the way a sample is put together are those of RULER (arXiv 2404.06654; NVIDIA/RULER)
as lm-eval 0.4.13 runs it; like there, `cwe` shows no solved example, which NVIDIA's version puts first. What is ours:
needles, documents and the numbers and places in `vt`'s example are drawn anew for each sample, keys never collide, and
`fwe` has no length at which the third and fourth word are as frequent.
"""

from __future__ import annotations

import math
import string
import uuid
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any, Literal

from harness.data.synthetic import NEEDLE, PREFIX, QUESTION
from suites.ruler.haystack import NOISE, Passages, essay_sentences
from suites.shared.lm_requests import token_count

Parts = tuple[str, str | None, tuple[str, ...], str]
"""A sample's prompt, without, answers and continuation."""

# RULER's wording for one question with one answer, and for several of either.
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

# Percent of the essay's sentences before a needle.
DEPTHS = [round(100 * i / 39) for i in range(40)]
# An essay with fewer words than this is shorter than two needles and hides nothing.
FEWEST_WORDS = 20
VARIABLES = 5
EXAMPLE_TOKENS = 500
COMMON = 10
# From so many on, each of fwe's three words appears more often than the next in rank.
FEWEST_CODED = 53
# Changed whenever the same (task, length, seed) would give other prompts.
VERSION = 1


@dataclass(frozen=True)
class Spec:
    """A task: what its context is made of, and RULER's room for the answer in tokens.

    hay: noise, essay or needles for tasks of the family niah, which alone have the fields that follow: what values and
    keys are, how many keys there are, values a key, and keys that are asked for. lengths: the paper's; of the tasks
    that it leaves out, the shortest of RULER's.
    """

    family: Literal["niah", "vt", "cwe", "fwe", "qa"]
    hay: str
    max_new_tokens: int = 128
    lengths: tuple[int, ...] = (4096,)
    kind: Literal["number", "uuid"] = "number"
    key: Literal["word", "uuid"] = "word"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def needles(self) -> int:
        return self.keys * self.values


SPECS: dict[str, Spec] = {
    "s_niah_1": Spec("niah", "noise", lengths=(1024, 2048, 4096, 8192)),
    "s_niah_2": Spec("niah", "essay", lengths=(1024, 2048, 4096, 8192)),
    "s_niah_3": Spec("niah", "essay", lengths=(1024, 2048, 4096), kind="uuid"),
    "mk_niah_1": Spec("niah", "essay", lengths=(1024, 2048, 4096), keys=4),
    "mk_niah_2": Spec("niah", "needles"),
    "mk_niah_3": Spec("niah", "needles", kind="uuid", key="uuid"),
    "mv_niah": Spec("niah", "essay", values=4),
    "mq_niah": Spec("niah", "essay", keys=4, queries=4),
    "vt": Spec("vt", "noise", 30),
    "cwe": Spec("cwe", "words", 120),
    "fwe": Spec("fwe", "coded words", 50),
    "qa_1": Spec("qa", "squad", 32),
    "qa_2": Spec("qa", "hotpotqa", 32),
}


@dataclass(frozen=True)
class Sample:
    """A prompt and its gold answers.

    without: the prompt with every needle that is asked for removed (of `vt`, the whole chain), the others kept. None
    for cwe, fwe and qa, where nothing can be taken out that is the answer's only ground: a list without its common
    words has others, and passages beside the gold one, or the world, may tell as much. continuation: the answers as
    they would follow the prompt, several of them in the order of the text (mv_niah, vt), of the question (mq_niah) or
    of frequency (fwe); of qa the first. tokens: what a model reads for the prompt, BOS included.
    """

    prompt: str
    without: str | None
    answers: tuple[str, ...]
    continuation: str
    tokens: int


@cache
def vocabulary(*categories: str) -> tuple[str, ...]:
    """wonderwords' words of some categories, sorted: what RULER makes keys and lists of."""
    from wonderwords import RandomWord

    words = RandomWord()
    return tuple(sorted({word for name in categories for word in words.filter(include_categories=[name])}))


def draw_keys(rng: Random, kind: str, count: int) -> list[str]:
    """Distinct keys: adjective-noun, or UUIDs."""
    if kind == "uuid":
        return draw_values(rng, kind, count)
    adjectives, nouns = vocabulary("adjective"), vocabulary("noun")
    picked = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}" for i in picked]


def draw_values(rng: Random, kind: str, count: int) -> list[str]:
    """Distinct values: numbers of seven digits, or UUIDs."""
    if kind == "number":
        return [str(value) for value in rng.sample(range(10**6, 10**7), count)]
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def draw_letters(rng: Random, alphabet: str, length: int, count: int) -> list[str]:
    """Distinct strings of so many letters of an alphabet; never the keyword VAR."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(alphabet, k=length))] = None
        found.pop("VAR", None)
    return list(found)


def niah(spec: Spec, source: str, rng: Random, size: int) -> Parts:
    """Needles in a haystack of `size` words (essays) or lines (noise, needles)."""
    others = size if spec.hay == "needles" else 0
    keys = draw_keys(rng, spec.key, spec.keys + others)
    values = draw_values(rng, spec.kind, spec.needles + others)
    asked = [rng.randrange(spec.keys)] if spec.queries == 1 else rng.sample(range(spec.keys), spec.queries)
    if spec.hay == "essay":
        hay, joint = essay_sentences(source, size), " "
        places = sorted(len(hay) * depth // 100 for depth in rng.sample(DEPTHS, spec.needles))
    else:
        lines = zip(keys[spec.keys :], values[spec.needles :], strict=True)
        hay = [NEEDLE.format(kind=spec.kind, key=key, value=value) for key, value in lines] or (NOISE,) * size
        joint = "\n"
        places = sorted(rng.sample(range(size), spec.needles))
    order = rng.sample(range(spec.needles), spec.needles)
    pieces, gold, start = [], {}, 0
    for place, index in zip(places, order, strict=True):
        pieces += hay[start:place]
        start = place
        key = index // spec.values
        if key in asked:
            gold[len(pieces)] = key, values[index]
        pieces.append(NEEDLE.format(kind=spec.kind, key=keys[key], value=values[index]))
    pieces += hay[start:]
    many = spec.queries * spec.values > 1
    names = [keys[key] for key in asked]
    query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
    answers = tuple(value for key in asked for owner, value in gold.values() if owner == key)

    def prompt(parts: list[str]) -> str:
        template = TEMPLATE_MANY + PREFIX_MANY if many else TEMPLATE + PREFIX
        return template.format(kind=spec.kind, context=joint.join(parts), key=query)

    rest = [piece for at, piece in enumerate(pieces) if at not in gold]
    return prompt(pieces), prompt(rest), answers, " " + ", ".join(answers)


def chain(rng: Random, lines: int, letters: int) -> tuple[str, str, list[str]]:
    """A question about a chain of assignments between lines of noise, the same without the chain, and its variables."""
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
    """The example that RULER shows first, its variables three letters long."""
    text, _, names = chain(rng, lines, 3)
    return f"{text}  {' '.join(names)}\n\n\n\n"


def example_lines(tokenizer: Any) -> int:
    """Lines of noise in the example: as many fives as fit RULER's 500 tokens, and enough for a chain."""
    lines = 5
    while lines < EXAMPLE_TOKENS and (
        token_count(tokenizer, solved_chain(Random("vt example"), lines + 5)) + SPECS["vt"].max_new_tokens
        <= EXAMPLE_TOKENS
    ):
        lines += 5
    return max(lines, VARIABLES + 1)


def variable_tracking(lines: int, rng: Random, size: int) -> Parts:
    """A chain among `size` lines of noise, after an example with `lines` of them."""
    example = solved_chain(rng, lines)
    text, without, names = chain(rng, size, 5)
    return example + text, example + without, tuple(names), " " + " ".join(names)


def cwe_words() -> tuple[str, ...]:
    return vocabulary("noun", "adjective", "verb")


def common_words(length: int, rng: Random, size: int) -> Parts:
    """`size` different words, ten of them several times as often as the rest."""
    words = rng.sample(cwe_words(), size)
    often, seldom = (6, 1) if length < 4096 else (30, 3)
    gold = words[:COMMON]
    listed = gold * often + words[COMMON:] * seldom
    rng.shuffle(listed)
    prompt = CWE_TEMPLATE.format(context=numbered(listed)) + CWE_PREFIX
    return prompt, None, tuple(gold), f" {numbered(gold)}"


def numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def frequent_words(length: int, rng: Random, size: int) -> Parts:
    """About `size` coded words, the k-th of them with a share of k⁻² / ζ(2), the first being dots."""
    words = ["...", *draw_letters(rng, string.ascii_lowercase, 6, max(length // 50, 5) - 1)]
    share = size / (math.pi**2 / 6)
    text = [word for rank, word in enumerate(words, 1) for _ in range(int(share / rank**2))]
    rng.shuffle(text)
    gold = tuple(words[1:4])
    return FWE_TEMPLATE.format(context=" ".join(text)) + FWE_PREFIX, None, gold, " " + ", ".join(gold)


def question(found: Passages, index: int, rng: Random, size: int) -> Parts:
    """A question over its gold documents and others, `size` in all; those of the same article come first."""
    asked = found.questions[index]
    others = max(0, size - len(asked.gold))
    if others <= len(asked.related):
        chosen = rng.sample(asked.related, others)
    else:
        # Drawn with a few to spare, so that taking out the article's own leaves enough; all of them where few are left.
        own = {*asked.gold, *asked.related}
        spare = rng.sample(range(len(found.documents)), min(len(found.documents), others + len(own)))
        chosen = [*asked.related, *[i for i in spare if i not in own][: others - len(asked.related)]]
    order = [*asked.gold, *chosen]
    rng.shuffle(order)
    context = "\n\n".join(DOCUMENT.format(number=n, text=found.documents[i]) for n, i in enumerate(order, 1))
    prompt = QA_TEMPLATE.format(context=context, question=asked.text) + QA_PREFIX
    return prompt, None, asked.answers, f" {asked.answers[0]}"
