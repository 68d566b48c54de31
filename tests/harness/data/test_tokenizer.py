"""Loading tokenizers: the same from file and folder, a hash of their definition, errors with a remedy."""

from __future__ import annotations

import json

import pytest

from harness.data import corpus
from harness.data.tokenizer import bare_ids, ids_count, load_tokenizer, tokenizer_hash


def test_a_tokenizer_loads_from_file_and_folder_alike_and_calls_do_not_change_its_hash(tmp_path):
    tokenizer = load_tokenizer("embedded")
    digest = tokenizer_hash(tokenizer)
    tokenizer("some words", truncation=True, max_length=1)
    assert tokenizer_hash(tokenizer) == digest
    (tmp_path / "tokenizer.json").write_bytes(corpus.TOKENIZER.read_bytes())
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(load_tokenizer(tmp_path / "tokenizer.json"))
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_hash(load_tokenizer(tmp_path / "saved")) == digest


def test_another_tokenizer_has_another_hash(tmp_path):
    definition = json.loads(corpus.TOKENIZER.read_text(encoding="utf-8"))
    definition["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    assert tokenizer_hash(load_tokenizer(tmp_path)) != tokenizer_hash(load_tokenizer())


def test_a_tokenizer_that_cannot_be_had_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    bare = corpus.TOKENIZER.read_text(encoding="utf-8").replace("<|bos|>", "<|other|>")
    (tmp_path / "bare.json").write_text(bare, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, message in [
        (tmp_path / "no.json", "no file .*no.json; give a tokenizer.json"),
        (tmp_path, "no file .*tokenizer.json"),
        (tmp_path / "broken.json", "is not a tokenizer.json"),
        (tmp_path / "bare.json", "has none of the BOS tokens"),
        ("owner/name", "'owner/name' .*HF_HUB_OFFLINE is set: unset it"),
    ]:
        with pytest.raises(ValueError, match=f"^tokenizer: .*{message}"):
            load_tokenizer(name)


def test_bare_ids_are_numbers_between_spaces(tmp_path):
    tokenizer = load_tokenizer("ids:512")
    assert len(tokenizer) == 512 and (tokenizer.bos_token, tokenizer.bos_token_id) == ("0", 0)
    assert tokenizer.encode("0 10 511 7 0 0 100", add_special_tokens=False) == [0, 10, 511, 7, 0, 0, 100]
    assert tokenizer.decode([3, 0, 10]) == "3 0 10"
    assert tokenizer_hash(tokenizer) != tokenizer_hash(load_tokenizer("ids:513"))
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(load_tokenizer("ids:512"))


@pytest.mark.parametrize("name", ["ids:", "ids:x", "ids:3", "ids:-8", "ids:8.0", "ids:²"])
def test_a_wrong_number_of_bare_ids_is_named(name):
    with pytest.raises(ValueError, match=f"^tokenizer: {name!r} names no number of ids; write ids:N with N at least 4"):
        load_tokenizer(name)


def test_bare_ids_are_known_wherever_they_were_loaded_from(tmp_path):
    load_tokenizer("ids:64").save_pretrained(tmp_path)
    assert bare_ids(load_tokenizer(tmp_path)) == bare_ids(load_tokenizer("ids:64")) == 64
    assert bare_ids(load_tokenizer()) is None
    assert (ids_count("ids:64"), ids_count("embedded"), ids_count("ids.json")) == (64, None, None)
