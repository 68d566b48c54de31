"""Sources of text that several test files prepare."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from harness.data import corpus
from tests.harness.data.preparations import PARTS, jsonl


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Different paragraphs of Austen."""
    paragraphs = "\n\n".join(d.text for d in corpus.documents("validation", ["austen"])).split("\n\n")
    return list(dict.fromkeys(text for text in paragraphs if text.strip()))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut sources into parts of PARTS bytes."""
    monkeypatch.setattr("harness.data.sources.PART_BYTES", PARTS)


@pytest.fixture
def source(texts: list[str], tmp_path: Path, small_parts: None) -> Path:
    """A folder of nine parts: a txt file, three jsonl files (one with empty documents) and a parquet file."""
    root = tmp_path / "texts"
    root.mkdir()
    (root / "a.txt").write_text(texts[0], encoding="utf-8")
    jsonl(root / "b.jsonl", texts[1:150])
    jsonl(root / "c.jsonl", [*texts[150:160], "", " \n", None])
    jsonl(root / "d.jsonl", texts[160:250])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[250:350]}), root / "e.parquet", row_group_size=7)
    return root


@pytest.fixture
def slow(texts: list[str], tmp_path: Path) -> Path:
    """Two parts that take a second or two each, long enough to kill a process in the middle, and a short one."""
    return jsonl(tmp_path / "slow.jsonl", [f"{i} {text}" for i in range(24) for text in texts])
