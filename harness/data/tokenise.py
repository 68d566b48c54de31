"""Tokenise the parts of a data set in any number of processes that share one work folder.

`python -m harness.data.tokenise FOLDER` is a worker. Nothing here imports torch, so it starts fast and stays small.

    .<output>.work/plan.json    settings and parts; every process reads it
                  /jobs.json    ids of the Slurm jobs last submitted for this preparation
                  /tokenizer/   the tokenizer of all processes
                  /<key>/       a finished part: the shards of its splits, and part.json with counts and checksums
                  /<key>.lock   held by the process that works on the part
                  /<key>.partial/   what that process has written so far, and its progress
                  /<key>.cut/   the part tokenised again, up to max_tokens
                  /output/      the output being assembled; it is moved into place as a whole
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import corpus
from harness.data.sources import Part, Texts, documents
from harness.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLAN = "plan.json"
JOBS = "jobs.json"
RESULT = "part.json"
STAGED = "output"
SURROGATE = re.compile("[\ud800-\udfff]")
DOCUMENTS_PER_CALL = 256
CHARACTERS_PER_CALL = 2**20  # a call keeps its encodings in memory, some hundred bytes per token
ENOUGH = b"."  # written to a worker's stdin: take no more parts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota and a file that has reached its size limit."""


