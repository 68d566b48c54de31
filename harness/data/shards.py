"""Read prepared data: verified token shards, and a sampler whose position is a number.

`harness.data.prepare` writes the folders that `TokenData` opens. A split is one stream of documents end to end, each
starting with its BOS. A batch is a pure function of (seed, step), so saving the step is enough to resume exactly.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data import corpus
from harness.data.order import sample_order
from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.files import file_sha256, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INDEX = "index.json"
VERIFIED = "verified.json"
TOKENIZER = "tokenizer"
FORMAT = 1
"""Version of the folder's layout."""


class TokenStream:
    """The tokens of a split: memory-mapped shards end to end. `len` counts tokens; slices read across shards."""

    def __init__(self, shards: list[NDArray[Any]], dtype: np.dtype):
        self.shards = shards
        self.dtype = dtype
        self.ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, span: slice) -> NDArray[Any]:
        """Copy a contiguous slice of tokens, in the shards' integer type. Raises ValueError for a step other than 1."""
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"step: {step} is not supported by a token stream; slice without one")
        parts = [np.empty(0, self.dtype)]
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            offset = start - (int(self.ends[shard]) - len(self.shards[shard]))
            parts.append(self.shards[shard][offset : offset + stop - start])
            start += len(parts[-1])
            shard += 1
        return np.concatenate(parts)


def _is_shard(entry: Any) -> bool:
    """Whether an entry of an index describes a shard."""
    kinds = {"name": str, "split": str, "tokens": int, "sha256": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


class TokenData:
    """A folder of prepared data, opened and verified.

    Each opening checks the length of every shard. The first also checks its SHA-256, and so does any later one that
    finds the file's size or time changed. Raises ValueError naming the file and the remedy.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser().resolve()
        path = self.folder / INDEX
        if not path.is_file():
            raise ValueError(f"data: no {INDEX} in {self.folder}; run data prepare with this folder as its output")
        self.index: dict[str, Any] = read_json(path, "run data prepare again")
        version = self.index.get("format") if isinstance(self.index, dict) else None
        if version != FORMAT:
            raise ValueError(f"data: {path} has format {version}, expected {FORMAT}; run data prepare again")
        shards = self.index.get("shards")
        keys = {"vocab_size", "dtype", "bos_token_id", "tokenizer_hash"}
        if not keys <= self.index.keys() or not isinstance(shards, list) or not all(map(_is_shard, shards)):
            raise ValueError(f"data: {path} is damaged, it lacks fields; run data prepare again")
        self._verify()
        self._streams = {split: self._open(split) for split in corpus.SPLITS}

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the tokenizer that made the data; every token id is below it."""
        return self.index["vocab_size"]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer that made the data from the folder's copy. Raises ValueError if the copy has changed."""
        tokenizer = load_tokenizer(self.folder / TOKENIZER)
        if tokenizer_hash(tokenizer) != self.index["tokenizer_hash"]:
            raise ValueError(f"data: {self.folder / TOKENIZER} is not what made the shards; run data prepare again")
        return tokenizer

    def require_vocab(self, vocab_size: int) -> None:
        """Raise ValueError unless a model of `vocab_size` covers every token of this data's tokenizer."""
        if vocab_size < self.vocab_size:
            raise ValueError(
                f"vocab_size: {vocab_size} is too small for token ids up to {self.vocab_size - 1} of the tokenizer of "
                f"{self.folder}; set it to at least {self.vocab_size}"
            )

    def tokens(self, split: str) -> TokenStream:
        """The stream of a split, which may be empty. Raises ValueError if the name is unknown."""
        if split not in self._streams:
            raise ValueError(f"split: unknown name {split!r}; known: {', '.join(corpus.SPLITS)}")
        return self._streams[split]

    def windows(self, split: str, seq_len: int) -> int:
        """Number of windows of seq_len + 1 tokens per epoch. Each shares one token with the next.

        The tokens after the last window, seq_len - 1 at most, are never targets. Raises ValueError if the split is
        shorter than one window.
        """
        if seq_len < 1:
            raise ValueError(f"seq_len: {seq_len} is no length; choose at least 1")
        size = len(self.tokens(split))
        if size <= seq_len:
            raise ValueError(
                f"seq_len: {seq_len} + 1 tokens are more than the {size} of the {split} split of {self.folder}; "
                "choose a smaller seq_len or prepare more data"
            )
        return (size - 1) // seq_len

    def batch(self, split: str, seed: int, step: int, batch_size: int, seq_len: int) -> Tensor:
        """The batch of a step, [batch_size, seq_len + 1] int64: the samples from step · batch_size onwards.

        batch_size must stay the same throughout. A caller whose batches vary counts samples and calls `samples`.
        """
        return self.samples(split, seed, step * batch_size, batch_size, seq_len)

    def samples(self, split: str, seed: int, start: int, count: int, seq_len: int) -> Tensor:
        """Samples start … start + count - 1 of the endless order under `seed`, [count, seq_len + 1] int64.

        Every epoch reads all windows of the split once, each epoch in a different order.
        """
        if start < 0 or count < 1:
            raise ValueError(
                f"samples: {count} from position {start}; the count must be 1 or more and the start 0 or more"
            )
        stream = self.tokens(split)
        order = sample_order(self.windows(split, seq_len), seed, start, count)
        rows = [stream[at : at + seq_len + 1] for at in (order * seq_len).tolist()]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _open(self, split: str) -> TokenStream:
        """Memory-map the shards of a split."""
        dtype = np.dtype(self.index["dtype"])
        shards = [s["name"] for s in self.index["shards"] if s["split"] == split]
        return TokenStream([np.memmap(self.folder / name, dtype=dtype, mode="r") for name in shards], dtype)

    def _verify(self) -> None:
        """Check every shard against the index, and remember the files whose SHA-256 was right."""
        marker = self.folder / VERIFIED
        try:
            known = read_json(marker, "")
        except (FileNotFoundError, ValueError):  # without it, or with a damaged one, all shards are hashed again
            known = {}
        known = known if isinstance(known, dict) else {}
        stamps = {}
        for shard in self.index["shards"]:
            path = self.folder / shard["name"]
            if not path.is_file():
                raise ValueError(f"data: shard {path} is missing; run data prepare again")
            stat = path.stat()
            # The expected hash is part of the stamp, so a stamp cannot outlive the index it was made for.
            stamps[shard["name"]] = stamp = [stat.st_size, stat.st_mtime_ns, shard["sha256"]]
            if stat.st_size != shard["tokens"] * np.dtype(self.index["dtype"]).itemsize or (
                known.get(shard["name"]) != stamp and file_sha256(path) != shard["sha256"]
            ):
                raise ValueError(f"data: shard {path} is corrupt (size or SHA-256 differ); run data prepare again")
        # On a read-only share nothing can be remembered: every opening checks again.
        if stamps != known and os.access(self.folder, os.W_OK):
            write_json(marker, stamps)
