"""Items that jobs read from outside, each with the hash that freezes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """Something that jobs read from outside: its SHA-256, or None and the reason why it is missing."""

    name: str
    sha256: str | None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.sha256 or f'missing: {self.reason}'}"


def hashed_item(name: str, read_hash: Callable[[], str]) -> Item:
    """Return the item whose SHA-256 `read_hash` returns; an OSError or ValueError becomes its reason, on one line."""
    try:
        return Item(name, read_hash())
    except (OSError, ValueError) as error:
        return Item(name, None, " ".join(str(error).split()))
