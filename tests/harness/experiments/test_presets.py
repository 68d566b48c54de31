"""Presets: the geometry of their mixers."""

import pytest

from harness.experiments.matching import matched_config
from harness.experiments.presets import PRESETS, preset


@pytest.mark.parametrize("name", ["cpu-recall-32", "cpu-recall-64", "cpu-recall-128"])
def test_the_presets_of_the_width_axis_match_every_mixer_of_the_comparison(name: str) -> None:
    for mixer in PRESETS[name].mixers:
        matched_config(name, "attention" if mixer == "attention" else "recurrent", mixer)


def test_mixers_of_a_preset_have_states_of_equal_size_and_whole_heads() -> None:
    for name, scale in PRESETS.items():
        delta, ssm = scale.mixers["gdn2"], scale.mixers["mamba2"]
        assert delta["heads"] * delta["head_dim"] ** 2 == ssm["d_inner"] * ssm["d_state"], name
        assert scale.d_model % scale.mixers["attention"]["heads"] == 0, name


def test_the_embedding_starts_at_one_over_the_root_of_the_width() -> None:
    release = preset("release-1.3b")
    assert release.embedding_std == pytest.approx(release.d_model**-0.5, rel=0.05)  # the paper's 0.02
    for name in ("35m", "cpu-1m", "cpu-600k", "cpu-recall-32", "cpu-recall-64", "cpu-recall-128"):
        assert preset(name).embedding_std == preset(name).d_model ** -0.5


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"preset: unknown name '1b'; known: release-1.3b, 360m, 125m"):
        preset("1b")