class Preparation:
    """The work folder of a preparation in progress: its plan, its parts and their results.

    parts: the parts of the source, in order. keys: the folder name of each part's result.
    results: the finished parts as of the last `refresh`, by part number. Each result lists its shards, the documents
        read, the empty ones and the `damaged` ones among them, the characters `replaced` in those, the limit on train
        tokens, and whether that limit left `more` documents.

    Raises FileNotFoundError if the folder holds no plan.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        remedy = "remove its folder and run the same command again"
        self.plan: dict[str, Any] = read_json(folder / PLAN, remedy)
        try:
            self.parts = [Part(p["identity"], p["place"], p["size"]) for p in self.plan["parts"]]
            self.keys: list[str] = [p["key"] for p in self.plan["parts"]]
            _ = self.max_tokens
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / PLAN}: damaged, no plan of a preparation ({error!r}); {remedy}") from None
        self.results: dict[int, dict[str, Any]] = {}

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.folder.with_name(self.folder.name.removeprefix(".").removesuffix(".work"))

    @property
    def max_tokens(self) -> int | None:
        """Train tokens after which the output ends; None if it takes the whole source."""
        return self.plan["settings"]["max_tokens"]

    def refresh(self) -> None:
        """Read the results that have appeared since the last call."""
        names = set(os.listdir(self.folder))
        for index, key in enumerate(self.keys):
            if index not in self.results and key in names:
                self.results[index] = self.read(key)

    def read(self, key: str) -> dict[str, Any]:
        """The result in the folder `key`."""
        path, remedy = self.folder / key / RESULT, "remove its folder and run the same command again"
        result = read_json(path, remedy)
        if not isinstance(result, dict) or not {"read", "empty", "shards", "limit", "more"} <= result.keys():
            raise ValueError(f"{path}: damaged, no result of a part; {remedy}")
        return result

    def leading_parts(self) -> tuple[int, int]:
        """Number of finished parts before the first gap, and their train tokens; counting stops at max_tokens."""
        count = tokens = 0
        while count in self.results and (self.max_tokens is None or tokens < self.max_tokens):
            tokens += train_tokens(self.results[count])
            count += 1
        return count, tokens

    def complete(self) -> bool:
        """Whether every part that the output needs is finished."""
        count, tokens = self.leading_parts()
        return count == len(self.parts) or (self.max_tokens is not None and tokens >= self.max_tokens)

    def free(self, most: int) -> int:
        """Number of parts that are neither finished nor in progress, counted up to `most`."""
        count = 0
        for index in range(len(self.parts)):
            if count < most and index not in self.results:
                with self.claim(index, mark=False) as mine:
                    count += mine
        return count

    @contextmanager
    def claim(self, index: int, mark: bool = True) -> Iterator[bool]:
        """Lock a part and yield whether this process is to do it. No other process works on it until the block ends.

        mark: write this process's name into the lock file, for `claimed_by`.
        """
        with open(self.folder / f"{self.keys[index]}.lock", "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if mark:
                lock.truncate(0)
                lock.write(f"{socket.gethostname()} {os.getpid()}")
                lock.flush()
            yield not (self.folder / self.keys[index]).exists()

    def claimed_by(self, pid: int) -> int | None:
        """Number of the part that a process of this machine was working on when it ended; None if it had none."""
        for index, key in enumerate(self.keys):
            lock, mark = self.folder / f"{key}.lock", f"{socket.gethostname()} {pid}"
            if lock.exists() and lock.read_text(encoding="utf-8") == mark and not (self.folder / key).exists():
                return index
        return None

    def counts(self) -> tuple[int, int]:
        """Documents and tokens so far, over the finished parts and those in progress in any process."""
        read = sum(result["read"] for result in self.results.values())
        tokens = sum(shard["tokens"] for result in self.results.values() for shard in result["shards"])
        for path in self.folder.glob("*.partial/progress"):
            try:
                some, more = map(int, path.read_text(encoding="utf-8").split())
            except (OSError, ValueError):  # the part has just finished, or the file is being written
                continue
            read, tokens = read + some, tokens + more
        return read, tokens

    def busy(self) -> bool:
        """Whether any process is working on a part."""
        return self.free(len(self.parts)) + len(self.results) < len(self.parts)

    def part_name(self, index: int) -> str:
        """The name of a part in messages."""
        return f"part {index + 1} of {len(self.parts)} of {self.plan['name']}"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The work folder's tokenizer, without truncation and padding. Names of special tokens in a text are text."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer" / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def controls(self) -> dict[int, str]:
        """Names of the special tokens by id. A name of one letter is left out: it cannot be spelt in another way."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {i: token.content for i, token in added.items() if token.special and len(token.content) > 1}

    def write(self, index: int, key: str, limit: int | None, tell: Callable[[], None]) -> None:
        """Tokenise a part into the folder `key`; stop after the document that reaches `limit` train tokens.

        tell: called about once a second.
        """
        target, partial = self.folder / key, self.folder / f"{key}.partial"
        if partial.exists():
            shutil.rmtree(partial)  # left by a process that was killed
        partial.mkdir()
        settings = self.plan["settings"]
        dtype = np.dtype(self.plan["dtype"])
        shards = {split: Shards(partial, split, dtype, settings["shard_tokens"]) for split in corpus.SPLITS}
        counts, more, said = dict.fromkeys(("read", "empty", "damaged", "replaced"), 0), False, time.monotonic()
        try:
            for split, ids, replaced in self._tokenised(self.parts[index]):
                if limit is not None and shards["train"].tokens >= limit:
                    more = True
                    break
                counts["read"] += 1
                counts["damaged"] += replaced > 0
                counts["replaced"] += replaced
                if ids:
                    shards[split].add(ids)
                else:
                    counts["empty"] += 1
                if time.monotonic() - said >= 1:
                    said = time.monotonic()
                    tokens = sum(s.tokens for s in shards.values())
                    (partial / "progress").write_text(f"{counts['read']} {tokens}", encoding="utf-8")
                    tell()
            for shard in shards.values():
                shard.close()
            done = [entry for shard in shards.values() for entry in shard.done]
            (partial / "progress").unlink(missing_ok=True)
            # Not write_atomic: it would recreate the folder if another process had removed it.
            with open(partial / RESULT, "wb") as file:
                file.write(json.dumps({"limit": limit, "more": more, **counts, "shards": done}).encode())
                file.flush()
                os.fsync(file.fileno())
            try:
                partial.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(partial)  # another machine did it, and its files showed up late here; they are identical
        except BaseException:
            for shard in shards.values():
                with suppress(OSError):  # the disk may be too full for its last bytes
                    shard.close()
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _tokenised(self, part: Part) -> Iterator[tuple[str, list[int], int]]:
        """Yield (split, ids with BOS, number of replaced characters) for every document; an empty one has no ids."""
        fractions, bos = self.plan["settings"]["fractions"], self.plan["bos_token_id"]
        for group in _groups(documents(part)):
            cleaned = [_encodable(text or "") for text, _ in group]
            encoded = self.tokenizer.encode_batch_fast([text for text, _ in cleaned], add_special_tokens=False)
            for (text, replaced), (_, split), encoding in zip(cleaned, group, encoded, strict=True):
                if not text.strip():
                    yield "train", [], replaced
                    continue
                if fractions is not None:
                    split = corpus.split_of(text, fractions["validation"], fractions["test"])
                yield split, [bos, *self._without_controls(text, encoding.ids)], replaced

    def _without_controls(self, text: str, ids: list[int]) -> list[int]:
        """The ids of a text, without those of special tokens that it spells.

        A model whose vocabulary has their names as ordinary pieces finds them in spite of `encode_special_tokens`. Such
        a text is encoded in pieces that part each name after its first letter.
        """
        spelt = [self.controls[i] for i in self.controls.keys() & set(ids) if self.controls[i] in text]
        if not spelt:
            return ids
        cuts = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in spelt)
        return [i for piece in re.split(cuts, text) for i in self.tokenizer.encode(piece, add_special_tokens=False).ids]


