"""A line now and then from work that would be silent: what is being done, and for how long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE = 10.0
"""Seconds after which work says what it is at."""


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call a function every so many seconds, in a thread of its own, until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class At:
    """The thing that is being done; called with what is done from then on."""

    def __init__(self, doing: str):
        self.doing, self.began = doing, time.monotonic()
        self.last = self.began

    def __call__(self, doing: str) -> None:
        self.doing = doing

    def line(self, text: str) -> None:
        """Say a line of progress at once."""
        self.doing, self.last = text, time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def say(self) -> None:
        """Say on stderr what is being done and for how long, if nothing was said for SILENCE seconds."""
        now = time.monotonic()
        if now - self.last >= SILENCE:
            self.last = now
            print(f"{self.doing}: {now - self.began:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def working(doing: str) -> Iterator[At]:
    """Say on stderr what is being done, whenever SILENCE seconds have passed without a word."""
    at = At(doing)
    with every(SILENCE / 10, at.say):
        yield at
