"""A file with damaged content, for tests of what reads it."""

from pathlib import Path


def damage(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
