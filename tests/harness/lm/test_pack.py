"""Packed runs: hostile, damaged and foreign files are refused before anything is written. tests/test_travel.py packs a
run and evaluates it elsewhere."""

import io
import tarfile
from pathlib import Path

import pytest

from harness.lm.pack import pack, unpack


def tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for member in members:
            file.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("/etc/passwd"),
        member("run/../../outside"),
        member("../outside"),
        member("run/./x"),
        member("run\\..\\outside/x"),
        member("run/link", tarfile.SYMTYPE, "/etc"),
        member("run/hard", tarfile.LNKTYPE, "run/config.yaml"),
        member("run/pipe", tarfile.FIFOTYPE),
        member("alone"),
        member("other/config.yaml"),
        member("run/config.yaml"),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_a_file_that_holds_anything_but_plain_files_of_one_run_is_refused(
    tmp_path: Path, hostile: tarfile.TarInfo
) -> None:
    packed = tar(tmp_path / "run.tar", member("run/config.yaml"), hostile)
    with pytest.raises(ValueError, match=r"run.tar: holds "):
        unpack(packed, tmp_path / "runs" / "deep")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["run.tar"]


def test_what_is_no_packed_run_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("not a tar")
    with pytest.raises(ValueError, match=r"text.tar: damaged, or no packed run .*; copy it again"):
        unpack(tmp_path / "text.tar", tmp_path / "runs")
    with pytest.raises(ValueError, match=r"absent.tar: no such file; give a file made by `runs pack`"):
        unpack(tmp_path / "absent.tar", tmp_path / "runs")
    with pytest.raises(ValueError, match=r"config.yaml: expected a mapping of fields, got str"):
        unpack(tar(tmp_path / "x.tar", member("run/config.yaml")), tmp_path / "runs")
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tmp_path / "x.tar").read_bytes()[:512])
    with pytest.raises(ValueError, match=r"cut.tar: damaged"):
        unpack(cut, tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*"))


def test_only_a_trained_run_is_packed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.yaml is missing"):
        pack(tmp_path, tmp_path / "out.tar")
    assert not list(tmp_path.iterdir())
