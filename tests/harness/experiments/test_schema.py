"""The schema of experiment files: errors name the field and its value; expectations of the paper's scale."""

from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from tests.harness.experiments.experiment_files import write

SLOW = {"label": "slow", "train": {"lr": 1e-4}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, r"small.yaml: steps: unknown field"),
        ({"train": {"learning_rate": 1}}, r"train.learning_rate: unknown field"),
        ({"train": {"clip": 0}}, r"train.clip: .*greater than 0 \(got 0\)"),
        ({"train": {"init_gain": 0}}, r"train.init_gain: 0 is neither a gain above 0 nor 'upstream'; use one of them"),
        ({"train": {"init_gain": "torch"}}, r"train.init_gain: 'torch' is neither a gain above 0 nor 'upstream'"),
        ({"match": "size"}, r"match: .*'parameters', 'flops' or 'mlp' \(got 'size'\)"),
        ({"leading_conv": -1}, r"leading_conv: .*\(got -1\)"),
        ({"data": {"phases": [{"tokens": 1, "seq_len": 64, "rows": {"prose": 4}}]}}, r"data.phases.0.rows.prose"),
        ({"data": {"phases": [{"tokens": 1, "seq_len": 64}]}}, r"data.phases.0.rows: Field required"),
        ({"data": {"phases": []}}, r"data.phases: "),
        (
            {"train": {"accumulation": 3}},
            r"train.accumulation: 3 does not divide the 4 rows of a step in data.phases.0",
        ),
        ({"name": "a b"}, r"name: .*\(got 'a b'\)"),
        ({"mixers": []}, r"mixers: "),
        ({"preset": None}, r"preset, presets: got None and \[\]; give exactly one of them"),
        ({"presets": ["cpu-600k"]}, r"preset, presets: got 'cpu-1m' and \['cpu-600k'\]; give exactly one of them"),
        ({"preset": None, "presets": ["cpu-1m", "cpu-1m"]}, r"presets: .* names one twice; name each once"),
        (
            {"data": {"phases": [{"tokens": 1, "seq_len": 96, "rows": {"mqar": 1, "interference": 1}}]}},
            r"data.phases.0: seq_len: 96 is too short for interference; use at least 97",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("ablations", "message"),
    [
        ([{"label": "none"}], r"ablations.0: options, train, leading_conv: 'none' has none of them; say"),
        ([{"label": "a", "train": {"rate": 1}}], r"ablations: 'a': train: rate: unknown field"),
        ([{"label": "a", "train": {"lr": -1}}], r"ablations: 'a': train: lr: .*greater than 0 \(got -1\)"),
        (
            [{"label": "a", "train": {"accumulation": 3}}],
            r"ablations: 'a': train.accumulation: 3 does not divide the 4",
        ),
        ([SLOW | {"mixers": ["kda"]}], r"ablations: 'slow': mixers: 'kda' is not in the experiment; it has gdn2"),
        ([SLOW | {"seeds": [1]}], r"ablations.0.seeds: unknown field"),
    ],
)
def test_a_wrong_ablation_is_named_by_its_label(tmp_path: Path, ablations: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, ablations=ablations))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({}, r"scale: .*small.yaml has no scale 'tiny'; known: none but the file's own"),
        ({"a": {}, "b": {}}, r"has no scale 'tiny'; known: a, b"),
        ({"tiny": {"name": "other"}}, r"scales.tiny.name: not what a scale can change; use description, preset, "),
        ({"tiny": {"steps": 5}}, r"scales.tiny.steps: not what a scale can change"),
        ({"tiny": {"train": {"rate": 1}}}, r"train.rate: unknown field"),
        ({"tiny": 5}, r"scales.tiny: .*\(got 5\)"),
        ({"tiny": {"presets": ["cpu-1m"]}}, r"preset, presets: .*; give exactly one"),
    ],
)
def test_a_wrong_scale_is_refused(tmp_path: Path, scales: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, scales=scales), scale="tiny")


def test_the_paper_is_an_expectation_only_at_its_preset_and_tokens(tmp_path: Path) -> None:
    tolerance = {"lambada_acc": 1.5, "acc": 3.0}
    paper = {"table": "table2", "preset": "cpu-1m", "tokens": 1000, "tolerance": tolerance}
    path = write(tmp_path, expected=paper)
    expected = load_experiment(path).expectation
    assert [expected.allowed(c) for c in ("lambada_acc", "piqa_acc", "wikitext_ppl", "swde")] == [1.5, 3.0, None, None]
    assert load_experiment(path, ["preset=cpu-600k"]).expectation is None
    assert load_experiment(path, ["data.phases=[{tokens: 999, seq_len: 64, rows: {text: 4}}]"]).expectation is None
    assert load_experiment(write(tmp_path)).expectation is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tolerance": {"swde": 1.0}},
            r"expected: tolerance: 'swde' is no column of table2; .*word_perplexity.*piqa_acc",
        ),
        ({"tolerance": {"acc": 0}}, r"expected.tolerance.acc: .*greater than 0"),
        ({"tolerance": {}}, r"expected.tolerance: "),
        ({"preset": "1b"}, r"expected: preset: unknown name '1b'"),
        ({"table": "table6"}, r"expected.table: .*'table2'.*got 'table6'"),
    ],
)
def test_an_expectation_that_the_paper_does_not_state_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    expected = {"table": "table2", "preset": "cpu-1m", "tokens": 1000, "tolerance": {"acc": 1.0}} | changes
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, expected=expected))
