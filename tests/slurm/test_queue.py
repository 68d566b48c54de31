"""Calls to Slurm's commands, and who holds a unit according to its queue."""

import time
from pathlib import Path

import pytest

from slurm.queue import SILENCE, Queue, ask, job_ids, waits
from slurm.state import Status, exclusively
from suites.units import TRAIN
from tests.slurm.conftest import FakeSlurm


def test_a_command_without_an_answer_is_an_error_in_one_line_or_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails = ("sh", "-c", "echo first >&2; echo 'Unable to contact slurm controller' >&2; exit 1")
    assert ask("cat", error=ValueError, script="input") == "input"
    assert ask(*fails, error=None) is None and ask("no-such-command", error=None) is None
    with pytest.raises(RuntimeError, match="exit 1: Unable to contact slurm controller; try again when the cluster"):
        ask(*fails, error=RuntimeError)
    with pytest.raises(ValueError, match="PATH: no-such-command not found; submit from a login node"):
        ask("no-such-command", error=ValueError)
    monkeypatch.setattr("slurm.queue.PATIENCE", 0.1)
    with pytest.raises(ValueError, match=r"sleep 5: no answer within 0.1 s; try again when the cluster is up"):
        ask("sleep", "5", error=ValueError)


def test_who_holds_a_unit(tmp_path: Path) -> None:
    queued = Status("queued", job="12_3", updated=0)
    assert Queue({"12_3": ("PENDING", "", "")}).holds(tmp_path, TRAIN, queued) == "job 12_3"
    assert Queue({}).holds(tmp_path, TRAIN, queued) is None
    assert Queue(None).holds(tmp_path, TRAIN, queued) == "job 12_3"  # Slurm does not answer: it may be waiting
    for silent, holder in ((1, "process 7 on elsewhere"), (SILENCE + 1, None)):
        running = Status("running", node="elsewhere", pid=7, job="12_3", updated=time.time() - silent)
        assert Queue(None).holds(tmp_path, TRAIN, running) == holder
    here = Status("running", updated=time.time(), pid=7)
    with exclusively(tmp_path, TRAIN):
        assert Queue(None).holds(tmp_path, TRAIN, here) is not None


def test_only_our_jobs_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho '7_0|PENDING||Priority|tiny:train-0@mixerbench'\necho '8|RUNNING|n1|None|a|b'\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert Queue.read() == Queue({"7_0": ("PENDING", "", "Priority")})


def test_ids_of_jobs_that_slurm_does_not_know_are_refused(fake_slurm: FakeSlurm) -> None:
    unknown = 'case "$*" in *=9) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;; esac'
    fake_slurm.answer("squeue", unknown)
    assert job_ids("7") == ["7"] and job_ids("7_3,8") == ["7_3", "8"]
    for text in ("9", "7,9"):
        with pytest.raises(ValueError, match="--after: Slurm knows no job 9 any more; leave it out if it has ended"):
            job_ids(text)
    for text in ("", "7,", "afterok:7", "7_[0-3]"):
        with pytest.raises(ValueError, match="is no id of a job; give ids as squeue shows them, separated by commas"):
            job_ids(text)
    fake_slurm.answer("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(RuntimeError, match="try again when the cluster is up"):
        job_ids("7")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("None", ""),
        ("", ""),
        ("Priority", "waits for jobs with a higher priority (Priority)"),
        ("QOSMaxGRESPerUser", "waits for a limit of the QOS (QOSMaxGRESPerUser)"),
        ("AssocGrpGRES", "waits for a limit of the account (AssocGrpGRES)"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "waits for nodes that are down, drained or reserved (ReqNodeNotA"),
        ("Prolog", "waits: Prolog"),
    ],
)
def test_why_a_job_waits_is_told_in_words(reason: str, words: str) -> None:
    assert waits(reason).startswith(words) and (words or not waits(reason))