def _encodable(text: str) -> tuple[str, int]:
    """A text with U+FFFD for each lone surrogate, which no encoding of text has, and their number."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.subn("\ufffd", text)
    return text, 0


def train_tokens(result: dict[str, Any]) -> int:
    """Number of train tokens in a part's result."""
    return sum(shard["tokens"] for shard in result["shards"] if shard["split"] == "train")


def _groups(texts: Texts) -> Iterator[list[tuple[str | None, str]]]:
    """Documents in groups for one call of the tokenizer each."""
    group, characters = [], 0
    for text, split in texts:
        group.append((text, split))
        characters += len(text or "")
        if len(group) == DOCUMENTS_PER_CALL or characters >= CHARACTERS_PER_CALL:
            yield group
            group, characters = [], 0
    if group:
        yield group


class Shards:
    """Writes the tokens of one split. A file is closed once it holds `limit` tokens; a document is never divided."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, limit: int):
        self.folder, self.split, self.dtype, self.limit = folder, split, dtype, limit
        self.done: list[dict[str, Any]] = []
        self.file = None
        self.tokens = 0

    def add(self, ids: list[int]) -> None:
        """Append one document."""
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
        """Finish the open file, if any, and add its entry to `done`."""
        if self.file is None:
            return
        file, self.file = self.file, None
        with file:
            file.flush()
            os.fsync(file.fileno())  # before any file lists this one
        entry = {"name": self.name, "split": self.split, "tokens": self.in_shard, "documents": self.documents}
        self.done.append({**entry, "sha256": self.digest.hexdigest()})


def do_free_parts(
    preparation: Preparation, tell: Callable[[], None] = lambda: None, enough: Callable[[], bool] = lambda: False
) -> None:
    """Do the free parts in order until none is left, the output needs no more, or `enough` returns True.

    tell: called about once a second. Also returns when the work folder is gone, because another process has finished
    the output. Raises ValueError (one line) for what the user can correct, and RuntimeError naming the part for
    everything else. Finished parts are kept in any case.
    """
    while True:
        try:
            preparation.refresh()
            if enough() or preparation.complete() or not _do_one(preparation, tell):
                return
        except OSError as error:
            if not (preparation.folder / PLAN).exists():
                return
            if error.errno in FULL:
                raise no_space(preparation.out, error) from error
            raise


def _do_one(preparation: Preparation, tell: Callable[[], None]) -> bool:
    """Do the first free part. Returns False if there is none."""
    for index, key in enumerate(preparation.keys):
        if index in preparation.results:
            continue
        with preparation.claim(index) as mine:
            if not mine:
                continue
            count, tokens = preparation.leading_parts()
            # No part needs more than max_tokens. Once all earlier parts are done, the exact remainder is known.
            limit = preparation.max_tokens and preparation.max_tokens - (tokens if count == index else 0)
            try:
                preparation.write(index, key, limit, tell)
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in FULL
                if full or isinstance(error, ValueError) or not (preparation.folder / PLAN).exists():
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise RuntimeError(
                    f"{preparation.part_name(index)}: {reason}; run the same command again to resume"
                ) from error
            return True
    return False


def no_space(out: Path, error: OSError) -> ValueError:
    """The error that says that there is no room for `out`."""
    return ValueError(f"out_dir: no room to write {out} ({error.strerror}); free space or choose another")


def main(folder: str) -> int:
    """Run a worker on a work folder.

    Returns its exit code: 0 when no part is left for it, 2 for ValueError, 1 for any other failure. The last line of
    stderr names the failure. After ENOUGH on stdin the worker takes no more parts. When stdin closes it exits, so it
    never outlives the process that started it.
    """
    enough = threading.Event()

    def listen() -> None:
        while os.read(0, 1):  # not sys.stdin: Python aborts at exit while a thread holds its lock
            enough.set()
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    try:
        do_free_parts(Preparation(Path(folder)), enough=enough.is_set)
    except FileNotFoundError:
        if (Path(folder) / PLAN).exists():
            raise
    except (ValueError, RuntimeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
