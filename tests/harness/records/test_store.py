"""Records: a round trip through the store, what it refuses, and where a number says it comes from."""

from __future__ import annotations

import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.records.provenance import git_state, provenance
from harness.records.published import printed_values, published
from harness.records.record import Measurement, Record
from harness.records.store import load, load_samples, write_records


def record(run: str = "r1", **changes) -> Record:
    base = {"suite": "language", "task": "piqa", "metric": "acc", "value": 0.5, "stderr": 0.25, "n": 2}
    measurement = Measurement(**{**base, **changes})
    certificate = provenance("abc123", device="cpu", dtype="float32", backend="torch")
    return Record.of(
        measurement, certificate, run=run, label="gdn2", mixer="gdn2", layout="recurrent", preset="cpu-1m", seed=0
    )


def test_a_record_survives_the_store_field_by_field(tmp_path):
    written = record(length=512, limit=2, stand_in="novels", settings={"b": 1, "a": ["x"]}, samples=(0.0, 1.0))
    write_records(tmp_path / "r1", "language", [written])
    frame = load(tmp_path)
    assert len(frame) == 1
    row = frame.iloc[0]
    for name in ("run", "label", "mixer", "layout", "preset", "seed", "suite", "task", "metric", "value", "stderr"):
        assert row[name] == getattr(written, name), name
    for name in ("n", "length", "limit", "stand_in", "config_hash", "git_commit", "version_torch", "device", "time"):
        assert row[name] == getattr(written, name), name
    assert row["settings"] == '{"a": ["x"], "b": 1}'
    assert row["file"] == str(tmp_path / "r1/records/language.jsonl")
    assert load_samples(tmp_path) == {("r1", "language", "piqa", "acc", 512): (0.0, 1.0)}


def test_what_is_not_known_stays_missing(tmp_path):
    write_records(tmp_path / "r1", "language", [record(stderr=None)])
    row = load(tmp_path).iloc[0]
    assert pd.isna(row["stderr"]) and pd.isna(row["length"]) and pd.isna(row["limit"]) and pd.isna(row["stand_in"])
    assert load_samples(tmp_path) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_stored_as_such_in_valid_json(tmp_path, value):
    path = write_records(tmp_path / "r1", "language", [record(value=value, n=1, samples=(value,))])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    assert load(tmp_path)["value"].iloc[0] == pytest.approx(value, nan_ok=True)
    (scores,) = load_samples(tmp_path).values()
    assert scores == pytest.approx((value,), nan_ok=True)


def test_runs_are_found_from_a_folder_a_run_or_a_file_and_chosen_by_id(tmp_path):
    for run in ("r1", "r2"):
        write_records(tmp_path / "demo" / run, "language", [record(run)])
    assert sorted(load(tmp_path)["run"]) == ["r1", "r2"]
    assert list(load(tmp_path / "demo/r2")["run"]) == ["r2"]
    assert list(load(tmp_path / "demo/r1/records/language.jsonl")["run"]) == ["r1"]
    assert list(load(tmp_path, run_ids=["r2"])["run"]) == ["r2"]
    assert load(tmp_path, run_ids=["r3"]).empty
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_writing_again_replaces_the_suite_and_its_samples(tmp_path):
    write_records(tmp_path / "r1", "language", [record(samples=(0.0, 1.0)), record(task="boolq")])
    write_records(tmp_path / "r1", "language", [record(value=1.0)])
    assert list(load(tmp_path)["value"]) == [1.0]
    assert load_samples(tmp_path) == {}


