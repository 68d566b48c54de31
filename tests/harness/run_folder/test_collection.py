"""A collection comes back, says what is missing, and is named with the remedy where it is damaged."""

import os
import threading
from pathlib import Path

import pandas as pd
import pytest

from harness.run_folder import (
    Collection,
    collection_of,
)
from tests.harness.run_folder.damage import damage


def test_a_collection_comes_back_and_says_what_is_missing(tmp_path: Path) -> None:
    collected = collection_of(tmp_path, "demo")
    for read, message in (
        (collected.require, "nothing collected there; run collect first"),
        (collected.read_runs, r"runs.json: nothing collected there; run collect first"),
        (collected.read_curves, r"curves.parquet: no training curves there; run collect again"),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    assert collected.read_samples() == []
    frame = pd.DataFrame({"run": ["a", "b"], "value": [1.0, 2.0]})
    trials = pd.DataFrame({"run": ["a"], "score": [None], "values": ['{"train.lr": 0.1}']})
    kept = {"name": "demo", "train": {"lr": 0.05}}
    collected.path.mkdir(parents=True)
    collected.write(frame, [["key", [0.0, 1.0]]], frame, frame, trials, kept, {"new_acc": {"display": "new"}})
    assert collected.read_experiment() == kept and collected.metrics.exists()
    assert collected.read_trials()["values"].tolist() == ['{"train.lr": 0.1}']
    collected.write(frame, [["key", [0.0, 1.0]]], frame, frame, pd.DataFrame(), kept, {})  # no longer tuned
    assert collected.read_trials().empty and not collected.trials.exists() and not collected.metrics.exists()
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


def write(collected: Collection, value: float) -> None:
    frame = pd.DataFrame({"value": [value]})
    collected.write(frame, [], frame, frame, pd.DataFrame(), {"name": str(value)}, {})


def test_a_collection_is_replaced_whole_or_says_that_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = Collection(tmp_path)
    write(collected, 1.0)
    with pytest.raises(TypeError), monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, data: 1 + "a full disk")
        write(collected, 2.0)
    assert collected.read_experiment() == {"name": "1.0"} and collected.read_runs()["value"].tolist() == [1.0]
    calls = iter([os.replace, os.replace])
    with pytest.raises(StopIteration), monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: next(calls)(old, new))  # killed after two files
        write(collected, 2.0)
    with pytest.raises(ValueError, match="experiment.yaml: missing; the collection is .* not whole; run collect again"):
        collected.read_experiment()
    write(collected, 3.0)
    assert collected.read_experiment() == {"name": "3.0"} and collected.read_runs()["value"].tolist() == [3.0]


def test_a_reader_waits_until_a_collection_is_replaced(tmp_path: Path) -> None:
    collected, seen = Collection(tmp_path), []

    def read() -> None:
        with collected.reading():
            seen.append(collected.read_experiment())

    with collected.replacing():
        reader = threading.Thread(target=read)
        reader.start()
        write(collected, 1.0)
        collected.experiment.unlink()  # as in the middle of another replacement
        reader.join(0.05)
        assert reader.is_alive() and seen == []
        write(collected, 2.0)
    reader.join()
    assert seen == [{"name": "2.0"}]
