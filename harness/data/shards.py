"""Reading prepared data: tokenizers, verified token shards, and a sampler whose position is a number.

`harness.data.prepare` writes the folders that `TokenData` opens. Documents lie end to end in a split's stream, each
after its BOS. A batch is a pure function of (seed, step): nothing but the step has to be saved to go on exactly.
"""

from __future__ import annotations

import json
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
from harness.files import file_sha256, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INDEX = "index.json"
VERIFIED = "verified.json"
TOKENIZER = "tokenizer"
FORMAT = 1


class TokenStream:
    """A split's tokens: memory-mapped shards end to end. `len` is the number of tokens; slices read across shards."""

    def __init__(self, shards: list[NDArray[Any]], dtype: np.dtype):
        self.shards = shards
        self.dtype = dtype
        self.ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, span: slice) -> NDArray[Any]:
        """The tokens of a contiguous slice, copied, as the shards' own integer type."""
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


class TokenData:
    """A folder of prepared data, opened and verified.

    Every shard's length is checked at every opening, its SHA-256 at the first one and again whenever the file's size
    or time has changed. Raises ValueError naming the file and the remedy.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser().resolve()
        path = self.folder / INDEX
        if not path.is_file():
            raise ValueError(f"data: no {INDEX} in {self.folder}; run data prepare with this folder as its output")
        try:
            self.index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = self.index["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"data: {path} is corrupt ({error}); run data prepare again") from error
        if version != FORMAT:
            raise ValueError(f"data: {path} has format {version}, expected {FORMAT}; run data prepare again")
        self._verify()
        self._streams = {split: self._open(split) for split in corpus.SPLITS}

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary of the tokenizer that made the data; every token id lies below it."""
        return self.index["vocab_size"]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that made the data, from the copy beside it. Raises ValueError when that copy has changed."""
        tokenizer = load_tokenizer(self.folder / TOKENIZER)
        if tokenizer_hash(tokenizer) != self.index["tokenizer_hash"]:
            raise ValueError(f"data: {self.folder / TOKENIZER} is not what made the shards; run data prepare again")
        return tokenizer

    def require_vocab(self, vocab_size: int) -> None:
        """Raises ValueError unless a model of `vocab_size` can take every token of this data's tokenizer."""
        if vocab_size < self.vocab_size:
            raise ValueError(
                f"vocab_size: {vocab_size} is too small for token ids up to {self.vocab_size - 1} of the tokenizer of "
                f"{self.folder}; set it to at least {self.vocab_size}"
            )

    def tokens(self, split: str) -> TokenStream:
        """The stream of a split: document after document, each after its BOS. May be empty."""
        if split not in self._streams:
            raise ValueError(f"split: unknown name {split!r}; known: {', '.join(corpus.SPLITS)}")
        return self._streams[split]

    def windows(self, split: str, seq_len: int) -> int:
        """Windows of seq_len + 1 tokens in an epoch, each sharing one token with the next.

        The up to seq_len - 1 tokens after the last window are no target in any epoch. Raises ValueError when the
        split has not one window.
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
        """The batch of a step: [batch_size, seq_len + 1] int64, samples step·batch_size onwards of the endless order.

        Needs one batch_size throughout; a caller whose batches vary counts samples and calls `samples`.
        """
        return self.samples(split, seed, step * batch_size, batch_size, seq_len)

    def samples(self, split: str, seed: int, start: int, count: int, seq_len: int) -> Tensor:
        """Samples start … start + count - 1 of the endless order under `seed`: [count, seq_len + 1] int64.

        The order runs through all windows of the split once an epoch, each epoch in an order of its own.
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
        dtype = np.dtype(self.index["dtype"])
        shards = [s["name"] for s in self.index["shards"] if s["split"] == split]
        return TokenStream([np.memmap(self.folder / name, dtype=dtype, mode="r") for name in shards], dtype)

    def _verify(self) -> None:
        marker = self.folder / VERIFIED
        known = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
        stamps = {}
        for shard in self.index["shards"]:
            path = self.folder / shard["name"]
            if not path.is_file():
                raise ValueError(f"data: shard {path} is missing; run data prepare again")
            stat = path.stat()
            # The expected hash is part of the stamp, so that a stamp cannot outlive the index that it was made for.
            stamps[shard["name"]] = stamp = [stat.st_size, stat.st_mtime_ns, shard["sha256"]]
            if stat.st_size != shard["tokens"] * np.dtype(self.index["dtype"]).itemsize or (
                known.get(shard["name"]) != stamp and file_sha256(path) != shard["sha256"]
            ):
                raise ValueError(f"data: shard {path} is corrupt (size or SHA-256 differ); run data prepare again")
        # Prepared data may lie on a read-only share: there every opening checks anew.
        if stamps != known and os.access(self.folder, os.W_OK):
            write_json(marker, stamps)
