"""Read documents from the embedded corpus, local files and data sets of the Hub.

Every source is cut into parts, in a fixed order, that processes read independently of each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import corpus
from harness.data.formats import KNOWN, LINES, form, row_groups, text_of, texts, unread
from harness.files import file_sha256

if TYPE_CHECKING:
    from datasets import IterableDataset

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PART_BYTES = 256_000_000  # of local files per part, roughly: a few minutes for one process

Texts = Iterator[tuple[str | None, str]]
"""(text or None, split) of each document."""
Piece = tuple[int, int, int, int]
"""(file number, start, stop, bytes). Start and stop count bytes, or row groups of a parquet file."""


@dataclass(frozen=True)
class Part:
    """A run of a source's documents that one process reads.

    identity: JSON that changes whenever the documents do. place: JSON that tells where they are at present.
    size: amount of text relative to the source's other parts.
    """

    identity: dict[str, Any]
    place: dict[str, Any]
    size: int


@dataclass(frozen=True)
class Source:
    """Documents and what identifies them.

    name: used in folder names and messages. description: JSON that changes whenever the texts do. parts: in the order
    of the documents; they depend on the source alone. has_splits: whether the source has its own splits. left_out: a
    line for each file of a folder that is not read, with the reason.
    """

    name: str
    description: dict[str, Any]
    parts: list[Part]
    has_splits: bool = False
    left_out: tuple[str, ...] = ()


def open_source(
    source: str | Path | None,
    dataset: str | None,
    text_field: str,
    hub_config: str | None,
    hub_split: str | None,
    revision: str | None,
) -> Source:
    """Open `source` (the embedded corpus, an existing path, or a data set of the Hub), or the Hub's data set `dataset`.

    No text is read yet. A local path with the name of `dataset` is ignored. Raises ValueError if there is no such
    source, or unless exactly one of the two is given.
    """
    if (source is None) == (dataset is None):
        which = "both" if source is not None else "neither"
        raise ValueError(f"source, dataset: {which} given; give a source, or the name of a data set on the Hub")
    if dataset is not None:
        if not HUB_NAME.fullmatch(dataset):
            raise ValueError(
                f"dataset: {dataset!r} is not a name on the Hub; give one such as HuggingFaceFW/fineweb-edu"
            )
        return _hub(
            dataset, f"dataset: {dataset} is on the Hub", text_field, hub_config, hub_split or "train", revision
        )
    name, path = str(source), Path(str(source)).expanduser()
    hub = {"hub_config": hub_config, "hub_split": hub_split, "revision": revision}
    if name == "embedded" or path.exists():
        unused = [f"{field}: {value!r}" for field, value in hub.items() if value is not None]
        if unused:
            raise ValueError(f"{unused[0]} is for data sets of the Hub, and the source is {name!r}; leave it out")
        return _embedded() if name == "embedded" else _local(Path(os.path.abspath(path)), text_field)
    if form(path) is not None or not HUB_NAME.fullmatch(name):
        raise ValueError(f"source: no file or folder {name}; give one, a data set's name on the Hub, or 'embedded'")
    return _hub(name, f"source: no file or folder {name}", text_field, hub_config, hub_split or "train", revision)


def cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def documents(part: Part) -> Texts:
    """Yield (text or None, split) for each document of a part, in order. Raises ValueError if a text is bad."""
    readers = {"embedded": _embedded_documents, "local": _local_documents, "hub": _hub_documents}
    return readers[part.identity["kind"]](part)


def _embedded() -> Source:
    """The embedded corpus as one part."""
    description = {"kind": "embedded", "sha256": corpus.fingerprint()}
    return Source("embedded", description, [Part(description, {}, 1)], has_splits=True)


def _embedded_documents(part: Part) -> Texts:
    """The documents of the embedded corpus, each with its split."""
    for split in reversed(corpus.SPLITS):  # train comes last, so that stopping early keeps the held-out splits whole
        yield from ((document.text, split) for document in corpus.documents(split))


def _local(path: Path, text_field: str) -> Source:
    """A file, or a folder of files, cut into parts of about PART_BYTES. Hashes every file."""
    files = sorted(f for f in path.rglob("*") if f.is_file() or f.is_symlink()) if path.is_dir() else [path]
    used = [f for f in files if f.is_file() and form(f) is not None]
    if not used:
        raise ValueError(f"source: {path} is not, and does not hold, a file whose name ends in {KNOWN}; convert it")
    root = path if path.is_dir() else path.parent
    skipped = sorted(set(files) - set(used))
    names, stamps = [str(f.relative_to(root)) for f in used], [_stamp(f) for f in used]
    with ThreadPoolExecutor(cpus()) as threads:
        hashes = list(threads.map(file_sha256, used))
    description = {
        "kind": "local",
        "text_field": text_field,
        "files": [[name, stamp[0], sha] for name, stamp, sha in zip(names, stamps, hashes, strict=True)],
        "files_not_read": [str(f.relative_to(root)) for f in skipped],
    }
    pieces = (piece for index, file in enumerate(used) for piece in _pieces(index, file, text_field))
    parts = []
    for group in _groups(pieces, PART_BYTES):
        ranges = [[names[index], hashes[index], start, stop] for index, start, stop, _ in group]
        identity = {"kind": "local", "text_field": text_field, "ranges": ranges}
        place = {"root": str(root), "stamps": [stamps[index] for index, *_ in group]}
        parts.append(Part(identity, place, sum(size for *_, size in group)))
    left_out = tuple(f"{f.relative_to(root)} is not read: {unread(f)}" for f in skipped)
    return Source(path.stem, description, parts, left_out=left_out)


def _stamp(file: Path) -> list[int]:
    """Size and modification time of a file."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _pieces(index: int, file: Path, text_field: str) -> Iterator[Piece]:
    """Cut file number `index` into pieces: plain JSON lines into ranges of bytes, a parquet file into row groups. Any
    other file is one piece.

    A line belongs to the range in which it begins.
    """
    size = file.stat().st_size
    ending, compression = form(file)
    if ending == ".parquet":
        for group, held in enumerate(row_groups(file, text_field)):
            yield index, group, group + 1, held
    elif ending in LINES and not compression:
        cuts = -(-size // PART_BYTES)
        for cut in range(cuts):
            start, stop = size * cut // cuts, size * (cut + 1) // cuts
            yield index, start, stop, stop - start
    else:
        yield index, 0, size, size


def _groups(pieces: Iterable[Piece], limit: int) -> Iterator[list[Piece]]:
    """Group consecutive pieces up to `limit` bytes each, and merge adjacent pieces of one file."""
    group: list[Piece] = []
    total = 0
    for index, start, stop, size in pieces:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        total += size
        if group and group[-1][0] == index and group[-1][2] == start:
            _, start, _, before = group.pop()
            size += before
        group.append((index, start, stop, size))
    if group:
        yield group


def _local_documents(part: Part) -> Texts:
    """The documents of a part of local files. Raises ValueError if a file has changed."""
    for (name, _, start, stop), stamp in zip(part.identity["ranges"], part.place["stamps"], strict=True):
        file = Path(part.place["root"]) / name
        _unchanged(file, stamp)
        yield from ((text, "train") for text in texts(file, start, stop, part.identity["text_field"]))
        _unchanged(file, stamp)


def _unchanged(file: Path, stamp: list[int]) -> None:
    """Raise ValueError if a file has changed since the parts were planned."""
    if not file.exists() or _stamp(file) != stamp:
        raise ValueError(f"source: {file} has changed since this preparation began; run the same command again")


def _hub(name: str, asked: str, text_field: str, config: str | None, split: str, revision: str | None) -> Source:
    """Open a data set of the Hub, to be streamed at the commit that `revision` points to now. Each file is one part.

    asked: the beginning of error messages.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # of the HTTP library that this version uses

    remedy = "give an existing path, 'embedded', or a name, config and split that the Hub has"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{asked}, and HF_HUB_OFFLINE is set, so the Hub is not consulted; unset it, or {remedy}")
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
        shards = _stream(name, config, split, commit).num_shards
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{asked}, and the Hub has no such data ({reason}); {remedy}") from error
    chosen = {"name": name, "config": config, "split": split, "commit": commit}
    description = {"kind": "hub", "text_field": text_field, **chosen}
    parts = [Part({**description, "shard": index, "of": shards}, {}, 1) for index in range(shards)]
    return Source(name.replace("/", "--"), description, parts)


@lru_cache(maxsize=1)
def _stream(name: str, config: str | None, split: str, commit: str) -> IterableDataset:
    """Stream a data set of the Hub at a commit."""
    from datasets import load_dataset

    # A bare name would load a folder of that name in the current directory, if there is one.
    return load_dataset(f"hf://datasets/{name}", config, split=split, revision=commit, streaming=True)


def _hub_documents(part: Part) -> Texts:
    """The documents of one file of a data set of the Hub."""
    chosen = {key: part.identity[key] for key in ("name", "config", "split", "commit")}
    rows, shard, shards = _stream(**chosen), part.identity["shard"], part.identity["of"]
    if rows.num_shards != shards:
        raise ValueError(
            f"source: {chosen['name']} has {rows.num_shards} files here, but {shards} where this preparation began; "
            "use one version of `datasets`"
        )
    where = f"file {shard + 1} of {shards} of {chosen['name']} ({chosen['split']})".__str__
    records = iter(rows.shard(shards, shard))
    while True:
        try:
            row = next(records, None)
        except ValueError as error:  # from the download or the file's reader: the user's arguments are right
            raise RuntimeError(f"{where()}: {error}") from error
        if row is None:
            return
        yield text_of(row, part.identity["text_field"], where), "train"
