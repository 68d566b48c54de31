"""Where texts come from: the embedded corpus, local files, data sets of the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import corpus
from harness.data import file_sha256

SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

Texts = Iterable[tuple[str | None, str]]


@dataclass(frozen=True)
class Source:
    """Documents and what identifies them.

    name: for a folder's name and for messages. description: JSON that changes whenever the texts do.
    documents: (text or None, split) in a fixed order, read once. has_splits: whether those splits mean anything.
    """

    name: str
    description: dict[str, Any]
    documents: Texts
    has_splits: bool = False


def open_source(
    source: str | Path, text_field: str, hub_config: str | None, hub_split: str | None, revision: str | None
) -> Source:
    """What `source` names (the embedded corpus, an existing path, a data set of the Hub); ValueError when nothing."""
    name = str(source)
    hub = {"hub_config": hub_config, "hub_split": hub_split, "revision": revision}
    path = Path(source).expanduser()
    if name == "embedded" or path.exists():
        given = [f"{field}: {value!r}" for field, value in hub.items() if value is not None]
        if given:
            raise ValueError(f"{given[0]} is for data sets of the Hub, and the source is {name!r}; leave it out")
        return _embedded() if name == "embedded" else _local(path.resolve(), text_field)
    if path.suffix in SUFFIXES or not HUB_NAME.fullmatch(name):
        raise ValueError(f"source: no file or folder {name}; give one, a data set's name on the Hub, or 'embedded'")
    return _hub(name, text_field, hub_config, hub_split or "train", revision)


def _embedded() -> Source:
    def read() -> Iterator[tuple[str, str]]:
        for split in reversed(corpus.SPLITS):  # train last, so that stopping early keeps the held-out splits whole
            yield from ((document.text, split) for document in corpus.documents(split))

    return Source("embedded", {"kind": "embedded", "sha256": corpus.fingerprint()}, read(), has_splits=True)


def _local(path: Path, text_field: str) -> Source:
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    used = [f for f in files if f.suffix in SUFFIXES]
    if not used:
        raise ValueError(f"source: {path} is or holds no {', '.join(SUFFIXES)} file; convert it to one of them")
    root = path if path.is_dir() else path.parent
    description = {
        "kind": "local",
        "text_field": text_field,
        "files": [[str(f.relative_to(root)), f.stat().st_size, file_sha256(f)] for f in used],
        "files_not_read": [str(f.relative_to(root)) for f in files if f not in set(used)],
    }

    def read() -> Iterator[tuple[str | None, str]]:
        for file in used:
            reader = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}[file.suffix]
            yield from ((text, "train") for text in reader(file, text_field))

    return Source(path.stem, description, read())


def _txt(file: Path, text_field: str) -> Iterator[str]:
    try:
        yield file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"source: {file} is not UTF-8 ({error}); convert it") from error


def _jsonl(file: Path, text_field: str) -> Iterator[str | None]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"source: line {number} of {file} is not JSON ({error}); correct it") from error
            if not isinstance(row, dict):
                raise ValueError(f"source: line {number} of {file} is {type(row).__name__}, not an object; correct it")
            yield _text(row, text_field, f"line {number} of {file}")


def _parquet(file: Path, text_field: str) -> Iterator[str | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"source: {file} is not a parquet file ({error}); write or download it again") from error
    with table:
        if text_field not in table.schema_arrow.names:
            _text(dict.fromkeys(table.schema_arrow.names), text_field, str(file))
        for batch in table.iter_batches(columns=[text_field]):
            for row in batch.to_pylist():
                yield _text(row, text_field, str(file))


def _text(row: dict[str, Any], text_field: str, where: str) -> str | None:
    if text_field not in row:
        raise ValueError(
            f"text_field: no {text_field!r} in {where}; its fields: {', '.join(row)}; name the right one with "
            "--text-field"
        )
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"text_field: {text_field!r} holds {type(text).__name__} in {where}, not text; name another with "
            "--text-field"
        )
    return text


def _hub(name: str, text_field: str, config: str | None, split: str, revision: str | None) -> Source:
    """A data set of the Hub, streamed at the commit that `revision` stands for now."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # of the transport library that this version uses

    remedy = "give an existing path, 'embedded', or a name, config and split that the Hub has"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"source: no file or folder {name}, and HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or "
            f"{remedy}"
        )
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
        from datasets import load_dataset

        rows = load_dataset(name, config, split=split, revision=commit, streaming=True)
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"source: no file or folder {name}, nor such data on the Hub ({reason}); {remedy}") from error
    chosen = {"name": name, "config": config, "split": split, "commit": commit}
    description = {"kind": "hub", "text_field": text_field, **chosen}
    documents = ((_text(row, text_field, f"{name} ({split})"), "train") for row in rows)
    return Source(name.replace("/", "--"), description, documents)
