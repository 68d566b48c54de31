"""From texts to tokenised shards: the embedded corpus, local files, or any data set of the Hub.

A prepared folder holds the shards of each split, index.json (settings, counts, checksums) and a copy of the tokenizer.
It appears whole or not at all. `harness.data.TokenData` opens it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import corpus
from harness.data import FORMAT, INDEX, TOKENIZER, TokenData, cache_dir, load_tokenizer, tokenizer_hash, write_json
from harness.sources import Source, open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DOCUMENTS_PER_CALL = 256
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(
    source: str | Path,
    tokenizer: str | Path = "embedded",
    out_dir: str | Path | None = None,
    *,
    text_field: str = "text",
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    max_tokens: int | None = None,
    shard_tokens: int = 100_000_000,
    hub_config: str | None = None,
    hub_split: str | None = None,
    revision: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> TokenData:
    """Tokenise `source` into `out_dir` and open it; a complete output of the same settings is used as it is.

    source: "embedded", a .txt (one document), .jsonl or .parquet file, a folder of such files, or a data set's name
        on the Hub, of which `hub_config`, `hub_split` (train unless given) and `revision` choose the part.
    tokenizer: what `load_tokenizer` takes. out_dir: by default a folder of the cache named after the settings.
    text_field: the column of jsonl, parquet and Hub data that holds the text.
    validation_fraction, test_fraction: of the documents, by the SHA-256 of their text, 0.01 unless given. The
        embedded corpus has its own split and takes neither.
    max_tokens: stop after the document with which the train split reaches so many; the index says so. The embedded
        corpus' held-out splits stay whole.
    shard_tokens: tokens from which on a new shard begins; a document is never divided.
    progress: called with a line about once a second.

    Raises ValueError, one line, for every wrong argument or text; nothing half-written stays behind.
    """
    for name, value in (("max_tokens", max_tokens), ("shard_tokens", shard_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value} is not a number of tokens; give at least 1")
    opened = open_source(source, text_field, hub_config, hub_split, revision)
    fractions = _fractions(opened, validation_fraction, test_fraction)
    tok = load_tokenizer(tokenizer)
    settings = {
        "source": opened.description,
        "tokenizer_hash": tokenizer_hash(tok),
        "fractions": fractions,
        "max_tokens": max_tokens,
        "shard_tokens": shard_tokens,
    }
    if out_dir is None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        out = cache_dir() / "data" / f"{opened.name}-{digest[:12]}"
    else:
        out = Path(out_dir).expanduser().resolve()
    try:
        with _lock(out):
            existing = _existing(out, settings, progress)
            if existing is not None:
                return existing
            with _partial(out) as temp:
                index = _write(opened, tok, temp, fractions, max_tokens, shard_tokens, progress)
                write_json(temp / INDEX, {"format": FORMAT, **index, "settings": settings})
                _publish(temp, out)
            return TokenData(out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ValueError(f"out_dir: no room to write {out} ({error.strerror}); free space or choose another") from error


def _fractions(source: Source, validation: float | None, test: float | None) -> dict[str, float] | None:
    """Fractions of documents per held-out split; None when the source brings its own split."""
    if source.has_splits:
        given = [n for n, v in (("validation_fraction", validation), ("test_fraction", test)) if v is not None]
        if given:
            raise ValueError(f"{given[0]}: the source {source.name!r} has its own split; leave it out")
        return None
    fractions = {"validation": 0.01 if validation is None else validation, "test": 0.01 if test is None else test}
    for split, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(f"{split}_fraction: {value} is no fraction that leaves a train split; give 0 to below 1")
    if sum(fractions.values()) >= 1:
        raise ValueError(f"validation_fraction, test_fraction: {fractions} leave no train split; sum to below 1")
    return fractions


class _Shards:
    """Writes one split's tokens, a new file from every `limit` tokens on."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, limit: int):
        self.folder, self.split, self.dtype, self.limit = folder, split, dtype, limit
        self.done: list[dict[str, Any]] = []
        self.file = None
        self.tokens = 0

    def add(self, ids: list[int]) -> None:
        if self.file is None:
            self.name = f"{self.split}-{len(self.done):05d}.bin"
            self.file = (self.folder / self.name).open("wb")
            self.digest, self.in_shard, self.documents = hashlib.sha256(), 0, 0
        data = np.asarray(ids, self.dtype).tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.tokens += len(ids)
        self.in_shard += len(ids)
        self.documents += 1
        if self.in_shard >= self.limit:
            self.close()

    def close(self) -> None:
        if self.file is None:
            return
        self.file.close()
        self.file = None
        entry = {"name": self.name, "split": self.split, "tokens": self.in_shard, "documents": self.documents}
        self.done.append({**entry, "sha256": self.digest.hexdigest()})


