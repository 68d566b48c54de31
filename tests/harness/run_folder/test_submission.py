"""Submissions: plans and jobs come back, oldest first; damaged ones are named with the remedy."""

from pathlib import Path

import pytest

from harness.run_folder import (
    Submission,
    submissions,
    submissions_folder,
)
from tests.harness.run_folder.damage import damage

PLAN = {"experiment": "demo", "cluster": "local", "host": "node1", "pid": 7, "time": "2026-01-01T00:00:00", "runs": []}


def test_a_submission_keeps_its_plan_and_its_jobs(tmp_path: Path) -> None:
    submission = Submission(tmp_path)
    assert submission.read_jobs() == {}
    submission.write_plan(PLAN)
    submission.write_jobs({"train": "12"})
    assert submission.read_plan() == PLAN and submission.read_jobs() == {"train": "12"}


@pytest.mark.parametrize(
    "content", [b"", b'{"experiment": "de', b"\xff\xfe", b"[]", b"null", b'{"experiment": "demo"}']
)
def test_a_damaged_plan_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    submission = Submission(submissions_folder(tmp_path) / "demo-1")
    damage(submission.plan, content)
    message = rf"plan.json: damaged.*; delete {submission.path} and submit again"
    with pytest.raises(ValueError, match=message):
        submission.read_plan()
    with pytest.raises(ValueError, match=message):
        submissions(tmp_path, "demo")


@pytest.mark.parametrize("content", [b"", b'{"train": "1', b"\xff\xfe", b"[]", b"null"])
def test_damaged_jobs_are_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    submission = Submission(tmp_path)
    damage(submission.jobs, content)
    with pytest.raises(ValueError, match=rf"jobs.json: damaged.*; see `squeue` for its jobs, then delete {tmp_path}"):
        submission.read_jobs()


def test_submissions_of_an_experiment_come_oldest_first_and_no_others(tmp_path: Path) -> None:
    for folder, experiment, time in (
        ("demo-b", "demo", "2026-01-01"),
        ("demo-a", "demo", "2026-01-02"),
        ("demo-125m-a", "demo-125m", "2026-01-03"),
    ):
        Submission(submissions_folder(tmp_path) / folder).write_plan(PLAN | {"experiment": experiment, "time": time})
    assert [s.path.name for s in submissions(tmp_path, "demo")] == ["demo-b", "demo-a"]
    assert submissions(tmp_path, "table2") == []