def test_a_write_that_fails_leaves_the_old_records_and_nothing_else(tmp_path):
    path = write_records(tmp_path / "r1", "language", [record(samples=(0.0, 1.0))])
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(TypeError):
        write_records(tmp_path / "r1", "language", [record(), record(task="boolq", settings={"x": object()})])
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_suite_refuses_two_values_of_one_metric_and_records_of_another_suite(tmp_path):
    with pytest.raises(ValueError, match="appears twice"):
        write_records(tmp_path, "language", [record(), record(value=0.1)])
    with pytest.raises(ValueError, match="'ruler' among those of 'language'"):
        write_records(tmp_path, "language", [record(suite="ruler")])
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda line: line[: len(line) // 2], "not JSON"),
        (lambda line: "[1]", "not an object"),
        (
            lambda line: line.replace('"schema": 1', '"schema": 99'),
            "schema 99 is newer than this version reads, 1; update the project",
        ),
        (lambda line: line.replace('"task"', '"tusk"'), r"missing \['task'\], unknown \['tusk'\]"),
        (lambda line: line.replace('"value": 0.5', '"value": "half"'), "value or stderr"),
        (lambda line: line.replace('"value": 0.5', '"value": null'), "value: None"),
        (lambda line: line.replace('"seed": 0', '"seed": true'), "seed: True"),
        (lambda line: line.replace('"metric": "acc"', '"metric": "luck"'), "'luck' is not declared"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, damage, complaint):
    path = write_records(tmp_path / "r1", "language", [record(), record(task="boolq")])
    first, second = path.read_text().splitlines()
    damaged = damage(second)
    assert damaged != second
    path.write_text(f"{first}\n{damaged}\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 2: .*{complaint}"):
        load(tmp_path)


def test_copies_of_a_record_count_once_and_contradictions_are_refused(tmp_path):
    path = write_records(tmp_path / "runs/r1", "language", [record(value=math.nan)])
    copy = tmp_path / "results/r1/records/language.jsonl"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(path.read_bytes())
    assert len(load([tmp_path / "runs", tmp_path / "results"])) == 1
    copy.write_text(copy.read_text().replace('"nan"', "0.5"))
    with pytest.raises(
        ValueError, match="r1, language, piqa, acc: .*runs/r1.* and .*results.* disagree on value; load"
    ):
        load([tmp_path / "runs", tmp_path / "results"])


def test_of_copies_that_agree_the_one_measured_last_is_kept(tmp_path):
    for place, hour in (("a", "02"), ("b", "03"), ("c", "01")):
        again = replace(record(), time=f"2026-01-01T{hour}:00:00+00:00", command=place)
        write_records(tmp_path / place / "r1", "language", [record(task="boolq"), again])
    frame = load([tmp_path / place for place in "abc"])
    assert list(zip(frame["task"], frame["command"], strict=True))[1] == ("piqa", "b")
    assert len(frame) == 2 and frame["length"].isna().all()


def test_a_collection_is_a_source_like_any_other(tmp_path):
    write_records(tmp_path / "runs/r1", "language", [record(length=512, samples=(0.0, 1.0))])
    frame = load(tmp_path / "runs")
    frame.drop(columns="file").to_parquet(tmp_path / "records.parquet")
    (tmp_path / "samples.json").write_text('[[["r1", "language", "piqa", "acc", 512], [0.0, 1.0]]]')
    kept = load(tmp_path)
    pd.testing.assert_frame_equal(kept.drop(columns="file"), frame.drop(columns="file"))
    assert load_samples(tmp_path) == load_samples(tmp_path / "runs")
    frame.assign(luck=1).to_parquet(tmp_path / "records.parquet")
    with pytest.raises(ValueError, match=r"records.parquet: columns missing \[\], unknown \['file', 'luck'\]; collect"):
        load(tmp_path)


def test_files_that_cannot_be_read_are_named_beside_those_that_can(tmp_path):
    good, bad = (write_records(tmp_path / run, "language", [record(run)]) for run in ("r1", "r2"))
    bad.write_text(bad.read_text().replace('"schema": 1', '"schema": 2'))
    unreadable: dict[Path, str] = {}
    assert set(load(tmp_path, unreadable=unreadable)["file"]) == {str(good)}
    assert list(unreadable) == [bad] and "schema 2 is newer" in unreadable[bad]


def test_a_measurement_refuses_what_no_table_could_read():
    good = record()
    for change, complaint in [
        ({"metric": "luck"}, "'luck' is not declared"),
        ({"samples": (1.0,)}, "has 1 scores but n = 2"),
        ({"suite": "../x"}, "names a file"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            replace(good, **change)


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_when_files_differ(tmp_path):
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == (head, False)
    (tmp_path / "b.py").write_text("b = 1\n")
    assert git_state(tmp_path) == (head, True)
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_state(inside) == (None, None)


def test_a_certificate_names_versions_device_and_command():
    import torch

    certificate = provenance("abc", device="cpu", dtype=torch.bfloat16, backend="torch", command="run.py eval")
    assert certificate.version_torch == torch.__version__
    assert re.fullmatch(r"3\.\d+\.\d+", certificate.version_python)
    assert certificate.dtype == "bfloat16" and certificate.command == "run.py eval"
    assert certificate.threads == torch.get_num_threads()
    assert certificate.device
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", certificate.time)


@pytest.mark.parametrize(
    ("table", "rows"), [("table2", 13 * 12), ("table3", 13 * 14), ("table4", 13 * 7), ("table5", 28), ("figure2", 28)]
)
def test_every_printed_number_is_a_row_with_its_source(table, rows):
    frame = published(table)
    assert len(frame) == rows
    assert frame["value"].notna().all() and frame["source"].str.startswith("arXiv 2605.22791v1").all()


def test_printed_numbers_are_found_by_what_they_measure():
    values = printed_values()
    assert values["gdn2", "recurrent", "language", "wikitext", "word_perplexity", None] == 15.90
    assert values["gdn2", "hybrid", "language", "hellaswag", "acc_norm", None] == pytest.approx(0.5846)
    assert values["kda", "recurrent", "ruler", "s_niah_3", "contains", 2048] == pytest.approx(0.632)
    assert values["attention", "attention", "retrieval", "fda", "contains", None] == pytest.approx(0.5478)
    speed = published("figure2").query("mixer == 'gdn2' and length == 16384")
    assert speed["value"].tolist() == [36100.0] and speed["batch"].tolist() == [1]
    with pytest.raises(ValueError, match="'table9' is not published"):
        published("table9")
