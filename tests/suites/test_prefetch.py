"""Everything that jobs read from outside, frozen beforehand; what cannot be had is named and stops nothing else."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.load import load_experiment
from harness.files import file_sha256
from run import app
from suites import language, ruler
from suites.prefetch import prefetch
from suites.shared import offline

cli = CliRunner()
RULER = {"tasks": ["s_niah_2", "vt"], "lengths": [1024], "samples": 3, "haystack": "corpus", "steps": "unit"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def experiment(folder: Path, shards: Path, suites: dict, **changes: object) -> Path:
    content = {
        "name": "tiny",
        "preset": "cpu-600k",
        "mixers": ["gated_deltanet"],
        "data": {"source": str(shards), "phases": [{"tokens": 256, "seq_len": 64, "rows": {"text": 2}}]},
        "suites": suites,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_everything_is_frozen_with_its_hash_and_read_afterwards(
    tmp_path: Path, small_data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = experiment(tmp_path, small_data, {"language": {"tasks": ["heldout"]}, "ruler": RULER, "recall": {}})
    result = cli.invoke(app, ["prefetch", str(path)])
    assert result.exit_code == 0, result.output
    items = json.loads((cache / "prefetch.json").read_text())["tiny"]
    assert list(items) == ["tokenizer embedded", f"training data {small_data}", "ruler s_niah_2@1024", "ruler vt@1024"]
    assert [line.rsplit(": ", 1) for line in result.output.splitlines()[:-1]] == [list(pair) for pair in items.items()]
    assert result.output.endswith("prefetch.json: 4 of 4 items\n")
    assert items["tokenizer embedded"] == tokenizer_hash(load_tokenizer())
    assert {file_sha256(file) for file in cache.glob("ruler/*.jsonl")} == set(list(items.values())[2:])
    monkeypatch.setattr(ruler, "draw_samples", None)
    ruler.Ruler().check(ruler.Config(**RULER), load_tokenizer())
    again = cli.invoke(app, ["prefetch", str(path)])
    assert again.output == result.output


def test_what_cannot_be_had_is_named_and_the_rest_is_frozen(tmp_path: Path, small_data: Path, cache: Path) -> None:
    suites = {
        "language": {"tasks": ["wikitext", "piqa"]},
        "ruler": {**RULER, "tasks": ["s_niah_2", "qa_2", "vt"], "haystack": "paul_graham"},
    }
    result = cli.invoke(app, ["prefetch", str(experiment(tmp_path, small_data, suites))])
    assert result.exit_code == 1
    lines = {line.split(":")[0]: line for line in result.output.splitlines()}
    assert "missing: tasks: wikitext cannot be read from the Hub" in lines["language wikitext"]
    assert offline.REMEDY in lines["language piqa"]
    assert "baber/paul_graham_essays" in lines["ruler s_niah_2@1024"]
    assert "namlh2004/hotpotqa" in lines["ruler qa_2@1024"]
    assert result.output.splitlines()[-1] == (
        "error: missing: language wikitext, language piqa, ruler s_niah_2@1024, ruler qa_2@1024"
    )
    assert set(json.loads((cache / "prefetch.json").read_text())["tiny"]) >= {"tokenizer embedded", "ruler vt@1024"}


def test_experiments_share_one_manifest(tmp_path: Path, small_data: Path, cache: Path) -> None:
    for name in ("one", "two"):
        prefetch(load_experiment(experiment(tmp_path, small_data, {}, name=name)))
    assert list(json.loads((cache / "prefetch.json").read_text())) == ["one", "two"]


def test_without_a_tokenizer_everything_that_needs_it_is_missing(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, {"ruler": {**RULER, "tasks": ["vt"]}})
    loaded = load_experiment(path, ["data.tokenizer=/nowhere/tokenizer.json"])
    _, items = prefetch(loaded)
    assert [item.sha256 for item in items] == [None] * 3
    assert "no file /nowhere/tokenizer.json" in items[0].reason and "sized with the tokenizer" in items[2].reason


def test_the_offline_copy_is_checked(offline_data: Path, cache: Path) -> None:
    folder = cache / offline.FOLDER
    folder.mkdir(parents=True)
    for name in ("piqa.jsonl", "manifest.json"):
        (folder / name).write_bytes((offline_data / name).read_bytes())
    config = language.Config(tasks=["piqa"], offline=True)
    (item,) = language.Language().prefetch(config, None)
    assert item.name == "language piqa" and len(item.sha256) == 64
    (folder / "piqa.jsonl").write_text("{}\n")
    (damaged,) = language.Language().prefetch(config, None)
    assert damaged.sha256 is None and "is damaged" in damaged.reason


def test_unknown_suites_and_options_are_wrong_use(tmp_path: Path, small_data: Path) -> None:
    for suites, message in (
        ({"rulers": {}}, "unknown name 'rulers'"),
        ({"ruler": {"length": 1}}, "suites.ruler.length"),
    ):
        result = cli.invoke(app, ["prefetch", str(experiment(tmp_path, small_data, suites))])
        assert result.exit_code == 2 and message in result.output
