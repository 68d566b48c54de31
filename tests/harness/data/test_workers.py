"""Several worker processes: kills, interrupts, a full disk, and no process without need."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from pathlib import Path
from unittest import mock

import pytest

import harness.data.prepare
import harness.data.workers
from harness.data.prepare import prepare, work_folder
from tests.harness.data.preparations import SLOW, THIRDS, is_idle, shards_in_progress, start_preparation, wait_for


def test_a_killed_worker_ends_the_preparation_with_its_part_named_and_the_others_kept(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", SLOW)
    out = tmp_path / "out"

    def kill() -> None:
        wait_for(lambda: len({path.parent for path in shards_in_progress(out)}) == 2)
        lock = shards_in_progress(out)[0].parent.with_suffix(".lock")
        os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)

    lines: list[str] = []
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RuntimeError, match=r"part [12] of \d of slow: its process was ended by SIGKILL; run the same"):
        prepare(slow, out_dir=out, processes=2, progress=lines.append, **THIRDS)
    killer.join()
    assert not out.exists() and is_idle(out)
    assert any("the other processes finish their parts first" in line for line in lines)
    assert len(list(work_folder(out).glob("*/part.json"))) == 1  # that of the other
    assert any("of 2 parts" in line or "of 3 parts" in line for line in lines if "tokens/s" in line)
    data = prepare(slow, out_dir=out, processes=2, **THIRDS)
    assert data.index["documents"]["read"] == len(slow.read_text().splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes(slow: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start_preparation(slow, out, 2, SLOW)
    wait_for(lambda: shards_in_progress(out))
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0 and not out.exists()
    wait_for(lambda: is_idle(out), 10)


def test_a_full_disk_is_one_clear_line_from_every_process(slow: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", SLOW)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # more than the tokenizer, less than a shard
    try:
        with pytest.raises(ValueError, match=r"^out_dir: no room to write \S+ \(File too large\); free space"):
            prepare(slow, out_dir=tmp_path / "out", processes=2, **THIRDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "slow.jsonl"]


def test_a_complete_output_starts_no_process(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(source, out_dir=tmp_path / "out", processes=1)
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(harness.data.workers, "do_free_parts", mock.Mock(side_effect=AssertionError))
    assert prepare(source, out_dir=tmp_path / "out").index == first.index
