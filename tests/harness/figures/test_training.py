"""Figures of training: curves over tokens, and quality against cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from harness.figures.collection import write_figure
from harness.figures.numbers import measured
from harness.figures.training import curves, front, pareto


def test_pareto_shows_each_line_at_its_cost_and_joins_what_nothing_beats(folder: Path) -> None:
    state, speed = (axes for axes in draw_pareto(folder).get_axes())
    points = {line.get_label(): line.get_xydata() for line in state.get_lines() if line.get_marker() == "o"}
    (own,) = points.values()
    np.testing.assert_allclose(own, [(512, 80), (2048, 80)])
    assert [label.get_text() for label in state.get_xticklabels()] == ["512", "1,024", "2,048"]
    assert speed.get_xlabel() == "training speed, tokens/s → better"
    values, cost = pd.Series([3.0, 2.0, 1.0, 2.0]), pd.Series([1.0, 2.0, 3.0, 1.0])
    assert front(cost, values, more_is_better=True, higher_is_better=True) == [0, 1, 2]
    assert front(cost, values, more_is_better=False, higher_is_better=True) == [0]
    assert front(cost, values, more_is_better=True, higher_is_better=False) == [2]


def draw_pareto(folder: Path) -> Figure:
    assert len(write_figure(folder, "pareto", ["mqar_acc@8", "mqar_acc@4"])) == 2
    numbers = measured(pd.read_parquet(folder / "records.parquet"))
    return pareto(numbers[numbers["column"] == "mqar_acc@8"], pd.read_json(folder / "runs.json"))


def test_curves_are_means_over_seeds_as_far_as_all_have_come() -> None:
    rows = [
        {"label": "KDA", "mixer": "kda", "layout": "recurrent", "preset": "cpu-1m", "seed": seed}
        | {"tokens": 1e6 * step, "loss": 4.0 - step + seed}
        for seed, steps in ((0, 3), (1, 2))
        for step in range(1, steps + 1)
    ]
    drawn = curves(pd.DataFrame(rows))
    (axes,) = drawn.get_axes()
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [(1, 3.5), (2, 2.5)])
    assert len(axes.collections) == 1 and drawn.get_suptitle() == "mean over seeds, band from the lowest to the highest"
    with pytest.raises(ValueError, match="no run has logged a step"):
        curves(pd.DataFrame(rows)[:0])
