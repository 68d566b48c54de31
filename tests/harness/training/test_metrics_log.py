"""Metrics of a run: metrics.jsonl, trackers and profiles."""

import contextlib
import importlib.util
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from harness.training import checkpoint
from harness.training.metrics_log import metrics_files
from harness.training.train import train
from harness.training.trainer import TrainingInterrupted
from tests.harness.training.tiny import after, metrics_lines, run_config


def test_lines_of_repeated_steps_are_dropped(tmp_path: Path, small_data: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(run_config(small_data, "attention"), tmp_path, stop=after(10))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 1.0}\n{"step": 1')
    with metrics_files(tmp_path, 10):
        pass
    assert [line["step"] for line in metrics_lines(tmp_path)] == [10]


def test_metrics_also_go_to_trackio_and_a_resumed_run_is_the_same_one_there(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    monkeypatch.setenv("WANDB_PROJECT", "own-project")
    config = run_config(small_data, "attention", tracker="trackio")
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", stop=after(10))
    train(config, tmp_path / "run")
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "own-project.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {config.run_id}
    assert [(step, json.loads(metrics)["loss"]) for _, step, metrics in rows] == [
        (line["step"], line["loss"]) for line in metrics_lines(tmp_path / "run")
    ]


def test_metrics_also_go_to_wandb(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(run_config(small_data, "attention", steps=2, tracker="wandb"), tmp_path)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"tokens_per_second" in written.read_bytes()


def test_a_tracker_that_is_missing_or_does_not_start_is_named_before_training(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(small_data, "attention", tracker="wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "no/project")
    with pytest.raises(ValueError, match=r"train.tracker: wandb does not start \(.*leave the field out"):
        train(config, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"train.tracker: wandb is not installed; pip install wandb, or leave"):
        train(config, tmp_path)
    assert checkpoint.latest(tmp_path) is None


def test_a_tracker_that_breaks_down_is_named_once_and_training_continues(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import trackio

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(trackio, "init", lambda **_: None)
    monkeypatch.setattr(trackio, "log", broken)
    monkeypatch.setattr(trackio, "finish", broken)
    config = run_config(small_data, "attention", steps=20, tracker="trackio")
    assert train(config, tmp_path).steps == 20 and len(metrics_lines(tmp_path)) == 2
    assert caplog.messages == ["trackio accepts no more metrics (gone); metrics.jsonl has them all"]
    untracked = config.model_copy(update={"train": config.train.model_copy(update={"tracker": None})})
    assert config.run_id == untracked.run_id


def test_a_profile_has_a_trace_and_the_ten_costliest_operators(tmp_path: Path, small_data: Path) -> None:
    plain = train(run_config(small_data, "attention", steps=8), tmp_path / "plain")
    profiled = train(run_config(small_data, "attention", steps=8), tmp_path / "run", profile=tmp_path / "profile")
    assert profiled.weights_sha256 == plain.weights_sha256
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert "aten::mm" in table and "Self CPU" in table
    rules = [number for number, line in enumerate(table.splitlines()) if line.startswith("---")]
    assert rules[2] - rules[1] - 1 == 10  # rows between the second rule and the third
