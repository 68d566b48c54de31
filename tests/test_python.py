"""The page about Python: its code runs from top to bottom, and leaves committed results as they are."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from harness.files import CHECKOUT

PAGE = CHECKOUT / "docs" / "python.md"


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    matplotlib.use("Agg")
    monkeypatch.syspath_prepend(str(CHECKOUT / "notebooks"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(CHECKOUT / "results")
    before = stamps(CHECKOUT / "results")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert stamps(CHECKOUT / "results") == before
    printed = capsys.readouterr().out
    for part in ("universally acknowledged.", "two taps", "gdn2-recurrent-s0", "Holm"):
        assert part in printed
    assert {path.name for path in tmp_path.iterdir()} == {"results", "runs", "collected", "mine.pdf", "gates.png"}
    assert len(names["found"]) == len(names["gaps"].gaps) > 0


def test_every_name_of_the_package_is_there_and_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "notebooks"))
    import mixerbench as mb

    assert sorted(mb.__all__) == mb.__all__
    used = set(re.findall(r"\bmb\.(\w+)", PAGE.read_text(encoding="utf-8")))
    assert used <= set(mb.__all__) and all(hasattr(mb, name) for name in mb.__all__)
