"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or all of the new. Raises OSError naming the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
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
