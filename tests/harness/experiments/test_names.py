"""Names of experiments: read from a file or given, with a scale, and without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.experiments.names import experiment_name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("name: other\nmixers: 3\n")
    return path


@pytest.mark.parametrize(("scale", "expected"), [(None, ("other", "recall")), ("125m", ("other-125m", "recall-125m"))])
def test_a_name_comes_from_the_file_or_is_given(file: Path, scale: str | None, expected: tuple[str, str]) -> None:
    assert (experiment_name(str(file), scale), experiment_name("recall", scale)) == expected


def test_a_file_that_is_missing_or_has_no_name_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="experiment: no file .*nowhere.yaml; give a path, or one of: .*recall"):
        experiment_name(str(tmp_path / "nowhere.yaml"))
    file.write_text("mixers: [gdn2]\n")
    with pytest.raises(ValueError, match="name: .*tiny.yaml has none; give it one"):
        experiment_name(str(file))


def test_a_name_is_read_without_torch(file: Path) -> None:
    code = "import sys, harness.experiments.names as n; print(n.experiment_name(sys.argv[1]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["other", "False"]
