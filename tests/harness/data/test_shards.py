"""Reading prepared data: verification, streams across shards, and batches as a function of seed and step."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.order import sample_order
from harness.data.prepare import prepare
from harness.data.shards import TokenData, TokenStream
from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.files import CHECKOUT, cache_dir

WORDS = ["the", "king", "and", "queen", "went", "down", "to", "sea", "in", "great", "ships", "with", "1234567", "men"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenData:
    """A few thousand tokens in several shards, validation held out, no test split."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(rng.choice(WORDS, rng.integers(5, 60)))} for _ in range(120)]
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return prepare(root / "a.jsonl", out_dir=root / "out", validation_fraction=0.1, test_fraction=0, shard_tokens=500)


def test_a_distant_step_needs_no_earlier_one(data):
    tokens = data.batch("train", 0, 10**12, 4, 16)
    assert tokens.shape == (4, 17) and torch.equal(tokens, data.batch("train", 0, 10**12, 4, 16))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(0, 9))
def test_an_epoch_of_batches_targets_every_token_but_the_first_and_the_tail_once(data, seq_len, seed):
    stream = data.tokens("train")[:]
    windows = data.windows("train", seq_len)
    epoch = data.batch("train", seed, 0, windows, seq_len)
    order = sample_order(windows, seed, 0, windows)
    in_place = epoch[np.argsort(order)]
    assert torch.equal(in_place[:, 1:].reshape(-1), torch.from_numpy(stream[1 : windows * seq_len + 1].astype(int)))
    assert torch.equal(in_place[1:, 0], in_place[:-1, -1])
    assert len(stream) - 1 - windows * seq_len < seq_len


def test_a_batch_is_the_same_in_another_process_and_the_shares_of_ranks_make_it_up(data):
    whole = data.batch("train", 3, 7, 8, 32)
    shares = [data.samples("train", 3, 7 * 8 + rank * 4, 4, 32) for rank in range(2)]
    assert whole.dtype == torch.int64 and torch.equal(whole, torch.cat(shares))
    opened = f"TokenData({str(data.folder)!r})"
    code = f"from harness.data.shards import TokenData; print({opened}.batch('train', 3, 7, 8, 32).tolist())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == whole.tolist()


def test_a_stream_reads_across_shards_like_one_array():
    whole = np.arange(100, dtype=np.uint16)
    stream = TokenStream([whole[:1], whole[1:40], whole[40:41], whole[41:]], whole.dtype)
    for start in range(0, 101, 3):
        for stop in range(start, 101, 7):
            assert stream[start:stop].tolist() == whole[start:stop].tolist()
    assert len(stream) == 100 and stream[:].dtype == np.uint16 and stream[95:200].tolist() == [95, 96, 97, 98, 99]


def test_too_short_a_split_and_wrong_arguments_are_named(data):
    size = len(data.tokens("train"))
    assert data.batch("train", 0, 0, 1, size - 1).shape == (1, size)
    with pytest.raises(ValueError, match=f"seq_len: {size} \\+ 1 tokens are more than the {size} of the train split"):
        data.batch("train", 0, 0, 1, size)
    with pytest.raises(ValueError, match="more than the 0 of the test split"):
        data.batch("test", 0, 0, 1, 8)
    with pytest.raises(ValueError, match="split: unknown name 'dev'; known: train, validation, test"):
        data.tokens("dev")
    with pytest.raises(ValueError, match="samples: 0 from position 0"):
        data.batch("train", 0, 0, 0, 8)


def test_a_model_with_too_small_a_vocabulary_is_refused(data):
    data.require_vocab(4096)
    with pytest.raises(ValueError, match="vocab_size: 2048 is too small for token ids up to 4095 .* at least 4096"):
        data.require_vocab(2048)


@pytest.fixture
def copy(data, tmp_path) -> TokenData:
    source = json.loads((data.folder / "index.json").read_text(encoding="utf-8"))
    for shard in source["shards"]:
        (tmp_path / shard["name"]).write_bytes((data.folder / shard["name"]).read_bytes())
    (tmp_path / "index.json").write_text(json.dumps(source), encoding="utf-8")
    return TokenData(tmp_path)


@pytest.mark.parametrize("damage", ["one bit", "shorter", "gone"])
def test_a_damaged_shard_is_named_with_the_remedy(copy, damage):
    path = copy.folder / copy.index["shards"][2]["name"]
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[10] ^= 1
        path.write_bytes(content if damage == "one bit" else content[:-2])
    with pytest.raises(ValueError, match=rf"shard {path} is (corrupt|missing).*; run data prepare again"):
        TokenData(copy.folder)


def test_checksums_are_computed_once_and_again_after_a_change(copy, monkeypatch):
    hashed = []
    monkeypatch.setattr("harness.data.shards.file_sha256", lambda path: hashed.append(path.name) or "wrong")
    TokenData(copy.folder)
    assert not hashed, "the fixture has opened this folder before"
    name = copy.index["shards"][1]["name"]
    os.utime(copy.folder / name)
    with pytest.raises(ValueError, match=name):
        TokenData(copy.folder)
    assert hashed == [name]


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}'])
def test_a_bad_index_is_named_with_the_remedy(copy, content):
    (copy.folder / "index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"index.json\b.*; run data prepare again"):
        TokenData(copy.folder)


def test_a_folder_without_index_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=f"no index.json in {tmp_path}; run data prepare"):
        TokenData(tmp_path)


def test_the_tokenizer_next_to_the_data_is_the_one_that_made_them(data):
    tokenizer = data.tokenizer()
    assert tokenizer_hash(tokenizer) == data.index["tokenizer_hash"] == tokenizer_hash(load_tokenizer())
    assert tokenizer.bos_token_id == data.index["bos_token_id"] == data.tokens("train")[:1].item()


def test_the_cache_is_where_the_environment_says_or_in_the_checkout_whatever_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("MIXERBENCH_CACHE")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == CHECKOUT / ".cache"


def test_importing_the_module_loads_no_hub_library():
    code = (
        "import sys, harness.data.shards, harness.data.prepare; print({'transformers', 'datasets'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"
