"""An item that jobs read from outside, and its hash: the unit of prefetching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """Something that jobs read, and its SHA-256, or the reason why it could not be had."""

    name: str
    sha256: str | None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.sha256 or f'missing: {self.reason}'}"


def hashed_item(name: str, get: Callable[[], str]) -> Item:
    """The item whose hash `get` returns; what it raises for data that cannot be had is the reason."""
    try:
        return Item(name, get())
    except (OSError, ValueError) as error:
        return Item(name, None, " ".join(str(error).split()))
