"""Work that takes long says what it is at, and says nothing once it has ended."""

from __future__ import annotations

import re
import time

import pytest

from harness import progress
from harness.progress import every, working


def test_long_work_says_what_it_is_at_until_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SILENCE", 0.05)
    with pytest.raises(ZeroDivisionError), working("reading") as at:
        time.sleep(0.3)
        at("writing")
        time.sleep(0.3)
        raise ZeroDivisionError
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "reading: 0 s" and re.fullmatch(r"writing: \d s", said[-1]) and len(said) >= 4
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with working("reading"):
        pass
    assert capsys.readouterr().err == ""


def test_a_function_is_called_again_and_again_while_the_block_is_busy() -> None:
    calls: list[float] = []
    with every(0.02, lambda: calls.append(time.monotonic())):
        end = time.monotonic() + 5
        while len(calls) < 3 and time.monotonic() < end:
            sum(range(1000))
    assert len(calls) >= 3
