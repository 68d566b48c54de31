"""The figure of tuning shows every trial, the mean of those that did not diverge, and what was chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from harness.figures.tuning import fields, tuning, tuning_numbers
from tests.harness.figures.figure_records import trial

RATES = (1e-3, 1e-2)


def grid(*others: dict[str, Any]) -> pd.DataFrame:
    """Two seeds of every rate with each of the other values; the last of them diverges at the larger rate."""
    rows = []
    for values in others:
        for lr in RATES:
            gone = values == others[-1] and lr == RATES[-1] and len(others) > 1
            scores = (0.5, None if gone else 0.7)
            chosen = values == others[0] and lr == RATES[0]
            rows += [trial("gdn2", seed, score, chosen, lr=lr, **values) for seed, score in enumerate(scores, 100)]
    return pd.DataFrame(rows)


def drawn(axes: Axes, marker: str, linestyle: str = "None") -> list[list[tuple[float, float]]]:
    return [
        list(map(tuple, line.get_xydata().tolist()))
        for line in axes.get_lines()
        if line.get_marker() == marker and line.get_linestyle() == linestyle
    ]


def names(trials: pd.DataFrame) -> list[str]:
    return [text.get_text() for text in tuning(trials).legends[0].get_texts()]


def test_scores_are_in_the_unit_of_figures_and_nan_where_training_diverged() -> None:
    numbers = tuning_numbers(grid({"init_gain": 0.7}, {"init_gain": "upstream"}))
    np.testing.assert_allclose(numbers["score"], [50, 70] * 3 + [50, np.nan])
    assert numbers["train.lr"].tolist() == [1e-3, 1e-3, 1e-2, 1e-2] * 2
    with pytest.raises(ValueError, match="no trials there; give the experiment `tuning`"):
        tuning(pd.DataFrame())


def test_a_grid_of_one_field_is_one_line_with_the_chosen_value_ringed() -> None:
    (axes,) = tuning(grid({})).get_axes()
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "lr" and axes.get_title() == "GDN2"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.001", "0.01"]
    points, ring = drawn(axes, "o")
    np.testing.assert_allclose(points, [(1e-3, 50), (1e-3, 70), (1e-2, 50), (1e-2, 70)])
    np.testing.assert_allclose(ring, [(1e-3, 60)])
    np.testing.assert_allclose(drawn(axes, "o", "-"), [[(1e-3, 60), (1e-2, 60)]])
    assert axes.get_lines()[0].get_ydata()[0] == pytest.approx((25 + 12.5) / 2)  # chance at 4 and 8 pairs
    assert names(grid({})) == ["chosen", "names any listed value"]


def test_the_other_fields_are_lines_and_diverged_trials_crosses_at_the_bottom() -> None:
    trials = grid({"init_gain": 0.7}, {"init_gain": "upstream"})
    (axes,) = tuning(trials).get_axes()
    np.testing.assert_allclose(drawn(axes, "o", "-"), [[(1e-3, 60), (1e-2, 60)]])
    np.testing.assert_allclose(drawn(axes, "s", "--"), [[(1e-3, 60), (1e-2, 50)]])
    ((cross,),) = drawn(axes, "x")
    assert cross[0] == 1e-2 and 0 < cross[1] < 0.1
    assert names(trials) == ["init_gain 0.7", "init_gain upstream", "chosen", "diverged", "names any listed value"]


def test_two_other_fields_are_told_apart_by_line_style_and_marker() -> None:
    others = [{"init_gain": gain, "tied": tied} for gain in (0.7, "upstream") for tied in (True, False)]
    trials = grid(*others)
    (axes,) = tuning(trials).get_axes()
    assert all(len(drawn(axes, marker, style)) == 1 for marker in ("o", "s") for style in ("-", "--"))
    assert names(trials)[:2] == ["init_gain 0.7, tied true", "init_gain 0.7, tied false"]


def test_without_a_learning_rate_the_first_numeric_field_is_the_axis_else_the_first() -> None:
    def made(*values: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame([trial("gdn2", 100, 0.5, i == 0, **each) for i, each in enumerate(values)])

    both = made({"kind": "a", "gain": 0.0}, {"kind": "b", "gain": 1.0})
    assert fields(both) == ["train.gain", "train.kind"]
    assert tuning(both).get_axes()[0].get_xscale() == "linear"  # zero has no logarithm
    words = made({"kind": "a"}, {"kind": None}, {"kind": [1, 2]})
    assert fields(words) == ["train.kind"]
    (axes,) = tuning(words).get_axes()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "null", "[1, 2]"]
    np.testing.assert_allclose(drawn(axes, "o", "-"), [[(0, 50), (1, 50), (2, 50)]])


def test_a_panel_per_mixer_and_no_chance_where_it_is_not_known() -> None:
    trials = pd.concat([grid({}), grid({}).assign(label="KDA", mixer="kda")]).assign(lengths=None)
    figure = tuning(trials.reset_index(drop=True))
    assert [axes.get_title() for axes in figure.get_axes() if axes.get_title()] == ["GDN2", "KDA"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chosen"]
    assert "over all lengths, on validation rows; trials on 40% of the tokens" in figure.get_suptitle()
