"""Preparing data in jobs of a real Slurm: killed, cancelled and submitted again, they write what one process does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from harness.data import corpus
from harness.data.prepare import plan, prepare, work_folder
from harness.data.tokenise import Preparation
from slurm.preparation import submit
from slurm.profile import load_profile
from tests.slurm.cluster.client import TINY, Client
from tests.slurm.cluster.minislurm import MiniSlurm

pytestmark = pytest.mark.slurm


def write_texts(path: Path, copies: int) -> Path:
    """Paragraphs of Austen's, some 0.8 MB a copy, no two of them the same."""
    texts = "\n\n".join(d.text for d in corpus.documents("train", ["austen"]) if len(d.text) < 30_000).split("\n\n")[
        :4000
    ]
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(copies) for text in texts))
    return path


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def done(out: Path) -> set[int]:
    """Inodes of the shards of parts that are done: a shard that is written again has another."""
    results = [path for path in work_folder(out).glob("*/part.json") if not path.parent.suffix]
    return {shard.stat().st_ino for result in results for shard in result.parent.glob("*.bin")}


def test_jobs_of_which_some_are_killed_and_some_cancelled_write_what_one_process_does(
    slurm_at_hand: MiniSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", 1_500_000)
    source, out = write_texts(tmp_path / "texts.jsonl", 48), tmp_path / "out"
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"prepare": TINY, "signal_delay_s": 20}))
    profile = load_profile(tmp_path / "profile.yaml")
    assert plan(source, out_dir=out) == (out, None)
    parts = len(Preparation(work_folder(out)).parts)
    assert parts >= 6
    lines = submit(out, profile, 3, tmp_path / "runs")
    assert f"0 of {parts} parts" in lines[0] and "3 jobs tokenise" in lines[1]
    array, last = json.loads((work_folder(out) / "jobs.json").read_bytes())
    seen: set[str] = set()

    def workers() -> list[str]:
        found = [p.with_suffix(".lock").read_text().split()[1] for p in work_folder(out).glob("*.partial")]
        seen.update(found)
        return [pid for pid in found if Path(f"/proc/{pid}/cwd").exists()]

    slurm_at_hand.wait(lambda: done(out) and workers(), "a job at its work", 120)
    before = done(out)
    os.kill(int(workers()[0]), signal.SIGKILL)
    slurm_at_hand.wait(lambda: workers() and len(done(out)) > len(before), "another part", 120)
    slurm_at_hand.run("scancel", "--signal=KILL", array)
    slurm_at_hand.run("scancel", array, last)
    slurm_at_hand.wait(lambda: not slurm_at_hand.squeue(), "the queue to empty")
    assert len(seen) > 1 and not out.exists()
    before = done(out)
    left = submit(out, profile, 2, tmp_path / "runs")
    assert ": 0 of " not in left[0] and "jobs tokenise" in left[1]
    slurm_at_hand.wait(workers, "a job at its work", 120)
    os.kill(int(workers()[0]), signal.SIGUSR2)  # as before its time limit
    assert "in the queue: " in submit(out, profile, 3, tmp_path / "runs")[1], "and nothing is submitted twice"
    slurm_at_hand.wait(lambda: not slurm_at_hand.squeue(), "the queue to empty", 240)
    assert before <= {path.stat().st_ino for path in out.glob("*.bin")}, "what was done has not been done again"
    prepare(source, out_dir=tmp_path / "alone", processes=1)
    assert content(out) == content(tmp_path / "alone") and not work_folder(out).exists()


def test_the_command_submits_says_how_far_it_is_and_accounts_for_every_document(
    slurm_cluster: MiniSlurm, tmp_path: Path
) -> None:
    client = Client(slurm_cluster, tmp_path)
    source = write_texts(tmp_path / "texts.jsonl", 1)
    command = ["data", "prepare", str(source), "--out", "out", "--runs", "runs", "--cluster", "profile.yaml"]
    assert "--jobs: 1000000 is no number of jobs for this cluster" in client.call(*command, "--jobs", "1000000", code=2)
    assert not client.cluster.squeue()
    output = client.call(*command, "--jobs", "4")
    assert "0 of 1 parts" in output and "1 jobs tokenise" in output, "no more jobs than parts"
    client.finish()
    documents = len(source.read_text().splitlines())
    assert f"documents: {documents:,} read = " in client.call(*command), "all is there"


def test_a_wrong_profile_is_refused_before_anything_is_read(slurm_cluster: MiniSlurm, tmp_path: Path) -> None:
    client = Client(slurm_cluster, tmp_path, partition="moon")
    (line,) = client.call("data", "prepare", "nowhere.jsonl", "--cluster", "profile.yaml", code=2).splitlines()
    assert "partition: unknown partition 'moon'" in line