def _write(
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    fractions: dict[str, float] | None,
    max_tokens: int | None,
    shard_tokens: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write shards and tokenizer to `folder`; the index, which accounts for every document read."""
    vocab_size = max(tokenizer.get_vocab().values()) + 1  # len() would miss gaps in the ids
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    shards = {split: _Shards(folder, split, dtype, shard_tokens) for split in corpus.SPLITS}
    documents: Counter[str] = Counter()
    started = said = time.monotonic()
    complete = True
    try:
        for split, ids in _tokenised(source, tokenizer, fractions):
            if max_tokens is not None and shards["train"].tokens >= max_tokens:
                complete = False
                break
            documents[split if ids else "empty"] += 1
            if ids:
                shards[split].add(ids)
            if time.monotonic() - said >= 1:
                said = time.monotonic()
                tokens = sum(s.tokens for s in shards.values())
                rate = tokens / (said - started)
                progress(f"prepare: {documents.total():,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s")
    finally:
        for shard in shards.values():
            shard.close()
    if not documents["train"]:
        raise ValueError(
            f"source: {source.name} gave {documents.total()} documents, {documents['empty']} of them empty, and none "
            "for the train split; give more text or smaller validation and test fractions"
        )
    tokenizer.save_pretrained(str(folder / TOKENIZER))
    return {
        "documents": {"read": documents.total(), "empty": documents["empty"], **{s: documents[s] for s in shards}},
        "tokens": {split: shards[split].tokens for split in shards},
        "whole_source": complete,
        "vocab_size": vocab_size,
        "dtype": dtype.str,
        "bos_token_id": tokenizer.bos_token_id,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "shards": [entry for shard in shards.values() for entry in shard.done],
    }


def _tokenised(
    source: Source, tokenizer: PreTrainedTokenizerFast, fractions: dict[str, float] | None
) -> Iterator[tuple[str, list[int]]]:
    """(split, ids with BOS) of every document; an empty one has no ids."""
    backend = tokenizer.backend_tokenizer
    documents = iter(source.documents)
    while group := list(islice(documents, DOCUMENTS_PER_CALL)):
        encoded = backend.encode_batch_fast([text or "" for text, _ in group], add_special_tokens=False)
        for (text, split), encoding in zip(group, encoded, strict=True):
            if not text or not text.strip():
                yield "train", []
                continue
            if fractions is not None:
                split = corpus.split_of(text, fractions["validation"], fractions["test"])
            yield split, [tokenizer.bos_token_id, *encoding.ids]


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """One preparation of a folder at a time; what a killed one left behind is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for stale in out.parent.glob(f".{out.name}.partial-*"):
            shutil.rmtree(stale)
        yield


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, gone afterwards unless it was renamed."""
    temp = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    # mkdtemp gives a private folder; the output is to have the permissions of any new one.
    umask = os.umask(0)
    os.umask(umask)
    temp.chmod(0o777 & ~umask)
    try:
        yield temp
    finally:
        if temp.exists():
            shutil.rmtree(temp)


def _existing(out: Path, settings: dict[str, Any], progress: Callable[[str], None]) -> TokenData | None:
    """`out` when it holds the same data intact, None when it must be written; ValueError when it holds other things."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / INDEX).is_file():
        raise ValueError(f"out_dir: {out} exists and was not made by data prepare; choose another or remove it")
    try:
        found = json.loads((out / INDEX).read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        progress(f"prepare: again, since {out / INDEX} is corrupt ({error})")
        return None
    different = [key for key in settings if found.get(key) != settings[key]]
    if different:
        raise ValueError(f"out_dir: {out} holds data of another {different[0]}; choose another or remove it")
    try:
        return TokenData(out)
    except ValueError as error:
        progress(f"prepare: again, since {error}")
        return None


def _publish(temp: Path, out: Path) -> None:
    """Put the finished folder in place of whatever damaged one is there."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        os.replace(out, old)
        os.replace(temp, out)
        shutil.rmtree(old)
    else:
        os.replace(temp, out)
