"""Provenance: the commit, versions, device and command behind a number."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from harness.code import this_code, version
from harness.records.provenance import device_name, files_now, provenance
from mixers.plugins import imported_files
from mixers.registry import MixerFile


def test_a_certificate_names_versions_device_and_command():
    certificate = provenance("abc", device="cpu", dtype=torch.bfloat16, backend="torch", command="run.py eval")
    assert certificate.version_torch == torch.__version__
    assert re.fullmatch(r"3\.\d+\.\d+", certificate.version_python)
    assert certificate.dtype == "bfloat16" and certificate.command == "run.py eval"
    assert certificate.threads == torch.get_num_threads()
    assert certificate.device
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", certificate.time)


def test_a_certificate_names_the_content_of_the_code_with_or_without_git():
    certificate = provenance("abc", device="cpu", dtype="float32", backend="torch")
    assert (certificate.code_sha256, certificate.code_version) == (this_code().sha256, this_code().version)
    assert certificate.files_sha256 is None


def test_a_certificate_changes_with_a_module_that_the_file_of_a_mixer_imports(tmp_path: Path):
    def birth(folder: Path, helper: str) -> str | None:
        folder.mkdir()
        (folder / "helper.py").write_text(helper)
        (folder / "mine.py").write_text("import math\nimport numpy\nimport mixers.interface\nfrom helper import x\n")
        path = folder / "mine.py"
        file = MixerFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        made = provenance("abc", device="cpu", dtype="float32", backend="torch", files=[file, None])
        # Neither the library, nor packages, nor this project.
        assert [Path(name).name for name, _ in imported_files(path).values()] == ["mine.py", "helper.py"]
        assert made.files_sha256 == files_now([None, file])
        return made.files_sha256

    first = birth(tmp_path / "first", "x = 1\n")
    assert birth(tmp_path / "elsewhere", "x = 1\n") == first
    assert birth(tmp_path / "edited", "x = 2\n") != first


def test_a_package_that_is_not_installed_has_no_version():
    assert version("torch") == torch.__version__ and version("no-such-package-of-this-test") is None


def test_the_cpu_has_a_name():
    assert device_name(torch.device("cpu")) and device_name(torch.device("meta")) == "meta"
