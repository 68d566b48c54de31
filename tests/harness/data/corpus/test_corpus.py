"""The embedded corpus: its splits, its clean texts, its factbook fields and its tokenizer."""

from __future__ import annotations

import re

import pytest

from harness.data import corpus
from harness.data.tokenizer import load_tokenizer

EVERY = [document for split in corpus.SPLITS for document in corpus.documents(split)]


def test_every_document_is_in_the_split_that_its_id_decides_and_ids_are_unique():
    assert len({d.id for d in EVERY}) == len(EVERY) == 269 + 151 + 1189 + 256
    for d in EVERY:
        assert d.split == corpus.split_of(d.id, corpus.VALIDATION_FRACTION, corpus.TEST_FRACTION)
        assert d.id.startswith(f"{d.source}/")


def test_no_text_is_in_two_splits():
    by_split = [{d.text for d in EVERY if d.split == split} for split in corpus.SPLITS]
    assert sum(map(len, by_split)) == len(set().union(*by_split))


def test_every_source_gives_documents_to_every_split():
    assert {(d.source, d.split) for d in EVERY} == {(a, b) for a in corpus.SOURCES for b in corpus.SPLITS}


def test_texts_hold_no_markup_no_control_characters_and_no_ragged_blanks():
    for d in EVERY:
        assert not re.search(r"</?\w+[ />]|&(amp|nbsp|rsquo|lt);|[\x00-\x09\x0b-\x1f\x7f-\x9f]", d.text), d.id
        assert not re.search(r"\n{3}|  | \n|\n ", d.text) and d.text == d.text.strip(), d.id


def test_sources_can_be_chosen_and_unknown_names_are_errors_that_list_the_known_ones():
    assert {d.source for d in corpus.documents("validation", ["austen", "mhcc"])} == {"austen", "mhcc"}
    with pytest.raises(ValueError, match="unknown name 'dev'; known: train, validation, test"):
        next(corpus.documents("dev"))
    with pytest.raises(ValueError, match="unknown name 'henry'; known: austen"):
        next(corpus.documents("test", ["henry"]))


def test_a_factbook_field_occurs_once_in_its_text_and_has_a_short_answer():
    fields = corpus.factbook_fields("test")
    texts = {d.text for d in EVERY if d.source == "factbook" and d.split == "test"}
    assert len(fields) > 3000 and {text for _, text, _, _ in fields} <= texts
    for country, text, key, value in fields:
        assert text.startswith(f"{country}\n")
        assert text.count(f"\n{key}: ") == 1 and f"\n{key}: {value}\n" in f"{text}\n"
        assert 2 <= len(value) <= 40 and ":" not in key
    germany = {key: value for country, _, key, value in fields if country == "Germany"}
    assert germany["Area - land"] == "348,672 sq km" and germany["Capital - name"] == "Berlin"


@pytest.mark.long
def test_the_tokenizer_gives_every_document_back_exactly():
    tokenizer = load_tokenizer("embedded")
    for d in EVERY:
        if d.split != "train":
            assert tokenizer.decode(tokenizer.encode(d.text, add_special_tokens=False)) == d.text, d.id
    odd = "tab\there  two blanks ,  naïve 北京 🙂\r\n\x00 don't n't ."
    assert tokenizer.decode(tokenizer.encode(odd, add_special_tokens=False)) == odd


def test_digits_are_single_tokens_and_the_bos_token_is_zero():
    tokenizer = load_tokenizer("embedded")
    assert len(tokenizer) == 4096 and tokenizer.bos_token == "<|bos|>" and tokenizer.bos_token_id == 0
    assert len(tokenizer.encode("1234567", add_special_tokens=False)) == 7
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not any(c.isdigit() for c in token)
    assert tokenizer.encode("A 1")[0] == 0, "asked for special tokens, the tokenizer puts BOS first"
