"""Provenance: the commit, versions, device and command behind a number."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import torch

from harness.records.provenance import SNAPSHOT, device_name, git_state, provenance, version


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_when_files_differ(tmp_path):
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == (head, False)
    (tmp_path / "b.py").write_text("b = 1\n")
    assert git_state(tmp_path) == (head, True)
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_state(inside) == (None, None)


def test_a_certificate_names_versions_device_and_command():
    certificate = provenance("abc", device="cpu", dtype=torch.bfloat16, backend="torch", command="run.py eval")
    assert certificate.version_torch == torch.__version__
    assert re.fullmatch(r"3\.\d+\.\d+", certificate.version_python)
    assert certificate.dtype == "bfloat16" and certificate.command == "run.py eval"
    assert certificate.threads == torch.get_num_threads()
    assert certificate.device
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", certificate.time)


def test_a_snapshot_reports_the_state_of_its_original(tmp_path):
    (tmp_path / SNAPSHOT).write_text(json.dumps({"git_commit": "abc", "git_dirty": True}))
    assert git_state(tmp_path) == ("abc", True)


def test_a_package_that_is_not_installed_has_no_version():
    assert version("torch") == torch.__version__ and version("no-such-package-of-this-test") is None


def test_the_cpu_has_a_name():
    assert device_name(torch.device("cpu")) and device_name(torch.device("meta")) == "meta"
