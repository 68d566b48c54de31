"""Helpers for tests of preparations: expected token streams, preparations in processes, contents of work folders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.data import corpus
from harness.data.prepare import work_folder
from harness.data.shards import TokenData
from harness.data.tokenise import Preparation
from harness.data.tokenizer import load_tokenizer
from harness.files import CHECKOUT

THIRDS = {"validation_fraction": 0.2, "test_fraction": 0.1}
PARTS = 20_000  # bytes per part in most tests
SLOW = 3_500_000  # bytes per part of the fixture `slow`


def jsonl(path: Path, texts: list) -> Path:
    """Write texts as the rows of a .jsonl file."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def expected(texts: list[str | None], max_tokens: int | None = None) -> dict[str, list[int]]:
    """The token stream of each split, from the documents one by one in order."""
    tokenizer, streams = load_tokenizer(), {split: [] for split in corpus.SPLITS}
    for text in texts:
        if max_tokens is not None and len(streams["train"]) >= max_tokens:
            break
        if text and text.strip():
            split = corpus.split_of(text, THIRDS["validation_fraction"], THIRDS["test_fraction"])
            streams[split] += [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    return streams


def streams(data: TokenData) -> dict[str, list[int]]:
    """The token stream of each split of prepared data."""
    return {split: data.tokens(split)[:].tolist() for split in corpus.SPLITS}


def file_contents(folder: Path) -> dict[str, bytes]:
    """The content of every file of a prepared folder, except the stamps of verification."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start_preparation(
    source: Path, out: Path, processes: int, parts: int = PARTS, **options: object
) -> subprocess.Popen[str]:
    """Start a preparation in a separate process."""
    code = (
        f"import harness.data.sources; harness.data.sources.PART_BYTES = {parts}\n"
        f"from harness.data.prepare import prepare\n"
        f"prepare({str(source)!r}, out_dir={str(out)!r}, processes={processes}, **{THIRDS | options!r})"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, **pipes)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.002)


def finished_shards(out: Path) -> dict[str, int]:
    """Path and inode of each shard of the finished parts. A shard that is written again gets another inode."""
    shards = {}
    for result in work_folder(out).glob("*/part.json"):
        if not result.parent.suffix:
            shards |= {str(path): path.stat().st_ino for path in result.parent.glob("*.bin")}
    return shards


def inodes(folder: Path) -> set[int]:
    """Inodes of the shards of a prepared folder."""
    return {path.stat().st_ino for path in folder.glob("*.bin")}


def is_idle(out: Path) -> bool:
    """Whether no process works on a preparation."""
    preparation = Preparation(work_folder(out))
    preparation.refresh()
    return not preparation.busy()


def shards_in_progress(out: Path) -> list[Path]:
    """Shards of the parts that are being tokenised."""
    return list(work_folder(out).glob("*.partial/*.bin"))
