"""What RULER hides its needles in: one sentence repeated, or essays."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from itertools import cycle, islice
from typing import Literal

from harness.corpus import documents

Source = Literal["paul_graham", "corpus"]

# The line that RULER repeats.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

ESSAYS = "baber/paul_graham_essays"
PROSE = ("austen", "tdavid", "mhcc")
STAND_IN = "haystack: embedded public-domain prose instead of Paul Graham essays"

# A full stop after these ends no sentence.
TITLES = frozenset({"Mr.", "Mrs.", "Dr.", "St.", "Messrs.", "Rev.", "Prof.", "Capt.", "Col.", "e.g.", "i.e.", "viz."})
INITIAL = re.compile(r"[A-Z]\.")
BOUNDARY = re.compile(r"""(\S*[.!?]["'”’)\]]*) (?=["'“‘(\[]*[A-Z0-9])""")


@cache
def essay_words(source: Source) -> tuple[str, ...]:
    """The words of an essay haystack in reading order, white space normalised.

    `paul_graham` is RULER's own, from the Hub; `corpus` the test split of the embedded prose, which no model here is
    trained on. Raises ValueError when the Hub cannot be reached.
    """
    if source == "corpus":
        texts = [document.text for document in documents("test", sources=PROSE)]
    else:
        from datasets import load_dataset

        try:
            texts = load_dataset(ESSAYS, split="train")["text"]
        except OSError as error:
            raise ValueError(
                f"ruler.haystack: 'paul_graham' needs the data set {ESSAYS}, which cannot be read ({error}); "
                "fetch it first, or use haystack: corpus"
            ) from error
    return tuple(" ".join(texts).split())


@lru_cache(maxsize=256)
def essay_sentences(source: Source, count: int) -> tuple[str, ...]:
    """The first `count` words of the essays as sentences, starting over where the essays end, as RULER does."""
    return sentences(" ".join(islice(cycle(essay_words(source)), count)))


def sentences(text: str) -> tuple[str, ...]:
    """Sentences of a text without line breaks; joined by spaces they give it back.

    A simple rule, not RULER's nltk: a sentence ends at a full stop, exclamation or question mark, closing quotes and
    brackets included, before a capital or a digit, unless the word is a title or an initial. Depths are fractions of
    the number of sentences, so a needle can lie a sentence away from where nltk would have it; no word changes.
    """
    found, start = [], 0
    for match in BOUNDARY.finditer(text):
        last = match.group(1).lstrip("\"'“‘([")
        if last in TITLES or INITIAL.fullmatch(last):
            continue
        found.append(text[start : match.end(1)])
        start = match.end()
    found.append(text[start:])
    return tuple(found)
