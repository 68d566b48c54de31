"""The README followed by a stranger: the example mixer passes the kit and appears in a table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.files import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "run.py"), *command], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_mixer_in_the_readme_passes_the_kit_and_appears_in_a_table(tmp_path: Path, small_data: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") < 60
    (tmp_path / "average.py").write_text(code)
    (line,) = re.findall(r"^python run.py (check average \S+ \S+ \S+ \S+) ", README, re.MULTILINE)
    assert " 0 failed" in run(tmp_path, *line.split(), "--long-tokens", "8192")
    phase = {"tokens": 4 * 128, "seq_len": 64, "rows": {"mqar": 2}}
    content = {
        "name": "mine",
        "preset": "cpu-600k",
        "mixers": [{"mixer": "average", "options": {"channels": 64}}, "gated_deltanet"],
        "mixer_files": ["average.py"],
        "data": {"source": str(small_data), "phases": [phase]},
        "train": {"threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 8}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    run(tmp_path, "submit", "mine.yaml", "--runs", "runs")
    run(tmp_path, "collect", "mine.yaml", "--runs", "runs", "--out", "results")
    table = run(tmp_path, "table", "mine.yaml", "--out", "results")
    assert "| Moving average |" in table and "| Gated DeltaNet |" in table
