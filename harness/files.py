"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write: with the end of the block it takes its name, and a reader sees the old content until then.

    Raises OSError naming the file, behind which, as behind whatever else the block raises, nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
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
    except BaseException:  # an interrupt: nobody would remove the piece
        partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or all of the new. Raises OSError naming the file."""
    with atomic(path) as file:
        file.write(content)
