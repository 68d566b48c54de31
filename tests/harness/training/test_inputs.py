"""Inputs of a run: kept once, read back, and found where the data have gone. tests/test_travel.py moves whole runs."""

import shutil
from pathlib import Path

import pytest

from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.run_config import RunConfig
from harness.run_folder import RunFolder
from harness.training.inputs import find_data, keep_inputs, run_tokenizer
from tests.harness.training.tiny import recall_config, run_config


def keep(folder: Path, config: RunConfig) -> Path:
    RunFolder(folder).write_config(config.model_dump(mode="json"))
    keep_inputs(config, folder, load_tokenizer(config.data.tokenizer))
    return folder


def test_inputs_are_kept_once_and_read_back(small_data: Path, tmp_path: Path) -> None:
    config = run_config(small_data)
    run = keep(tmp_path / "run", config)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "config.yaml"}
    assert {path.name for path in before} >= {"inputs.json", "tokenizer.json"}
    keep(run, config)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "config.yaml"}
    assert tokenizer_hash(run_tokenizer(run, config)) == tokenizer_hash(load_tokenizer())
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(
        ValueError, match=r"tokenizer.json: the run's tokenizer is missing; copy the run's folder again"
    ):
        run_tokenizer(run, config)


def test_a_run_on_bare_ids_keeps_no_tokenizer_file(tmp_path: Path) -> None:
    config = recall_config()
    run = keep(tmp_path / "run", config)
    assert not (run / "tokenizer").exists() and len(run_tokenizer(run, config)) == 32


def test_data_that_have_gone_are_known_from_a_run_that_was_trained_on_them(small_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    config = run_config(data)
    keep(tmp_path / "runs" / "one", config)
    for name, sha256 in (("two", config.data_sha256), ("three", "0" * 64)):
        keep(tmp_path / "others" / name, config.model_copy(update={"data_sha256": sha256}))
    shutil.rmtree(data)
    elsewhere = config.data.model_copy(update={"source": "/elsewhere/data"})
    for asked in (config.data, elsewhere):
        tokenizer, sha256 = find_data(asked, tmp_path / "runs")
        assert sha256 == config.data_sha256 and tokenizer_hash(tokenizer) == tokenizer_hash(load_tokenizer())
    for other in ({"source": "/elsewhere/other"}, {"phases": config.data.phases[:1]}):
        with pytest.raises(ValueError, match=r"data.source: no index.json in .*; make it with"):
            find_data(config.data.model_copy(update=other), tmp_path / "runs")
    with pytest.raises(ValueError, match=r"\(the runs .*three and .*two were trained on different data of this name\)"):
        find_data(config.data, tmp_path / "others")
