"""`status`: the state of runs from their markers and Slurm's queue, logs and cancelling."""

import json
from pathlib import Path

from slurm.queue import Queue
from slurm.state import ended, started, write_status
from slurm.status import Row, Submitted, overview, troubles
from suites.units import TRAIN


def test_status_of_what_slurm_starts_again_and_why(tmp_path: Path) -> None:
    run = Submitted("tiny", "run", tmp_path, 9, {})

    def row(said: tuple[str, str, str] | None) -> Row:
        (found,) = overview([run], Queue({} if said is None else {"7": said}))
        return found

    started(tmp_path, TRAIN, "log")
    write_status(tmp_path, TRAIN, "running", "", job="7", node="n1")
    waiting = row(("PENDING", "", "BeginTime"))
    assert (waiting.state, waiting.reason) == ("requeued", "BeginTime; ended without a word on n1")
    # A job that Slurm ends itself is told as a cancelled one is: what follows is for Slurm to say.
    ended(tmp_path, TRAIN, "terminated", "told to end by SIGTERM")
    write_status(tmp_path, TRAIN, "stopped", "told to end by SIGTERM", job="7", node="n1")
    for said in (("PENDING", "", "None"), ("RUNNING", "n2", "None")):
        assert (row(said).state, row(said).reason) == ("requeued", "told to end by SIGTERM")
    for said in (("COMPLETING", "n1", "None"), None):
        assert row(said).state == "stopped"
    started(tmp_path, TRAIN, "log")
    write_status(tmp_path, TRAIN, "running", "", job="7", node="n2")
    again = row(("RUNNING", "n2", "None"))
    assert (again.state, again.attempts, again.node) == ("training", 2, "n2")
    assert again.reason == "started again: told to end by SIGTERM"


def test_status_says_why_a_submission_could_not_prepare(tmp_path: Path) -> None:
    for number, name in enumerate(("tiny-1", "tiny-2")):
        folder = tmp_path / "submissions" / name
        folder.mkdir(parents=True)
        head = {"experiment": "tiny", "cluster": "slurm", "host": "login", "pid": 1, "time": number, "runs": []}
        (folder / "plan.json").write_text(json.dumps(head))
    write_status(tmp_path / "submissions" / "tiny-1", "prepare", "failed", "long ago")
    assert troubles(tmp_path, "tiny") == []
    write_status(tmp_path / "submissions" / "tiny-2", "prepare", "failed", "swde: cannot be had here")
    assert troubles(tmp_path, "tiny") == ["prepare of tiny-2 failed: swde: cannot be had here"]
