"""The suite of docs/suites.md: it runs from a file, and its column has the title and direction that it declares."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from harness.files import CHECKOUT
from harness.records.provenance import provenance
from harness.records.record import Measurement, Record
from harness.records.store import load, write_records
from harness.tables.comparison import comparison
from run import app
from suites.interface import Suite
from suites.registry import suite
from tests.suites.built_in import built_in_only

(EXAMPLE,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "suites.md").read_text("utf-8"), re.DOTALL)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    monkeypatch.chdir(folder)
    with built_in_only():
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """An experiment with the example in its suite_files, submitted and collected."""
    folder = tmp_path_factory.mktemp("copying")
    (folder / "copy.py").write_text(EXAMPLE)
    content = {
        "name": "copying",
        "preset": "cpu-600k",
        "mixers": ["attention"],
        "suite_files": ["copy.py"],
        "data": {"source": str(small_data), "phases": [{"tokens": 256, "seq_len": 64, "rows": {"text": 2}}]},
        "train": {"threads": 1},
        "suites": {"copy": {"lengths": [4, 8], "samples": 8}, "recall": {"pairs": [2], "samples": 4}},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    for command in ("submit", "collect"):
        words = [sys.executable, str(CHECKOUT / "run.py"), command, "mine.yaml"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_documented_suite_is_short() -> None:
    assert EXAMPLE.count("\n") < 60


@pytest.mark.long
def test_a_suite_from_a_file_has_its_columns_in_a_table_made_without_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "copy.py").rename(folder / "away.py")
    try:
        table = run(folder, monkeypatch, "table", "mine.yaml")
        assert run(folder, monkeypatch, "report", "mine.yaml")
    finally:
        (folder / "away.py").rename(folder / "copy.py")
    (header,) = [line for line in table.splitlines() if line.startswith("| ") and "copied words" in line]
    assert "| list copied words @4 words ↑ | list copied words @8 words ↑ |" in header


@pytest.mark.long
def test_its_units_are_done_and_status_needs_neither_the_file_nor_the_experiment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work,) = (folder / "runs").glob("attention-*")
    assert {path.stem.partition("+")[0] for path in work.glob("records/*.done")} == {"copy@4", "copy@8", "recall"}
    (status,) = json.loads(run(folder, monkeypatch, "status", "copying", "--json"))
    assert (status["state"], status["finished"], status["units"]) == ("done", 3, 3)


@pytest.mark.long
def test_an_edited_suite_is_another_evaluation_and_the_other_suites_stay_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work,) = (folder / "runs").glob("attention-*")
    (folder / "copy.py").write_text(EXAMPLE + "\n# edited\n")
    try:
        planned = run(folder, monkeypatch, "submit", "mine.yaml", "--dry-run")
    finally:
        (folder / "copy.py").write_text(EXAMPLE)
    assert "copy@4 → copy@8" in planned and "recall" not in planned and "train" not in planned.splitlines()[0]
    assert "done" in run(folder, monkeypatch, "submit", "mine.yaml", "--dry-run")


@pytest.mark.long
def test_eval_runs_a_suite_from_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work,) = (folder / "runs").glob("attention-*")
    command = ["eval", "copy", "--suite-file", "copy.py", "--run", str(work), "--set", "lengths=[4]", "--limit", "8"]
    (measured,) = json.loads(run(folder, monkeypatch, *command, "--json"))
    assert (measured["metric"], measured["length"], measured["n"]) == ("copied", 4, 8)
    (collected,) = json.loads((folder / "runs" / "collected" / "copying" / "metrics.json").read_text()).items()
    assert collected[0] == "copied" and collected[1]["higher_is_better"]


def test_defaults_of_the_interface_are_one_unit_no_data_and_no_baseline() -> None:
    recall = suite("recall")
    config = recall.Config()
    assert recall.units(config) == {"recall": config}
    assert list(recall.prefetch(config, None)) == [] == list(recall.baselines(config))
    assert not recall.fresh and suite("decode").fresh
    with pytest.raises(NotImplementedError):
        Suite().run(None, config)


def test_a_measurement_states_the_version_of_its_protocol_and_tables_do_not_mix_two(tmp_path: Path) -> None:
    ruler = suite("ruler")
    frames = []
    for number, (mixer, steps) in enumerate([("gdn2", "lm_eval"), ("kda", "unit")]):
        (measured,) = ruler.stamped(ruler.Config(steps=steps), [Measurement("ruler", "vt", "contains", 0.5, 0.1, 4)])
        (own,) = ruler.stamped(ruler.Config(tasks=["vt"], steps=steps), [measured])
        assert measured.settings == {"protocol_version": 1} and own.settings == {"protocol_version": 2 - number}
        birth = {"run": mixer, "label": mixer, "mixer": mixer, "layout": "recurrent", "preset": "p", "seed": 0}
        record = Record.of(own, provenance("0", "cpu", torch.float32, backend="torch"), **birth)
        # The record of a run from before versions were stated has the first one.
        write_records(tmp_path / mixer, "ruler", [record if steps == "lm_eval" else replace(record, settings={})])
        frames.append(load(tmp_path / mixer))
    with pytest.raises(ValueError, match=r"settings.protocol_version differs: 2 \(gdn2\), 1 \(kda\)"):
        comparison(pd.concat(frames))
    (note,) = [n for n in comparison(pd.concat(frames), allow_mixed=True).notes if n.startswith("MIXED")]
    assert "settings.protocol_version differs" in note


def test_a_suite_without_a_validation_split_says_so() -> None:
    retrieval = suite("retrieval")
    with pytest.raises(ValueError, match="suites.retrieval: has no validation split; choose by a suite that has one"):
        retrieval.validation(retrieval.Config())
