"""The embedded corpus: public-domain prose that ships with the code, split by document.

It has four sources, each a file of JSON lines compressed with xz and made by build.py; SOURCES.md gives their origins
and licences. The split of a document depends on its id alone; the test split is never trained on.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("austen", "tdavid", "mhcc", "factbook")
SPLITS = ("train", "validation", "test")
TOKENIZER = FOLDER / "tokenizer.json"

TEST_FRACTION = 0.08
VALIDATION_FRACTION = 0.04
SHORT_VALUE = range(2, 41)


@dataclass(frozen=True)
class Document:
    """A chapter of a novel, the commentary on a psalm or a Bible chapter, or a country.

    id: unique; begins with the source's name. text: the whole document. source: one of SOURCES. split: one of SPLITS.
    """

    id: str
    text: str
    source: str
    split: str


def split_of(key: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a document with a given `key`. Reads its SHA-256 as a number in [0, 1); test takes the low end."""
    position = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def documents(split: str, sources: Sequence[str] | None = None) -> Iterator[Document]:
    """The documents of one split, source by source in reading order. Raises ValueError for an unknown name."""
    if split not in SPLITS:
        raise ValueError(f"split: unknown name {split!r}; known: {', '.join(SPLITS)}")
    for source in SOURCES if sources is None else sources:
        if source not in SOURCES:
            raise ValueError(f"sources: unknown name {source!r}; known: {', '.join(SOURCES)}")
        with lzma.open(FOLDER / f"{source}.jsonl.xz", "rt", encoding="utf-8") as lines:
            for line in lines:
                document = Document(**json.loads(line))
                if document.split == split:
                    yield document


def fingerprint() -> dict[str, str]:
    """SHA-256 of every file of the corpus, by source."""
    return {s: hashlib.sha256((FOLDER / f"{s}.jsonl.xz").read_bytes()).hexdigest() for s in SOURCES}


def factbook_fields(split: str) -> list[tuple[str, str, str, str]]:
    """(country, document text, key, value) of the World Factbook's short fields, in document order.

    A short field is a "key: value" line whose value has 2 to 40 characters and whose key occurs once in its country's
    document, so that the key has one answer. The text contains the line f"{key}: {value}" verbatim.
    """
    rows = []
    for document in documents(split, ["factbook"]):
        country, _, body = document.text.partition("\n")
        pairs = [line.split(": ", 1) for line in body.split("\n") if ": " in line]
        count = Counter(key for key, _ in pairs)
        rows += [(country, document.text, k, v) for k, v in pairs if len(v) in SHORT_VALUE and count[k] == 1]
    return rows
