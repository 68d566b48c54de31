"""Figures of training: curves over tokens, and quality against cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from harness.figures.collection import write_figure
from harness.figures.numbers import measured
from harness.figures.style import CHANCE
from harness.figures.training import curves, front, learning, pareto, together, tokens_needed


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


def accuracies(seed: int, tokens: list[int], eight: list[float], **four: float) -> list[dict]:
    """Logged steps with accuracies of 8 pairs, and of 4 pairs at the tokens that `four` names as `at_TOKENS`."""
    run = {"run": f"kda-{seed}", "label": "KDA", "mixer": "kda", "layout": "recurrent", "preset": "cpu-1m"}
    return [
        run | {"seed": seed, "tokens": at, "accuracy/mqar@4": four.get(f"at_{at}", np.nan), "accuracy/mqar@8": value}
        for at, value in zip(tokens, eight, strict=True)
    ]


def test_curves_that_log_at_different_tokens_are_joined_by_interpolation() -> None:
    frame = pd.DataFrame([*accuracies(0, [10, 30], [0.0, 1.0]), *accuracies(1, [20, 40], [0.5, 0.5])])
    tokens, values = together(frame, "accuracy/mqar@8")
    np.testing.assert_allclose(tokens, [20, 30])
    np.testing.assert_allclose(values, [[0.5, 1.0], [0.5, 0.5]])
    tokens, values = together(frame, "accuracy/mqar@4")
    assert tokens.size == 0 and values.size == 0


def test_learning_is_accuracy_over_tokens_by_number_of_pairs_with_chance_and_the_level() -> None:
    rows = [*accuracies(0, [10, 300], [0.2, 1.0], at_300=0.8), *accuracies(1, [10, 300], [0.4, 0.8], at_300=0.8)]
    four, eight = learning(pd.DataFrame(rows)).get_axes()
    assert [axes.get_title() for axes in (four, eight)] == ["4 pairs", "8 pairs"]
    chance, level, line = eight.get_lines()
    assert (chance.get_ydata()[0], level.get_ydata()[0]) == (12.5, 90)
    assert chance.get_color() == CHANCE["names any listed value"].color
    np.testing.assert_allclose(line.get_xydata(), [(10, 30), (300, 90)])
    edge = {tuple(point) for point in np.round(eight.collections[0].get_paths()[0].vertices, 6).tolist()}
    assert edge == {(10, 20), (10, 40), (300, 80), (300, 100)}  # values 20 apart have a standard error of 10
    assert (four.get_xscale(), eight.get_xscale()) == ("linear", "log")
    with pytest.raises(ValueError, match="no run has logged an accuracy; train on phases with `mqar`"):
        learning(pd.DataFrame(rows).drop(columns=["accuracy/mqar@4", "accuracy/mqar@8"]))


def test_the_tokens_needed_are_those_of_the_first_row_at_the_level() -> None:
    rows = [*accuracies(0, [10, 20, 30], [0.2, 0.95, 0.9], at_20=0.5), *accuracies(1, [10, 25], [0.3, 0.4])]
    needed = tokens_needed(pd.DataFrame(rows))
    found = [(row.run, row.task, None if pd.isna(row.tokens) else row.tokens) for row in needed.itertuples()]
    assert found == [("kda-0", "mqar@4", None), ("kda-0", "mqar@8", 20), ("kda-1", "mqar@8", None)]
    assert tokens_needed(pd.DataFrame(rows), level=0.4)["tokens"].tolist() == [20, 20, 25]
