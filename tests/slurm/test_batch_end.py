"""The end of a batch script: it decides about a restart without importing torch."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.run_folder import RunFolder
from slurm import batch_end
from slurm.state import started
from suites.units import TRAIN

KILLED = 128 + signal.SIGKILL


def test_the_end_of_a_batch_script_asks_without_torch(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    listed = tmp_path / "train-0.json"
    listed.write_text(json.dumps([["elsewhere", TRAIN], [str(tmp_path), TRAIN]]))
    code = "import sys, slurm.batch_end; print(slurm.batch_end.main(*sys.argv[1:]), 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(listed), "1", str(KILLED), "0"], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["0", "False"]
    started(tmp_path, TRAIN, "log")
    assert batch_end.main(str(listed), "1", str(KILLED), "0") == 1


@pytest.mark.parametrize(
    ("accounting", "reason"),
    [
        ("7|RUNNING\n7.batch|RUNNING\n7.0|OUT_OF_MEMORY\n7.1|RUNNING", "raise train.mem_gb in the profile"),
        ("7|RUNNING\n7.batch|RUNNING\n7.0|FAILED", "killed by SIGKILL"),
        (None, "killed by SIGKILL"),
    ],
)
def test_accounting_tells_whether_memory_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accounting: str | None, reason: str
) -> None:
    sacct = tmp_path / "sacct"
    sacct.write_text("#!/bin/sh\nexit 1\n" if accounting is None else f"#!/bin/sh\nprintf '%s\\n' '{accounting}'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    started(tmp_path, TRAIN, "log")
    listed = tmp_path / "train-0.json"
    listed.write_text(json.dumps([[str(tmp_path), TRAIN]]))
    assert batch_end.main(str(listed), "0", str(KILLED), "0") == 0
    assert RunFolder(tmp_path).read_status(TRAIN).detail.endswith(reason)
