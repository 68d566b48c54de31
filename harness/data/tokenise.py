"""Tokenising the parts of a preparation, by any number of processes that share its work folder. Nothing here needs
torch: `python -m harness.data.tokenise FOLDER`, a worker, starts at once and stays small.

    .<output>.work/plan.json    the settings and parts, which every process reads
                  /jobs.json    Slurm's ids of the jobs that were submitted for it last
                  /tokenizer/   what all of them tokenise with
                  /<key>/       a part that is done: shards of its splits, part.json with counts and checksums
                  /<key>.lock   held by the process that works on the part
                  /<key>.partial/   what that process has written so far, and its progress
                  /<key>.cut/   the part again, as far as max_tokens goes
                  /output/      what is being put together, to be moved to its place as a whole
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
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

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLAN = "plan.json"
JOBS = "jobs.json"
RESULT = "part.json"
STAGED = "output"
DOCUMENTS_PER_CALL = 256
CHARACTERS_PER_CALL = 2**20  # a call holds its encodings, some hundred bytes a token, in memory
ENOUGH = b"."  # said to a worker: no more parts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Preparation:
    """A work folder and its plan. Raises FileNotFoundError where there is none.

    parts, keys: of the source in order, and the names of their results. results: those that are there, by the part's
    number: shards, documents read and empty ones, the limit of train tokens and whether it left `more` documents.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.plan: dict[str, Any] = json.loads((folder / PLAN).read_bytes())
        self.parts = [Part(p["identity"], p["place"], p["size"]) for p in self.plan["parts"]]
        self.keys: list[str] = [p["key"] for p in self.plan["parts"]]
        self.results: dict[int, dict[str, Any]] = {}

    @property
    def out(self) -> Path:
        """The folder of the output."""
        return self.folder.with_name(self.folder.name.removeprefix(".").removesuffix(".work"))

    @property
    def max_tokens(self) -> int | None:
        return self.plan["settings"]["max_tokens"]

    def refresh(self) -> None:
        """Read the results that have appeared."""
        there = set(os.listdir(self.folder))
        for index, key in enumerate(self.keys):
            if index not in self.results and key in there:
                self.results[index] = self.read(key)

    def read(self, key: str) -> dict[str, Any]:
        return json.loads((self.folder / key / RESULT).read_bytes())

    def leading_parts(self) -> tuple[int, int]:
        """The parts from the first on that are done without a gap, and their train tokens; no further than max_tokens
        takes."""
        count = tokens = 0
        while count in self.results and (self.max_tokens is None or tokens < self.max_tokens):
            tokens += train_tokens(self.results[count])
            count += 1
        return count, tokens

    def complete(self) -> bool:
        """Whether everything that the output needs is there."""
        count, tokens = self.leading_parts()
        return count == len(self.parts) or (self.max_tokens is not None and tokens >= self.max_tokens)

    def free(self, most: int) -> int:
        """How many parts are neither done nor worked on, counted up to `most`."""
        found = 0
        for index in range(len(self.parts)):
            if found < most and index not in self.results:
                with self.claim(index, mark=False) as mine:
                    found += mine
        return found

    @contextmanager
    def claim(self, index: int, mark: bool = True) -> Iterator[bool]:
        """Whether the part is this process' to do: while the context lasts nobody else works on it. mark: name this
        process in the lock, for `claimed_by`."""
        with open(self.folder / f"{self.keys[index]}.lock", "a+") as lock:
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
        """The part that a process of this machine was at when it ended."""
        for index, key in enumerate(self.keys):
            lock, mark = self.folder / f"{key}.lock", f"{socket.gethostname()} {pid}"
            if lock.exists() and lock.read_text() == mark and not (self.folder / key).exists():
                return index
        return None

    def counts(self) -> tuple[int, int]:
        """Documents and tokens so far: of all parts that are done or worked on, by whomever."""
        read = sum(result["read"] for result in self.results.values())
        tokens = sum(shard["tokens"] for result in self.results.values() for shard in result["shards"])
        for path in self.folder.glob("*.partial/progress"):
            try:
                some, more = map(int, path.read_text().split())
            except (OSError, ValueError):  # just done, or just being written
                continue
            read, tokens = read + some, tokens + more
        return read, tokens

    def busy(self) -> bool:
        """Whether somebody works on a part."""
        return self.free(len(self.parts)) + len(self.results) < len(self.parts)

    def part_name(self, index: int) -> str:
        return f"part {index + 1} of {len(self.parts)} of {self.plan['name']}"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer" / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def write(self, index: int, key: str, limit: int | None, tell: Callable[[], None]) -> None:
        """Tokenise a part into the folder `key`, up to the document with which it has `limit` train tokens. tell:
        called some times a second."""
        target, partial = self.folder / key, self.folder / f"{key}.partial"
        if partial.exists():
            shutil.rmtree(partial)  # of a process that was killed
        partial.mkdir()
        settings = self.plan["settings"]
        dtype = np.dtype(self.plan["dtype"])
        shards = {split: Shards(partial, split, dtype, settings["shard_tokens"]) for split in corpus.SPLITS}
        counts, more, said = {"read": 0, "empty": 0}, False, time.monotonic()
        try:
            for split, ids in self._tokenised(self.parts[index]):
                if limit is not None and shards["train"].tokens >= limit:
                    more = True
                    break
                counts["read"] += 1
                if ids:
                    shards[split].add(ids)
                else:
                    counts["empty"] += 1
                if time.monotonic() - said >= 1:
                    said = time.monotonic()
                    tokens = sum(s.tokens for s in shards.values())
                    (partial / "progress").write_text(f"{counts['read']} {tokens}")
                    tell()
            for shard in shards.values():
                shard.close()
            done = [entry for shard in shards.values() for entry in shard.done]
            (partial / "progress").unlink(missing_ok=True)
            with open(partial / RESULT, "wb") as file:  # of a folder that somebody else may have removed by now
                file.write(json.dumps({"limit": limit, "more": more, **counts, "shards": done}).encode())
                file.flush()
                os.fsync(file.fileno())
            try:
                partial.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(partial)  # done by another machine, whose files are seen here late; they are the same
        except BaseException:
            for shard in shards.values():
                with suppress(OSError):  # there may be no room for what it still has to write
                    shard.close()
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _tokenised(self, part: Part) -> Iterator[tuple[str, list[int]]]:
        """(split, ids with BOS) of every document; an empty one has no ids."""
        fractions, bos = self.plan["settings"]["fractions"], self.plan["bos_token_id"]
        for group in _groups(documents(part)):
            encoded = self.tokenizer.encode_batch_fast([text or "" for text, _ in group], add_special_tokens=False)
            for (text, split), encoding in zip(group, encoded, strict=True):
                if not text or not text.strip():
                    yield "train", []
                    continue
                if fractions is not None:
                    split = corpus.split_of(text, fractions["validation"], fractions["test"])
                yield split, [bos, *encoding.ids]


