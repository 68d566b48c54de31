"""An installed wheel, away from any checkout: commands, `import mixerbench`, the documents' mixer and suite."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from harness.code import this_code
from harness.files import CHECKOUT
from tests.layout import FLOORS

pytestmark = pytest.mark.long

PARTS = ("pyproject.toml", "README.md", "LICENSE", "run.py", *FLOORS[:-1], "notebooks")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binaries of an environment that has the wheel, and from elsewhere nothing but its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = folder / "source"  # a build leaves files in its source
    for part in PARTS:
        if (CHECKOUT / part).is_dir():
            shutil.copytree(CHECKOUT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(CHECKOUT / part, source / part)
    build = ["wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    (wheel,) = folder.glob("mixerbench-*.whl")
    venv.create(folder / "environment", symlinks=True, with_pip=False)
    python = folder / "environment" / "bin" / "python"
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    # Named in a .pth file, a folder's own .pth files are not read: the checkout, installed there, is not found.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, cwd=folder)
    return python.parent


def run(installed: Path, folder: Path, *command: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    environment = clean | {"MIXERBENCH_CACHE": os.environ.get("MIXERBENCH_CACHE", str(CHECKOUT / ".cache"))}
    words = [str(installed / command[0]), *command[1:]]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_lists_and_plans_the_experiments_that_it_ships(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "mixerbench", "list")
    assert "gated_deltanet" in listed and "recall" in listed and "demo" in listed
    planned = run(installed, tmp_path, "mixerbench", "submit", "demo", "--dry-run")
    assert "gdn2-recurrent-s0-" in planned and "nothing submitted" in planned
    assert not (tmp_path / "runs").exists()


def test_the_names_that_a_notebook_needs_come_from_the_installation(installed: Path, tmp_path: Path) -> None:
    lines = [
        "import mixerbench as mb, harness, run",
        "assert all(hasattr(mb, name) for name in mb.__all__)",
        "assert not hasattr(mb, 'Trainer')",
        "from harness.code import this_code; code = this_code()",
        f"assert (code.sha256, code.version, code.git_commit) == ({this_code().sha256!r}, mb.__version__, None)",
        "print(mb.__version__, harness.__file__, mb.load_experiment('demo').name)",
    ]
    version, place, name = run(installed, tmp_path, "python", "-W", "ignore", "-c", "; ".join(lines)).split()
    assert version in (CHECKOUT / "pyproject.toml").read_text() and name == "demo"
    assert Path(place).is_relative_to(installed.parent)


def test_the_mixer_and_the_suite_of_the_documents_pass_and_stand_in_a_table(
    installed: Path, tmp_path: Path, small_data: Path
) -> None:
    for document, name in (("README.md", "average.py"), ("docs/suites.md", "copy.py")):
        (code, *_) = re.findall(r"```python\n(.*?)```", (CHECKOUT / document).read_text("utf-8"), re.DOTALL)
        (tmp_path / name).write_text(code)
    options = ["--mixer-file", "average.py", "--set", "channels=64", "--long-tokens", "2048"]
    assert " 0 failed" in run(installed, tmp_path, "mixerbench", "check", "average", *options)
    content = {
        "name": "mine",
        "preset": "cpu-600k",
        "mixers": [{"mixer": "average", "options": {"channels": 64}}],
        "mixer_files": ["average.py"],
        "suite_files": ["copy.py"],
        "data": {"source": str(small_data), "phases": [{"tokens": 256, "seq_len": 64, "rows": {"mqar": 2}}]},
        "train": {"threads": 1},
        "suites": {"copy": {"lengths": [4], "samples": 4}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    run(installed, tmp_path, "mixerbench", "submit", "mine.yaml")
    run(installed, tmp_path, "mixerbench", "collect", "mine.yaml")
    table = run(installed, tmp_path, "mixerbench", "table", "mine.yaml")
    assert "| Moving average |" in table and "copied words" in table
