"""Files that a reader sees whole or not at all, and the places of the checkout and the cache.

Every other module writes through here, so that a crash, an interrupt or a full disk leaves the old content or the new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHECKOUT = Path(__file__).resolve().parents[1]
"""The folder that holds `harness/`: a checkout of the project, or site-packages of an installed wheel."""


_cleared: set[Path] = set()


def partial_path(path: Path) -> Path:
    """The temporary name, next to `path`, under which this process writes a file or a folder: .NAME.HOST.PID.partial.

    Leftovers in the same folder are removed first, once per process: those whose process, of this host, has ended.
    """
    folder = path.parent
    if folder not in _cleared and folder.is_dir():
        _cleared.add(folder)
        clear_leftovers(folder)
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in a folder whose process, of this host, has ended."""
    left = re.compile(rf"\..*\.{re.escape(socket.gethostname())}\.(\d+)\.partial")
    for path in folder.glob(".*.partial"):
        match = left.fullmatch(path.name)
        if match is None or _alive(int(match[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # another process may clear at the same time
                path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's process, or a number that no process can have
        return True
    return True


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends; until then readers see the old content.

    If the block raises, the temporary file is removed and `path` is unchanged. OSError is raised again with a message
    that names `path` and the remedy.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path}: cannot be written ({error.strerror}); free space or fix the permissions, then run again",
        ) from None
    except BaseException:  # an interrupt too: nobody else would remove the temporary file
        partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`, whole or not at all. Raises OSError naming the file."""
    with atomic(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as JSON, whole or not at all. Raises OSError naming the file."""
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the name `path` when the block ends, with its files flushed to disk.

    If the block raises, the folder is removed. Raises OSError if `path` has been made meanwhile.
    """
    partial = partial_path(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises FileNotFoundError if there is none, and ValueError naming the file and the
    remedy if it is damaged."""
    content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}); {remedy}") from None


def cache_dir() -> Path:
    """Folder of fetched and prepared data. Not created here.

    MIXERBENCH_CACHE if it is set, else `.cache/` of the checkout, or of the current folder for an installed wheel.
    """
    if os.environ.get("MIXERBENCH_CACHE"):
        return Path(os.environ["MIXERBENCH_CACHE"]).expanduser().resolve()
    return (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()) / ".cache"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