def train_tokens(result: dict[str, Any]) -> int:
    """The train tokens of a part."""
    return sum(shard["tokens"] for shard in result["shards"] if shard["split"] == "train")


def _groups(texts: Texts) -> Iterator[list[tuple[str | None, str]]]:
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
        file, self.file = self.file, None
        with file:
            file.flush()
            os.fsync(file.fileno())  # before anything says that it is there
        entry = {"name": self.name, "split": self.split, "tokens": self.in_shard, "documents": self.documents}
        self.done.append({**entry, "sha256": self.digest.hexdigest()})


def do_free_parts(
    preparation: Preparation, tell: Callable[[], None] = lambda: None, enough: Callable[[], bool] = lambda: False
) -> None:
    """Do parts, the first free one first, until none is free, the output needs no more or `enough` says so.

    Raises ValueError, one line, for what the user can correct, RuntimeError naming the part for everything else; what
    is done stays. Returns when the work folder is gone, which somebody else has finished then.
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
    """Do the first free part; False if there is none."""
    for index, key in enumerate(preparation.keys):
        if index in preparation.results:
            continue
        with preparation.claim(index) as mine:
            if not mine:
                continue
            count, tokens = preparation.leading_parts()
            # No part can need more than max_tokens; when all before it are done, what is missing is known.
            limit = preparation.max_tokens and preparation.max_tokens - (tokens if count == index else 0)
            try:
                preparation.write(index, key, limit, tell)
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in FULL
                if full or isinstance(error, ValueError) or not (preparation.folder / PLAN).exists():
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise RuntimeError(
                    f"{preparation.part_name(index)}: {reason}; run the same command again to go on"
                ) from error
            return True
    return False


def no_space(out: Path, error: OSError) -> ValueError:
    return ValueError(f"out_dir: no room to write {out} ({error.strerror}); free space or choose another")


def main(folder: str) -> int:
    """A worker: exit code 0 when nothing is left to it, 2 for ValueError and 1 for any other failure, which the last
    line of stderr names. It begins no part any more when its stdin says ENOUGH, and ends when that ends, and so with
    the process that has started it."""
    enough = threading.Event()

    def listen() -> None:
        while os.read(0, 1):  # not sys.stdin: Python aborts when it ends while a thread holds that
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
