"""The folder of a run: typed reads, and errors that name the damaged file and the remedy."""

from dataclasses import asdict
from pathlib import Path

import pytest

from harness.experiments.run_config import read_config
from harness.files import write_json
from harness.run_folder import (
    RunFolder,
    Status,
    Summary,
    find_run,
    started_runs,
)
from tests.harness.run_folder.damage import damage

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


def test_a_run_is_found_by_its_folder_its_id_or_the_beginning_of_one(tmp_path: Path) -> None:
    for name in ("gdn2-recurrent-s0-1a", "gdn2-recurrent-s1-2b", "kda-recurrent-s0-3c"):
        damage(RunFolder(tmp_path / name).config, b"label: x\n")
    folder = tmp_path / "kda-recurrent-s0-3c"
    for given in (folder, str(folder)):
        assert find_run(given, "elsewhere").path == folder
    for given in ("kda-recurrent-s0-3c", "kda"):
        assert find_run(given, str(tmp_path)).path == folder
    with pytest.raises(ValueError, match="several begin so: gdn2-recurrent-s0-1a, gdn2-recurrent-s1-2b"):
        find_run("gdn2", tmp_path)
    for lost in ("mamba2", "../kda", ""):
        with pytest.raises(ValueError, match=r"no run lies there .* there are gdn2-recurrent-s0-1a, "):
            find_run(lost, tmp_path)


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
    damage(folder.records("ruler"), b"{}\n")
    folder.write_done("ruler", "0123abcd")
    assert folder.read_done("ruler") == "0123abcd" and folder.read_done("recall") is None
    damage(folder.done("ruler"), b"\xff\x00")
    assert folder.read_done("ruler") not in (None, "0123abcd")  # matches no evaluation, which is done again


def test_what_is_forgotten_is_gone_but_for_its_history(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for unit in ("ruler", "recall"):
        for path in (folder.records(unit), folder.samples(unit), folder.answers(unit, "a" * 64)):
            damage(path, b"{}\n")
        folder.write_done(unit, "0123abcd")
        folder.append_history(unit, {"reached": 0})
    folder.forget("ruler")
    assert folder.read_done("ruler") is None and folder.all_answers("ruler") == []
    assert not folder.records("ruler").exists() and not folder.samples("ruler").exists()
    assert folder.read_history("ruler") == folder.read_history("recall") == [{"reached": 0}]
    assert folder.read_done("recall") == "0123abcd" and len(folder.all_answers("recall")) == 1


def test_answers_of_one_evaluation_are_told_from_anothers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first, second = (folder.answers("ruler", key * 64) for key in "ab")
    for path in (second, first):
        damage(path, b"")
    assert first != second and folder.all_answers("ruler") == [first, second] and folder.all_answers("recall") == []
