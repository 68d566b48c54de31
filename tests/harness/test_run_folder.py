"""The run folder: files come back as written, later fields are ignored, and a damaged file is named with the remedy."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from harness.experiments.run_config import read_config
from harness.files import write_json
from harness.run_folder import (
    Collection,
    RunFolder,
    Status,
    Submission,
    Summary,
    collection,
    started_runs,
    submissions,
    submissions_folder,
)

SUMMARY = Summary(
    run="gdn2-recurrent-s0-01234567",
    label="GDN-2",
    mixer="gdn2",
    layout="recurrent",
    preset="cpu-600k",
    seed=0,
    non_embedding_params=10,
    embedding_params=20,
    state_floats_per_layer=30,
    flops_per_token=40.0,
    mlp_widths=[32, 64],
    steps=5,
    tokens_seen=500,
    train_loss=2.5,
    tokens_per_second=1000.0,
    weights_sha256="ab" * 32,
)
PLAN = {"experiment": "demo", "cluster": "local", "host": "node1", "pid": 7, "time": "2026-01-01T00:00:00", "runs": []}


def damage(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_finished_training_comes_back_with_its_provenance(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_summary() is None and folder.weights_sha256() is None
    folder.write_summary(SUMMARY, {"git_commit": "c0ffee"})
    assert folder.read_summary() == SUMMARY
    assert folder.read_training_provenance() == {"git_commit": "c0ffee"}
    assert folder.weights_sha256() == SUMMARY.weights_sha256


def test_a_status_comes_back(tmp_path: Path) -> None:
    folder, status = RunFolder(tmp_path), Status("running", "step 3", step=3, steps=9, loss=2.5, job="12_0", pid=5)
    assert folder.read_status("train") is None
    folder.write_status("train", status)
    assert folder.read_status("train") == status and folder.read_status("ruler") is None


def test_fields_that_a_later_version_added_are_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.summary, asdict(SUMMARY) | {"provenance": {}, "invented_later": 1})
    write_json(folder.status("train"), asdict(Status("done")) | {"invented_later": [1]})
    assert folder.read_summary() == SUMMARY
    assert folder.read_status("train") == Status("done")


def test_fields_that_an_earlier_version_lacked_have_their_default(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    early = asdict(SUMMARY)
    for name in ("world_size", "sharding", "skipped", "spikes"):
        del early[name]
    write_json(folder.summary, early)
    write_json(folder.status("train"), {"state": "failed"})
    assert folder.read_summary() == SUMMARY
    assert folder.read_status("train") == Status("failed")
    with pytest.raises(ValueError, match=r"train.json: no provenance of a finished training; delete it and submit"):
        folder.read_training_provenance()


@pytest.mark.parametrize("content", [b"", b'{"run": "gdn2', b"\xff\xfe", b"[]", b"null", b'{"run": "gdn2"}'])
def test_a_damaged_train_json_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    damage(folder.summary, content)
    message = r"train.json: damaged.*; delete it and submit again, which resumes training from the last checkpoint"
    with pytest.raises(ValueError, match=message):
        folder.read_summary()
    with pytest.raises(ValueError, match=message):
        folder.weights_sha256()


@pytest.mark.parametrize("content", [b"", b'{"state": "run', b"\xff\xfe", b"[]", b"null", b'{"detail": "step 3"}'])
def test_a_damaged_status_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    damage(folder.status("train"), content)
    with pytest.raises(ValueError, match=r"state/train.json: damaged.*; delete it; `submit` continues the run"):
        folder.read_status("train")


@pytest.mark.parametrize("content", [b"", b"label: [", b"\xff\xfe\xfa", b"- gdn2\n", b"label: gdn2\n"])
def test_a_damaged_configuration_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    damage(RunFolder(tmp_path).config, content)
    with pytest.raises(ValueError, match=r"config.yaml: .*; delete it and submit the experiment again") as told:
        read_config(tmp_path)
    assert "\n" not in str(told.value)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: no run lies there \(config.yaml is missing\)"):
        read_config(tmp_path)


def test_attempts_are_appended_and_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_attempts("train") == [] and folder.attempted() == []
    events = [{"event": "started", "node": "größer"}, {"event": "failed", "reason": "a\nb"}]
    for event in events:
        folder.append_attempt("train", event)
    assert folder.read_attempts("train") == events
    whole = folder.attempts("train").read_bytes()
    cut = whole[: whole.index("ß".encode()) + 1]  # in the middle of a character
    folder.attempts("train").write_bytes(whole + cut)
    assert folder.read_attempts("train") == events
    folder.append_attempt("train", {"event": "lost"})
    assert folder.read_attempts("train") == [*events, {"event": "lost"}]
    folder.append_attempt("ruler", {"event": "started"})
    assert folder.attempted() == ["ruler", "train"]
    assert started_runs(tmp_path) == ["run"]


def test_the_key_of_an_evaluation_comes_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_done("ruler") is None
    folder.write_done("ruler", "0123abcd")
    assert folder.read_done("ruler") == "0123abcd" and folder.read_done("recall") is None
    damage(folder.done("ruler"), b"\xff\x00")
    assert folder.read_done("ruler") not in (None, "0123abcd")  # matches no evaluation, which is done again


def test_answers_of_one_evaluation_are_told_from_anothers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first, second = (folder.answers("ruler", key * 64) for key in "ab")
    for path in (second, first):
        damage(path, b"")
    assert first != second and folder.all_answers("ruler") == [first, second] and folder.all_answers("recall") == []


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


def test_a_collection_comes_back_and_says_what_is_missing(tmp_path: Path) -> None:
    collected = collection(tmp_path, "demo")
    for read, message in (
        (collected.require, "nothing collected there; run collect first"),
        (collected.read_runs, r"runs.json: nothing collected there; run collect first"),
        (collected.read_curves, r"curves.parquet: no training curves there; run collect again"),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    assert collected.read_samples() == []
    frame = pd.DataFrame({"run": ["a", "b"], "value": [1.0, 2.0]})
    collected.write(frame, [["key", [0.0, 1.0]]], frame, frame)
    collected.require()
    pd.testing.assert_frame_equal(collected.read_runs(), frame)
    pd.testing.assert_frame_equal(collected.read_curves(), frame)
    assert collected.read_samples() == [["key", [0.0, 1.0]]]


@pytest.mark.parametrize("content", [b"", b'[{"run": "a', b"\xff\xfe"])
def test_a_damaged_collection_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    collected = Collection(tmp_path)
    damage(collected.runs, content)
    damage(collected.samples, content)
    with pytest.raises(ValueError, match=r"runs.json: damaged.*; run collect again"):
        collected.read_runs()
    with pytest.raises(ValueError, match=r"samples.json: damaged.*; run collect again"):
        collected.read_samples()
