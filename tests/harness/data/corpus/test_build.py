"""Building the corpus: the tokenizer is reproducible, and the committed one is what the command makes."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from harness.data import corpus
from harness.data.corpus import build

EVERY = [document for split in corpus.SPLITS for document in corpus.documents(split)]


def test_training_a_tokenizer_twice_gives_the_same_bytes():
    texts = [d.text for d in EVERY if d.source == "austen"][:40]
    first, second = (build.train_tokenizer(texts, 600) for _ in range(2))
    assert first == second and Tokenizer.from_str(first).get_vocab_size() == 600


@pytest.mark.long
def test_the_committed_tokenizer_is_what_the_build_command_makes():
    assert build.train_tokenizer(build.train_texts(), build.VOCAB_SIZE) == corpus.TOKENIZER.read_text(encoding="utf-8")
