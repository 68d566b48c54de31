"""The end of a batch script: it decides about a restart without importing torch."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.run_folder import RunFolder
from slurm import batch_end
from slurm.state import LEFT, ended, started, write_status
from suites.units import TRAIN

KILLED = 128 + signal.SIGKILL


def test_the_end_of_a_batch_script_asks_without_torch(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    listed = tmp_path / "train-0.json"
    listed.write_text(json.dumps({0: ["elsewhere", [TRAIN]], 1: [str(tmp_path), [TRAIN]]}))
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
    listed.write_text(json.dumps({0: [str(tmp_path), [TRAIN]]}))
    assert batch_end.main(str(listed), "0", str(KILLED), "0") == 0
    assert RunFolder(tmp_path).read_status(TRAIN).detail.endswith(reason)


def packed(folder: Path) -> tuple[Path, RunFolder]:
    """The list of a job of four evaluations, which are queued, and the run's folder."""
    listed, units = folder / "evaluations-0.json", ["a", "b", "c", "d"]
    listed.write_text(json.dumps({0: [str(folder), units]}))
    for unit in units:
        write_status(folder, unit, "queued")
    return listed, RunFolder(folder)


def states(run: RunFolder) -> str:
    """The first letter of the state of each evaluation."""
    return "".join(run.read_status(unit).state[0] for unit in "abcd")


def test_of_several_evaluations_the_one_at_work_answers_for_the_end(tmp_path: Path) -> None:
    listed, run = packed(tmp_path)
    started(tmp_path, "a", "log")
    write_status(tmp_path, "a", "done")
    for count, after in ((1, "drqq"), (2, "dfqq")):
        started(tmp_path, "b", "log")
        assert batch_end.main(str(listed), "0", str(KILLED), "0") == 0, "the others are not done"
        assert states(run) == after and len(run.read_attempts("b")) == 3 * count
    for unit in "cd":
        started(tmp_path, unit, "log")
        write_status(tmp_path, unit, "done")
    assert batch_end.main(str(listed), "0", "1", "0") == 1  # what was given up has failed the job


def test_evaluations_that_failed_one_after_another_all_answer(tmp_path: Path) -> None:
    listed, run = packed(tmp_path)
    for unit in "abcd":
        started(tmp_path, unit, "log")
        ended(tmp_path, unit, "failed", "CUDA error") if unit in "bd" else write_status(tmp_path, unit, "done")
    assert batch_end.main(str(listed), "0", "1", "0") == 0 and states(run) == "drdr"


@pytest.mark.parametrize(
    ("code", "terminated", "again", "after"), [(1, "0", 0, "rrrr"), (LEFT, "0", 0, "rrrr"), (LEFT, "1", 1, "ssss")]
)
def test_a_job_that_ends_before_it_begins_counts_for_all_of_its_evaluations(
    tmp_path: Path, code: int, terminated: str, again: int, after: str
) -> None:
    listed, run = packed(tmp_path)
    assert batch_end.main(str(listed), "0", str(code), terminated) == again and states(run) == after
    if code == 1:
        assert batch_end.main(str(listed), "0", str(code), terminated) == 1 and states(run) == "ffff"
