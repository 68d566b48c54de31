"""Experiment files: what they may say, and which runs they become."""

from pathlib import Path

import pytest
import yaml

from harness.config import EXPERIMENTS, expand, load_experiment
from harness.matching import matched_config
from harness.presets import PRESETS

BASE = {
    "name": "small",
    "preset": "cpu-1m",
    "mixers": ["gdn2", "attention"],
    "data": {"phases": [{"tokens": 1000, "seq_len": 64, "rows": {"text": 4}}]},
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return path


def test_mixers_layouts_and_seeds_are_expanded_and_attention_is_its_own_layout(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, layouts=["recurrent", "hybrid"], seeds=[1, 2]))
    runs = expand(experiment, 4096, "0" * 64)
    assert [(r.mixer, r.layout, r.seed) for r in runs] == [
        ("gdn2", "recurrent", 1),
        ("gdn2", "recurrent", 2),
        ("gdn2", "hybrid", 1),
        ("gdn2", "hybrid", 2),
        ("attention", "attention", 1),
        ("attention", "attention", 2),
    ]
    assert len({r.run_id for r in runs}) == 6


def test_several_presets_are_an_axis_and_one_of_them_makes_the_same_run_as_if_it_were_the_only_one(
    tmp_path: Path,
) -> None:
    names = ["cpu-recall-32", "cpu-recall-64"]
    runs = expand(load_experiment(write(tmp_path, preset=None, presets=names)), 4096, "0" * 64)
    assert [(r.preset, r.mixer) for r in runs] == [(name, mixer) for name in names for mixer in ("gdn2", "attention")]
    assert [r.model.d_model for r in runs] == [32, 32, 64, 64]
    alone = [r for name in names for r in expand(load_experiment(write(tmp_path, preset=name)), 4096, "0" * 64)]
    assert [r.run_id for r in runs] == [r.run_id for r in alone]


@pytest.mark.parametrize("name", ["cpu-recall-32", "cpu-recall-64", "cpu-recall-128"])
def test_the_presets_of_the_width_axis_match_every_mixer_of_the_comparison(name: str) -> None:
    for mixer in PRESETS[name].mixers:
        matched_config(name, "attention" if mixer == "attention" else "recurrent", mixer)


def test_a_runs_identity_is_what_is_trained_and_not_how_it_is_called(tmp_path: Path) -> None:
    first = expand(load_experiment(write(tmp_path)), 4096, "0" * 64)[0]
    relabelled = write(tmp_path, name="other", mixers=[{"mixer": "gdn2", "label": "ours"}], suites={"recall": {}})
    assert expand(load_experiment(relabelled), 4096, "0" * 64)[0].run_id == first.run_id
    for override in ("train.lr=1e-3", "data.tokenizer=other.json", "preset=cpu-600k", "seeds=[1]"):
        assert expand(load_experiment(write(tmp_path), [override]), 4096, "0" * 64)[0].run_id != first.run_id


def test_options_of_a_mixer_reach_its_model(tmp_path: Path) -> None:
    spec = {"mixer": "gdn2", "options": {"erase_gate": "scalar"}, "label": "w only"}
    run = expand(load_experiment(write(tmp_path, mixers=[spec])), 4096, "0" * 64)[0]
    assert run.model.mixer_options["erase_gate"] == "scalar"
    assert run.model.mixer_options["heads"] == 4  # the preset's geometry stays
    assert run.label == "w only"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, r"small.yaml: steps: unknown field"),
        ({"train": {"learning_rate": 1}}, r"train.learning_rate: unknown field"),
        ({"train": {"clip": 0}}, r"train.clip: .*greater than 0 \(got 0\)"),
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
    ("changes", "message"),
    [
        ({"mixers": ["gdn3"]}, r"mixer: unknown name 'gdn3'; known: attention, "),
        ({"mixers": [{"mixer": "gdn2", "options": {"gate": 1}}]}, r"gdn2.gate: .*options: heads"),
        ({"mixers": [{"mixer": "gdn2", "options": {"value_heads": 3}}]}, r"value_heads: 3 is no multiple of heads=4"),
        ({"mixers": ["gdn2", "gdn2"]}, r"mixers: gdn2 \(recurrent\) is listed twice"),
        ({"preset": "1b"}, r"preset: unknown name '1b'"),
        ({"preset": None, "presets": ["cpu-1m", "1b"]}, r"preset: unknown name '1b'"),
    ],
)
def test_a_run_that_cannot_be_built_is_refused_before_work_starts(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(load_experiment(write(tmp_path, **changes)), 4096, "0" * 64)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"experiment: no file tabel2; give a path, or one of: demo"):
        load_experiment("tabel2")
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match=r"broken.yaml: not YAML"):
        load_experiment(path)
    with pytest.raises(ValueError, match=r"--set: expected a.b=value, got 'train.lr'"):
        load_experiment(write(tmp_path), ["train.lr"])


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_in_the_project_expands(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert expand(experiment, 4096, "0" * 64)
