"""Expansion: the runs of an experiment, their order and labels, and refusals before work starts."""

from pathlib import Path

import pytest

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from tests.harness.experiments.experiment_files import expanded, write

RATES = [{"label": "slow", "train": {"lr": 1e-4}}, {"label": "scalar", "options": {"erase_gate": "scalar"}}]


def test_mixers_layouts_and_seeds_are_expanded_and_attention_is_its_own_layout(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, layouts=["recurrent", "hybrid"], seeds=[1, 2]))
    runs = expand(experiment, 4096, "0" * 64).runs
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
    runs = expand(load_experiment(write(tmp_path, preset=None, presets=names)), 4096, "0" * 64).runs
    assert [(r.preset, r.mixer) for r in runs] == [(name, mixer) for name in names for mixer in ("gdn2", "attention")]
    assert [r.model.d_model for r in runs] == [32, 32, 64, 64]
    alone = [r for name in names for r in expand(load_experiment(write(tmp_path, preset=name)), 4096, "0" * 64).runs]
    assert [r.run_id for r in runs] == [r.run_id for r in alone]


def test_options_of_a_mixer_reach_its_model(tmp_path: Path) -> None:
    spec = {"mixer": "gdn2", "options": {"erase_gate": "scalar"}, "label": "w only"}
    run = expand(load_experiment(write(tmp_path, mixers=[spec])), 4096, "0" * 64).runs[0]
    assert run.model.mixer_options["erase_gate"] == "scalar"
    assert run.model.mixer_options["heads"] == 4  # the preset's geometry stays
    assert run.label == "w only"


def test_a_model_may_have_a_recipe_of_its_own_and_its_ablations_change_that(tmp_path: Path) -> None:
    mixers = [{"mixer": "gdn2", "train": {"lr": 3e-2, "init_gain": "upstream"}}, "attention"]
    runs = expanded(tmp_path, mixers=mixers, ablations=[RATES[0]])
    assert [(r.train.lr, r.train.init_gain) for r in runs[:2]] == [(3e-2, "upstream"), (1e-4, "upstream")]
    assert [r.run_id for r in runs[2:]] == [r.run_id for r in expanded(tmp_path, ablations=[RATES[0]])[2:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixers": [{"mixer": "gdn2", "train": {"lr": -1}}]}, r"mixers: 'gdn2': train.*lr: Input should be greater"),
        ({"mixers": [{"mixer": "gdn2", "train": {"rate": 1}}]}, r"mixers: 'gdn2': train.*rate"),
        (
            {
                "mixers": [{"mixer": "gdn2", "train": {"lr": 1e-2}}],
                "tuning": {
                    "grid": {"train.lr": [1e-3, 1e-2]},
                    "seeds": [7, 8],
                    "choose": {"suite": "recall", "task": "mqar", "metric": "acc"},
                },
                "suites": {"recall": {}},
            },
            "mixers: 'gdn2' sets train.lr, which tuning.grid tries; remove one",
        ),
    ],
)
def test_a_wrong_recipe_of_a_model_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, **changes))


def test_ablations_stand_next_to_the_model_as_it_is_and_are_runs_of_their_own(tmp_path: Path) -> None:
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


def test_matching_and_convolutions_reach_the_models_of_an_experiment(tmp_path: Path) -> None:
    plain = expanded(tmp_path)
    ablations = [{"label": "bare", "leading_conv": 0}, {"label": "wide", "leading_conv": 4}]
    runs = expanded(tmp_path, match="flops", leading_conv=3, ablations=ablations)
    assert [r.label for r in runs[:3]] == ["Gated DeltaNet-2", "Gated DeltaNet-2, bare", "Gated DeltaNet-2, wide"]
    assert [r.model.leading_conv for r in runs] == [3, 0, 4] * 2
    assert len({r.run_id for r in runs}) == 6 and {r.match for r in runs} == {"flops"}
    # The target is Gated DeltaNet-2 without convolutions. It is the same run whatever it is that matches.
    assert runs[1].run_id == plain[0].run_id
    assert runs[4].model.mlp_widths < plain[1].model.mlp_widths  # attention: fewer parameters, more FLOPs
    models = [r.model.mlp_widths for r in expanded(tmp_path, match="mlp")]
    assert models == [plain[0].model.mlp_widths] * 2
    with pytest.raises(ValueError, match=r"'same' of gdn2 \(recurrent\) is listed twice with the same options"):
        expanded(tmp_path, leading_conv=3, ablations=[{"label": "same", "leading_conv": 3}])


def test_an_ablation_overrides_options_of_the_mixers_that_it_names(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("ablations", "message"),
    [
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
def test_an_ablation_that_changes_nothing_or_does_not_fit_is_refused(
    tmp_path: Path, ablations: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expanded(tmp_path, ablations=ablations)


def test_a_seed_or_a_label_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seeds: \[1, 1\] names one twice; name each once"):
        expanded(tmp_path, seeds=[1, 1])
    named = {"mixer": "gdn2", "label": "ours", "options": {"erase_gate": "scalar"}}
    with pytest.raises(ValueError, match=r"small: mixers: gdn2 \(recurrent\): two entries are called 'ours'"):
        expanded(tmp_path, mixers=[named, named | {"options": {}}])


def test_attention_takes_no_other_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mixers: attention has a layout of its own, not 'hybrid'; remove the layout"):
        expanded(tmp_path, mixers=[{"mixer": "attention", "layout": "hybrid"}])
