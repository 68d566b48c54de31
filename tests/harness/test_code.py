"""The identity of the code: by the content of what is imported, whatever else lies in the checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from harness.code import (
    SNAPSHOT,
    changed_since,
    code_of,
    code_text,
    contributing,
    git_state,
    plugin_versions,
    this_code,
)


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path) -> Path:
    for name in ("run.py", "harness/a.py", "mixers/parts/b.py", "slurm/profiles/site.yaml", "results/table.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_only_python_files_of_the_package_make_a_checkout_dirty(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    head, clean = git(root, "rev-parse", "HEAD"), code_of(root)
    assert (clean.git_commit, clean.git_dirty) == (head, False)
    for name in ("slurm/profiles/mine.yaml", "results/figure.png", "notes.py", "slurm/profiles/site.yaml"):
        (root / name).write_text("y\n")
    assert code_of(root) == clean
    (root / "mixers" / "parts" / "new.py").write_text("z = 1\n")
    assert code_of(root).git_dirty


def test_two_dirty_trees_have_different_hashes_and_the_same_content_has_one(tmp_path: Path) -> None:
    root = checkout(tmp_path / "a")
    hashes = []
    for content in ("x = 2\n", "x = 3\n", "x = 2\n"):
        (root / "harness" / "a.py").write_text(content)
        assert code_of(root).git_dirty
        hashes.append(code_of(root).sha256)
    assert hashes[0] == hashes[2] != hashes[1]
    installed = tmp_path / "site-packages"  # an installed package has neither git nor the rest of the checkout
    shutil.copytree(root, installed, ignore=shutil.ignore_patterns(".git", "results"))
    assert code_of(installed).sha256 == hashes[0] and code_of(installed).git_commit is None


def test_a_folder_inside_a_checkout_has_no_commit_and_a_snapshot_reports_that_of_its_original(tmp_path: Path) -> None:
    inside = checkout(tmp_path) / "site-packages"
    inside.mkdir()
    assert git_state(inside) == (None, None)
    (inside / SNAPSHOT).write_text(json.dumps({"git_commit": "abc", "git_dirty": True}))
    assert git_state(inside) == ("abc", True)


def test_what_changed_since_a_start_is_named() -> None:
    code = this_code()
    entry = {"code_sha256": code.sha256, "parts": code.parts, "files_sha256": "1", "plugins": plugin_versions()}
    assert changed_since(entry, "1") == changed_since(entry, None) == []
    assert changed_since(entry | {"code_sha256": "0", "parts": code.parts | {"mixers": "0"}}, None) == ["mixers"]
    assert changed_since(entry, "2") == ["the files of its mixer or suite"]
    now = f"plugins (mine 1.0, now {plugin_versions() or 'none'})"
    assert changed_since(entry | {"plugins": "mine 1.0"}, None) == [now]
    # Contents were not recorded from the beginning.
    assert changed_since({"git_commit": "0" * 40, "git_dirty": False}, None) == ["commit"]


def test_a_history_counts_with_the_starts_that_the_result_rests_on() -> None:
    def kept(*reached: int) -> list[int]:
        entries = [{"reached": step, "number": number} for number, step in enumerate(reached)]
        return [entry["number"] for entry in contributing(entries)]

    assert kept(0, 400, 900) == [0, 1, 2]
    assert kept(0, 0, 400) == [1, 2]  # the first died before it saved anything
    assert kept(0, 400, 200) == [0, 2]  # a damaged checkpoint was passed over
    assert kept(0, 400, 0) == [2]
    assert kept() == []


def test_code_is_told_by_commit_or_version_and_by_content() -> None:
    birth = {"git_commit": "0123456789abcdef", "git_dirty": True}
    assert code_text(birth) == "0123456789 with uncommitted changes"
    assert code_text(birth | {"code_sha256": "f" * 64}) == "0123456789 with uncommitted changes, content ffffffffff"
    installed = {"git_commit": None, "git_dirty": None, "code_version": "0.3", "code_sha256": "f" * 64}
    assert code_text(installed) == "version 0.3, content ffffffffff"
    assert code_text({"git_commit": None, "git_dirty": None}) == "commit not known"
