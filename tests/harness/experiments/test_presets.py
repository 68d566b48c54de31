"""Presets: the geometry of their mixers."""

import pytest

from harness.experiments.matching import matched_config
from harness.experiments.presets import PRESETS, preset


@pytest.mark.parametrize("name", ["cpu-recall-32", "cpu-recall-64", "cpu-recall-128"])
def test_the_presets_of_the_width_axis_match_every_mixer_of_the_comparison(name: str) -> None:
    for mixer in PRESETS[name].mixers:
        matched_config(name, "attention" if mixer == "attention" else "recurrent", mixer)


def test_mlps_of_the_recall_presets_are_a_quarter_to_four_times_as_wide_as_the_model() -> None:
    names = [name for name in PRESETS if name.startswith("recall-")]
    assert len(names) == 5
    for name in names:
        for mixer in PRESETS[name].mixers:
            config = matched_config(name, "attention" if mixer == "attention" else "recurrent", mixer)
            assert all(0.25 <= width / config.d_model <= 4 for width in config.mlp_widths), (name, mixer)


def test_the_state_axis_changes_the_state_by_factors_of_four_at_one_width() -> None:
    scales = [PRESETS[name] for name in ("recall-64-quarter", "recall-64", "recall-64-fourfold")]
    assert {(scale.d_model, scale.layers, scale.vocab_size) for scale in scales} == {(64, 2, 512)}
    assert [s.mixers["gdn2"]["heads"] * s.mixers["gdn2"]["head_dim"] ** 2 for s in scales] == [512, 2048, 8192]


def test_zoology_and_based_have_one_head_and_no_mlps() -> None:
    for name, scale in PRESETS.items():
        if name.startswith(("zoology-", "based-")):
            assert scale.mixers["gdn2"] == {"heads": 1, "head_dim": scale.d_model}, name
            assert scale.mixers["attention"] == {"heads": 1} and scale.reference_mlp_width == {"recurrent": 0}, name
            assert scale.layers == (2 if name.startswith("zoology-") else 1), name


def test_mixers_of_a_preset_have_states_of_equal_size_and_whole_heads() -> None:
    for name, scale in PRESETS.items():
        delta, ssm = scale.mixers["gdn2"], scale.mixers["mamba2"]
        assert delta["heads"] * delta["head_dim"] ** 2 == ssm["d_inner"] * ssm["d_state"], name
        assert scale.d_model % scale.mixers["attention"]["heads"] == 0, name


def test_the_embedding_starts_at_one_over_the_root_of_the_width() -> None:
    release = preset("release-1.3b")
    assert release.embedding_std == pytest.approx(release.d_model**-0.5, rel=0.05)  # the paper's 0.02
    for name in set(PRESETS) - {"release-1.3b", "360m", "125m"}:
        assert preset(name).embedding_std == preset(name).d_model ** -0.5, name


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"preset: unknown name '1b'; known: release-1.3b, 360m, 125m"):
        preset("1b")
