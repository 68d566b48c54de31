"""The store: records survive a round trip, are whole or absent, and contradictions are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.records.answers import grouped, kept
from harness.records.store import load, load_answers, load_samples, sample_frame, write_records
from tests.harness.records.store_records import record


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
    assert row["settings"] == '{"a": ["x"], "b": 1, "protocol_version": 1}'
    assert row["file"] == str(tmp_path / "r1/records/language.jsonl")
    assert load_samples(tmp_path) == {("r1", "language", "piqa", "acc", 512): (0.0, 1.0)}


def test_samples_are_a_frame_with_a_row_a_score(tmp_path):
    for run, scores in (("r1", (0.0, 1.0)), ("r2", (1.0, 1.0, 0.25))):
        mean, n = sum(scores) / len(scores), len(scores)
        write_records(tmp_path / run, "language", [record(run, value=mean, n=n, length=512, samples=scores)])
        write_records(tmp_path / run, "recall", [record(run, suite="recall")])
    found = sample_frame(tmp_path)
    assert found[["run", "item", "score"]].to_numpy().tolist() == [
        ["r1", 0, 0.0],
        ["r1", 1, 1.0],
        ["r2", 0, 1.0],
        ["r2", 1, 1.0],
        ["r2", 2, 0.25],
    ]
    assert set(found["label"]) == {"gdn2"} and set(found["suite"]) == {"language"} and set(found["length"]) == {512}
    assert sample_frame(tmp_path / "r1" / "records" / "recall.jsonl").empty


def test_what_is_not_known_stays_missing(tmp_path):
    write_records(tmp_path / "r1", "language", [record(stderr=None)])
    row = load(tmp_path).iloc[0]
    assert pd.isna(row["stderr"]) and pd.isna(row["length"]) and pd.isna(row["limit"]) and pd.isna(row["stand_in"])
    assert load_samples(tmp_path) == {}


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


def test_copies_of_a_record_count_once_and_contradictions_are_refused(tmp_path):
    path = write_records(tmp_path / "runs/r1", "language", [record(value=0.75)])
    copy = tmp_path / "results/r1/records/language.jsonl"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(path.read_bytes())
    assert len(load([tmp_path / "runs", tmp_path / "results"])) == 1
    copy.write_text(copy.read_text().replace('"value": 0.75', '"value": 0.5'))
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


def test_answers_lie_beside_scores_and_come_back_from_runs_and_collections(tmp_path):
    # U+2028 and U+0085 are ends of lines to Python.
    two = kept(["a\u2028b", "x" * 900], ["1", "2\x85"], ["1", None])
    records = [record("r1", samples=(1.0, 0.0), answers=two), record("r2", samples=(0.0, 1.0), answers=two[:1])]
    for each in records:
        write_records(tmp_path / "runs" / each.run, "language", [each, record(each.run, task="boolq")])
    found = load_answers(tmp_path / "runs")
    assert found == {each.key: each.answers for each in records}
    assert len(load_samples(tmp_path / "runs")) == 2
    load(tmp_path / "runs").drop(columns="file").to_parquet(tmp_path / "records.parquet")
    assert load_answers(tmp_path) == {}  # of a collection that an earlier version made
    (tmp_path / "answers.json").write_text(json.dumps(grouped(found)))
    assert load_answers(tmp_path) == found
    (tmp_path / "answers.json").write_text('[{"suite": "language"}]')
    with pytest.raises(ValueError, match="answers.json: no answers .*; evaluate and collect again"):
        load_answers(tmp_path)


def test_a_collection_with_a_number_that_cannot_be_is_refused(tmp_path):
    write_records(tmp_path / "runs/r1", "language", [record()])
    frame = load(tmp_path / "runs").drop(columns="file")
    for change, complaint in [({"value": math.nan}, "acc is nan"), ({"value": 2.0}, "acc is 2.0"), ({"n": 0}, "0 sam")]:
        frame.assign(**change).to_parquet(tmp_path / "records.parquet")
        with pytest.raises(ValueError, match=f"records.parquet, row 1: .*{complaint}"):
            load(tmp_path)


def test_files_that_cannot_be_read_are_named_beside_those_that_can(tmp_path):
    good, bad = (write_records(tmp_path / run, "language", [record(run)]) for run in ("r1", "r2"))
    bad.write_text(bad.read_text().replace('"schema": 1', '"schema": 2'))
    unreadable: dict[Path, str] = {}
    assert set(load(tmp_path, unreadable=unreadable)["file"]) == {str(good)}
    assert list(unreadable) == [bad] and "schema 2 is newer" in unreadable[bad]
