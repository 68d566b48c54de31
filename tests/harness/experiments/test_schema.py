"""Experiment files: what they may say, and which runs they become."""

from pathlib import Path

import pytest
import yaml

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.matching import matched_config
from harness.experiments.presets import PRESETS
from harness.experiments.run_config import RunConfig

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
    with pytest.raises(ValueError, match=r"experiment: no file tabel2; give a path, or one of: decode, demo"):
        load_experiment("tabel2")
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match=r"broken.yaml: not YAML"):
        load_experiment(path)
    with pytest.raises(ValueError, match=r"--set: expected a.b=value, got 'train.lr'"):
        load_experiment(write(tmp_path), ["train.lr"])


RATES = [{"label": "slow", "train": {"lr": 1e-4}}, {"label": "scalar", "options": {"erase_gate": "scalar"}}]


def expanded(folder: Path, **changes: object) -> list[RunConfig]:
    return expand(load_experiment(write(folder, **changes)), 4096, "0" * 64)


def test_ablations_stand_beside_the_model_as_it_is_and_are_runs_of_their_own(tmp_path: Path) -> None:
    plain = expanded(tmp_path, mixers=["gdn2"], seeds=[0, 1])
    runs = expanded(tmp_path, mixers=["gdn2"], seeds=[0, 1], ablations=RATES)
    assert [(r.label, r.seed) for r in runs] == [
        (label, seed)
        for label in ("Gated DeltaNet-2", "Gated DeltaNet-2, slow", "Gated DeltaNet-2, scalar")
        for seed in (0, 1)
    ]
    assert [r.run_id for r in runs[:2]] == [r.run_id for r in plain]
    assert len({r.run_id for r in runs}) == 6
    assert (runs[2].train.lr, runs[2].train.betas) == (1e-4, plain[0].train.betas)
    assert runs[4].model.mixer_options == plain[0].model.mixer_options | {"erase_gate": "scalar"}


def test_an_ablation_goes_over_what_its_model_has_and_reaches_the_mixers_that_it_names(tmp_path: Path) -> None:
    spec = {"mixer": "gdn2", "label": "ours", "options": {"erase_gate": "scalar", "erase_range": 2}}
    ablation = {"label": "whole", "options": {"erase_gate": "channel"}, "mixers": ["gdn2"]}
    layouts = ["recurrent", "hybrid"]
    runs = expanded(tmp_path, mixers=[spec, "kda", "attention"], layouts=layouts, ablations=[ablation])
    assert [(r.label, r.layout) for r in runs] == [
        ("ours", "recurrent"),
        ("ours, whole", "recurrent"),
        ("ours", "hybrid"),
        ("ours, whole", "hybrid"),
        ("KDA", "recurrent"),
        ("KDA", "hybrid"),
        ("Transformer", "attention"),
    ]
    assert {"erase_gate": "channel", "erase_range": 2}.items() <= runs[1].model.mixer_options.items()


@pytest.mark.parametrize(
    ("ablations", "message"),
    [
        ([{"label": "none"}], r"ablations.0: options, train: 'none' has neither; say what it changes"),
        ([{"label": "a", "train": {"rate": 1}}], r"ablations: 'a': train: rate: unknown field"),
        ([{"label": "a", "train": {"lr": -1}}], r"ablations: 'a': train: lr: .*greater than 0 \(got -1\)"),
        (
            [{"label": "a", "train": {"accumulation": 3}}],
            r"ablations: 'a': train.accumulation: 3 does not divide the 4",
        ),
        ([RATES[0] | {"mixers": ["kda"]}], r"ablations: 'slow': mixers: 'kda' is not in the experiment; it has gdn2"),
        ([RATES[0] | {"seeds": [1]}], r"ablations.0.seeds: unknown field"),
        (
            [{"label": "same", "train": {"clip": 1.0}}],
            r"small: ablations: 'same' of gdn2 \(recurrent\) is listed twice with the same options; remove one",
        ),
        ([{"label": "same", "options": {"erase_range": 1}}], r"ablations: 'same' of gdn2 .* is listed twice"),
        ([RATES[0], RATES[1] | {"label": "slow"}], r"two entries are called 'Gated DeltaNet-2, slow' \(recurrent\)"),
        ([{"label": "a", "options": {"gate": 1}}], r"ablations: 'a' of gdn2 .*gdn2.gate: .*options: heads"),
        ([RATES[1]], r"ablations: 'scalar' of attention .*attention.erase_gate: .*name its mixers"),
    ],
)
def test_an_ablation_that_is_none_is_refused_by_its_label(tmp_path: Path, ablations: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expanded(tmp_path, ablations=ablations)


def test_a_scale_changes_the_fields_it_names_deeply_and_what_is_set_goes_over_it(tmp_path: Path) -> None:
    data = BASE["data"] | {"tokenizer": "own.json"}
    phases = [{"tokens": 500, "seq_len": 32, "rows": {"text": 2}}]
    scale = {
        "preset": "cpu-600k",
        "data": {"phases": phases},
        "train": {"lr": 1e-2},
        "suites": {"ruler": {"samples": 9}},
    }
    given = {"train": {"lr": 1e-3, "clip": 0.5}, "suites": {"ruler": {"lengths": [320]}}, "scales": {"tiny": scale}}
    path = write(tmp_path, data=data, **given)
    whole, tiny = load_experiment(path), load_experiment(path, scale="tiny")
    assert (whole.name, whole.preset, whole.train.lr) == ("small", "cpu-1m", 1e-3)
    assert (tiny.name, tiny.preset, tiny.train.lr, tiny.train.clip) == ("small-tiny", "cpu-600k", 1e-2, 0.5)
    assert (tiny.data.tokenizer, len(tiny.data.phases), tiny.data.tokens) == ("own.json", 1, 512)
    assert tiny.suites == {"ruler": {"lengths": [320], "samples": 9}}
    assert load_experiment(path, ["train.lr=3e-4"], "tiny").train.lr == 3e-4


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({}, r"scale: .*small.yaml has no scale 'tiny'; known: none beside the file's own"),
        ({"a": {}, "b": {}}, r"has no scale 'tiny'; known: a, b"),
        ({"tiny": {"name": "other"}}, r"scales.tiny.name: not what a scale can change; use description, preset, "),
        ({"tiny": {"steps": 5}}, r"scales.tiny.steps: not what a scale can change"),
        ({"tiny": {"train": {"rate": 1}}}, r"train.rate: unknown field"),
        ({"tiny": 5}, r"scales.tiny: .*\(got 5\)"),
        ({"tiny": {"presets": ["cpu-1m"]}}, r"preset, presets: .*; give exactly one"),
    ],
)
def test_a_scale_that_is_none_is_refused(tmp_path: Path, scales: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, scales=scales), scale="tiny")


def test_what_the_paper_printed_is_an_expectation_at_its_preset_and_tokens_alone(tmp_path: Path) -> None:
    tolerance = {"lambada_acc": 1.5, "acc": 3.0}
    expected = {"table": "table2", "preset": "cpu-1m", "tokens": 1000, "tolerance": tolerance}
    path = write(tmp_path, expected=expected)
    found = load_experiment(path).expectation
    assert [found.allowed(c) for c in ("lambada_acc", "piqa_acc", "wikitext_ppl", "swde")] == [1.5, 3.0, None, None]
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
def test_an_expectation_of_what_the_paper_has_not_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    expected = {"table": "table2", "preset": "cpu-1m", "tokens": 1000, "tolerance": {"acc": 1.0}} | changes
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, expected=expected))
