"""Read the documents of local files: plain text, JSON in its usual forms and parquet, each of them compressed or not.

A byte that is no UTF-8 comes out as a lone surrogate, as JSON's escapes may do; `harness.data.tokenise` replaces and
counts both.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

ENDINGS = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSED = (".gz", ".zst")
KNOWN = f"{', '.join(ENDINGS)}, also with {' or '.join(COMPRESSED)}"
"""Everything that is read, for messages."""
LINES = (".jsonl", ".ndjson")
ROWS_PER_READ = 1024  # of a parquet file: a row group of long documents may not fit in memory

Where = Callable[[], str]
"""Names a row, for errors. Not text, since counting lines takes time."""


def form(file: Path) -> tuple[str, str] | None:
    """Format and compression of a file by its name, such as (".jsonl", ".gz"); None if it is not read.

    A link is judged by its own name: those of the Hub's cache lead to files that are named by their content.
    """
    name = file.name.lower()
    compression = next((ending for ending in COMPRESSED if name.endswith(ending)), "")
    ending = Path(name.removesuffix(compression)).suffix
    return (ending, compression) if ending in ENDINGS else None


def unread(file: Path) -> str:
    """Why a file of a folder is not read."""
    if not file.exists():
        return "a link to nothing"
    return "a link to a folder" if file.is_dir() else f"its name does not end in {KNOWN}"


def texts(file: Path, start: int, stop: int, text_field: str) -> Iterator[str | None]:
    """The texts of a piece of a file: of plain JSON lines those that begin in bytes start … stop - 1, of a parquet file
    row groups start … stop - 1, of any other file all.

    Raises ValueError naming the file, and the line or entry if there are some.
    """
    ending, compression = form(file)
    if ending == ".parquet":
        yield from _parquet(file, start, stop, text_field)
    elif ending in LINES and not compression:
        yield from _range(file, start, stop, text_field)
    else:
        with _opened(file, compression) as content:
            _start(file, content)
            if ending == ".txt":
                yield _decoded(content.read())
            elif ending in LINES:
                yield from _lines(file, content, text_field)
            else:
                yield from _json(file, content, text_field)


@contextmanager
def _opened(file: Path, compression: str) -> Iterator[IO[bytes]]:
    """Open a file, decompressed. Raises ValueError if what is compressed is damaged."""
    if not compression:
        with file.open("rb") as content:
            yield content
        return
    import pyarrow

    try:
        if compression == ".gz":
            with gzip.open(file) as content:
                yield content
        else:
            with io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")) as content:
                yield content
    except (EOFError, OSError, zlib.error, pyarrow.ArrowException) as error:
        raise ValueError(f"source: {file} cannot be decompressed ({error}); write or download it again") from error


def _start(file: Path, content: IO[bytes]) -> None:
    """Skip the byte order mark of UTF-8. Raises ValueError for those of other encodings."""
    head = content.peek(4)[:4]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"source: {file} is not UTF-8 but UTF-16 or UTF-32; convert it")
    if head.startswith(codecs.BOM_UTF8):
        content.read(len(codecs.BOM_UTF8))


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _range(file: Path, start: int, stop: int, text_field: str) -> Iterator[str | None]:
    """The texts of the lines that begin in bytes start … stop - 1."""
    with file.open("rb") as lines:
        if start:
            lines.seek(start - 1)
            lines.readline()  # a line that began earlier belongs to the range in which it began
        else:
            _start(file, lines)
        at = lines.tell()
        while at < stop and (line := lines.readline()):
            where = partial(_line_at, file, at)
            at += len(line)
            if line.strip():
                yield text_of(_row(line, where), text_field, where)


def _lines(file: Path, content: IO[bytes], text_field: str, before: int = 0) -> Iterator[str | None]:
    """The texts of all further lines. before: lines that were read already."""
    for number, line in enumerate(content, before + 1):
        if line.strip():
            where = f"line {number} of {file}".__str__
            yield text_of(_row(line, where), text_field, where)


def _row(line: bytes, where: Where) -> dict[str, Any]:
    """The object in a line. Raises ValueError if there is none."""
    try:
        return _object(json.loads(_decoded(line)), where)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"source: {where()} is not JSON ({error}); correct it") from error


def _object(value: Any, where: Where) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"source: {where()} is {type(value).__name__}, not an object; correct it")
    return value


def _json(file: Path, content: IO[bytes], text_field: str) -> Iterator[str | None]:
    """The texts of an array of objects, of one object, or of lines of JSON, which are often called .json too."""
    head, before = content.readline(), 1
    while head and not head.strip():
        head, before = content.readline(), before + 1
    if not head:
        return
    try:
        lines = isinstance(json.loads(_decoded(head)), dict)
    except (json.JSONDecodeError, RecursionError):
        lines = False
    if lines:
        where = f"line {before} of {file}".__str__
        yield text_of(_row(head, where), text_field, where)
        yield from _lines(file, content, text_field, before)
        return
    try:
        value = json.loads(_decoded(head + content.read()))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"source: {file} is not JSON ({error}); correct it") from error
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        where = f"entry {number} of {file}".__str__
        yield text_of(_object(row, where), text_field, where)


def _line_at(file: Path, at: int) -> str:
    """Name the line that begins at byte `at`. Reads everything before it."""
    number = 1
    with file.open("rb") as content:
        while at and (block := content.read(min(at, 2**20))):
            number += block.count(b"\n")
            at -= len(block)
    return f"line {number} of {file}"


def row_groups(file: Path, text_field: str) -> list[int]:
    """Bytes of each row group of a parquet file. Raises ValueError if it is none, or has no such column."""
    with _open_parquet(file) as table:
        if text_field not in table.schema_arrow.names:
            text_of(dict.fromkeys(table.schema_arrow.names), text_field, file.__str__)
        return [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]


def _open_parquet(file: Path) -> Any:
    """Open a parquet file; one that is compressed as a whole is read into memory. Raises ValueError if it is none."""
    import pyarrow
    import pyarrow.parquet

    place: Any = file
    if compression := form(file)[1]:
        with _opened(file, compression) as content:
            place = pyarrow.BufferReader(content.read())
    try:
        return pyarrow.parquet.ParquetFile(place)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"source: {file} is not a parquet file ({error}); write or download it again") from error


def _parquet(file: Path, start: int, stop: int, text_field: str) -> Iterator[str | None]:
    """The texts of row groups start to stop - 1."""
    import pyarrow

    try:
        with _open_parquet(file) as table:
            groups = list(range(start, stop))
            for batch in table.iter_batches(ROWS_PER_READ, row_groups=groups, columns=[text_field]):
                for row in batch.to_pylist():
                    yield text_of(row, text_field, file.__str__)
    except UnicodeDecodeError as error:
        raise ValueError(f"source: column {text_field!r} of {file} is not UTF-8 ({error}); write it again") from error
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"source: {file} is damaged ({error}); write or download it again") from error


def text_of(row: dict[str, Any], text_field: str, where: Where) -> str | None:
    """The text of a row. Raises ValueError if it has no such field, or if the field holds anything else."""
    if text_field not in row:
        raise ValueError(
            f"text_field: no {text_field!r} in {where()}; its fields: {', '.join(row)}; name the right one with "
            "--text-field"
        )
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"text_field: {text_field!r} holds {type(text).__name__} in {where()}, not text; name another with "
            "--text-field"
        )
    return text
