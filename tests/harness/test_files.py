"""Files are written whole or not at all; damaged JSON is named; where the checkout and the cache lie."""

import ast
import hashlib
import os
import resource
import socket
import subprocess
from pathlib import Path

import pytest

from harness.files import (
    CHECKOUT,
    atomic,
    atomic_folder,
    cache_dir,
    file_sha256,
    partial_path,
    read_json,
    write_atomic,
    write_json,
)
from tests.layout import FLOORS


def test_a_reader_sees_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    write_atomic(path, b"old")
    with atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(error), atomic(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_is_named_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow past this, as a full disk would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{path}: cannot be written \(.*\); free space or fix the permissions"):
            write_atomic(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder: cannot be written \(Is a directory\); free space or fix"):
        write_atomic(tmp_path / "folder", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_processes_that_write_the_same_file_use_temporary_files_of_their_own(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as file:
        assert Path(file.name).name == f".file.{socket.gethostname()}.{os.getpid()}.partial"


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"name": "größer", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json", "delete it") == content
    assert "größer" in (tmp_path / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\xfa"])
def test_damaged_json_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: damaged, not JSON \(.*\); delete it") as told:
        read_json(path, "delete it")
    assert "\n" not in str(told.value)


def test_missing_json_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "file.json", "delete it")


def test_the_checkout_holds_the_packages_and_the_cache_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (CHECKOUT / "harness" / "files.py").is_file() and (CHECKOUT / "mixers").is_dir()
    monkeypatch.delenv("MIXERBENCH_CACHE", raising=False)
    assert cache_dir() == CHECKOUT / ".cache"
    monkeypatch.setenv("MIXERBENCH_CACHE", "")
    assert cache_dir() == CHECKOUT / ".cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIXERBENCH_CACHE", "~/elsewhere")
    assert cache_dir() == tmp_path / "elsewhere"


def test_an_installed_wheel_caches_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXERBENCH_CACHE", raising=False)
    monkeypatch.setattr("harness.files.CHECKOUT", tmp_path)  # no pyproject.toml there
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / ".cache"


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "deep" / "a").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_that_somebody_has_made_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("ours")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("theirs")
    assert (tmp_path / "out" / "a").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_files_of_text_are_opened_in_utf8_by_name() -> None:
    """The encoding of a locale may be another."""
    unnamed = [
        f"{path.relative_to(CHECKOUT)}:{call.lineno}"
        for path in [CHECKOUT / "run.py", *(p for floor in FLOORS[1:] for p in (CHECKOUT / floor).rglob("*.py"))]
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and opens_text(call)
        if not any(keyword.arg == "encoding" for keyword in call.keywords)
    ]
    assert not unnamed


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens a file as text: open(...), path.open(...), path.read_text() or path.write_text(...)."""
    mode = next((a.value for a in call.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)), "r")
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and "b" not in mode
    if not isinstance(call.func, ast.Attribute):
        return False
    module = isinstance(call.func.value, ast.Name) and call.func.value.id in ("os", "tarfile", "gzip", "zipfile")
    return call.func.attr in ("read_text", "write_text") or (
        call.func.attr == "open" and not module and "b" not in mode
    )


def test_what_killed_processes_of_this_host_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    mine, theirs = f".a.{host}.{os.getpid()}.partial", f".a.elsewhere.{ended.pid}.partial"
    for name in (f".a.b.{host}.{ended.pid}.partial", mine, theirs, f"a.{host}.{ended.pid}.partial"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".folder.{host}.{ended.pid}.partial" / "inside").mkdir(parents=True)
    write_atomic(tmp_path / "file", b"whole")
    left = {mine, theirs, f"a.{host}.{ended.pid}.partial", "file"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert partial_path(tmp_path / "a").name == mine
