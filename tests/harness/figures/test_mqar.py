"""Figures of the suite mqar show the records' numbers; the state that a mixer needs is interpolated per seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from harness.figures.mqar import mqar, mqar_values, over_seeds, positions, state, state_needed
from harness.figures.style import CHANCE
from harness.records.stats import Part, around
from tests.harness.figures.figure_records import mqar_records
from tests.harness.tables.table_records import store

STATES = {"recall-64-quarter": 512, "recall-64": 2048, "recall-64-fourfold": 8192, "recall-32": 512}
ACCURACY = {"recall-64-quarter": (0.1, 0.3), "recall-64": (0.8, 0.6), "recall-64-fourfold": (1.0, 1.0)}
"""Accuracy of 8 pairs by preset and seed."""


def collected(folder: Path, models: Iterable[tuple[str, str, int, dict[int, float], str]]) -> Any:
    """Records, and runs with the size of their states: (mixer, preset, seed, accuracy by pairs, layout) per run."""
    models = list(models)
    frame = store(folder, [record for model in models for record in mqar_records(*model)])
    runs = frame[["run", "preset"]].drop_duplicates()
    return frame, runs.assign(state_floats_per_layer=runs["preset"].map(STATES))


def models(accuracy: dict[str, tuple[float, ...]], mixer: str = "gdn2", layout: str = "recurrent") -> Any:
    return [
        (mixer, preset, seed, {4: 1.0, 8: value}, layout)
        for preset, values in accuracy.items()
        for seed, value in enumerate(values)
    ]


def lines(axes: Axes) -> dict[str, Any]:
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_values_are_percent_with_the_chance_of_their_records(tmp_path: Path) -> None:
    frame, _ = collected(tmp_path, models({"recall-64": (0.8, 0.6)}))
    values = mqar_values(frame)
    assert values[["length", "seed", "value", "chance"]].to_numpy().tolist() == [
        [4, 0, 100, 25],
        [8, 0, 80, 12.5],
        [4, 1, 100, 25],
        [8, 1, 60, 12.5],
    ]
    numbers = over_seeds(values, ["length"]).set_index("length")
    # Two values 20 apart have a standard deviation of √200 and a standard error of 10.
    assert numbers.loc[8, ["value", "low", "high", "seeds"]].tolist() == pytest.approx([70, 60, 80, 2])
    assert over_seeds(values[values["seed"] == 0], ["length"])["low"].isna().all()


def test_accuracy_over_pairs_has_a_panel_per_preset_and_a_line_of_chance(tmp_path: Path) -> None:
    frame, _ = collected(tmp_path, models(ACCURACY))
    drawn = mqar(frame)
    panels = drawn.get_axes()
    assert [axes.get_title() for axes in panels] == list(ACCURACY)
    np.testing.assert_allclose(lines(panels[0])["GDN2"], [(4, 100), (8, 20)])
    chance = panels[0].get_lines()[0]
    np.testing.assert_allclose(chance.get_xydata(), [(4, 25), (8, 12.5)])
    assert chance.get_linestyle() == "--" and chance.get_color() == CHANCE["names any listed value"].color
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["GDN2", "names any listed value"]
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["4", "8"]
    points = panels[0].collections[0].get_offsets()
    np.testing.assert_allclose(sorted(map(tuple, points)), [(4, 100), (4, 100), (8, 10), (8, 30)])


def test_details_are_drawn_by_place_and_by_distance(tmp_path: Path) -> None:
    frame, _ = collected(tmp_path, models({"recall-64": (0.8, 0.6)}))
    place, distance = positions(frame).get_axes()
    np.testing.assert_allclose(lines(place)["GDN2"], [*((at, 70) for at in range(1, 8)), (8, 0)])
    np.testing.assert_allclose(lines(distance)["GDN2"], [(4, 70), (8, 70), (16, 0)])
    assert place.get_ylabel() == "recall-64\n8 pairs, %" and place.get_xlabel() == "place"
    assert all(axes.get_lines()[0].get_ydata()[0] == 12.5 for axes in (place, distance))
    assert all(float(tick).is_integer() and tick >= 1 for tick in place.get_xticks() if 0.5 <= tick <= 8.5)


def test_details_of_many_presets_are_of_the_largest_number_of_pairs_alone(tmp_path: Path) -> None:
    of = {preset: (0.5,) for preset in STATES}
    smaller = [("kda", preset, 0, {4: 0.5}, "recurrent") for preset in STATES]
    frame, _ = collected(tmp_path, [*models(of), *smaller])
    assert [axes.get_ylabel() for axes in positions(frame).get_axes()[::2]] == [f"{p}\n8 pairs, %" for p in of]
    few = positions(frame[frame["preset"] == "recall-64"]).get_axes()[::2]
    assert {axes.get_ylabel() for axes in few} == {"recall-64\n8 pairs, %", "recall-64\n4 pairs, %"}


def test_the_state_needed_is_interpolated_per_seed_over_its_logarithm(tmp_path: Path) -> None:
    frame, runs = collected(tmp_path, models(ACCURACY))
    needed = state_needed(frame, runs).set_index("pairs")
    # From 2^11 to 2^13 the first seed goes from 80 to 100 %, the second from 60 to 100 %: 90 % at 2^12 and 2^12.5.
    row = needed.loc[8]
    low, high = around(12.25, Part(0.5**2 / 4, 1))
    assert row[["floats", "low", "high"]].tolist() == pytest.approx([2**12.25, 2**low, 2**high])
    assert row[["width", "seeds", "below_smallest", "above_largest"]].tolist() == [64, 2, 0, 0]
    first = needed.loc[4]
    assert first[["floats", "below_smallest"]].tolist() == [512, 2] and math.isnan(first["low"])
    assert state_needed(frame, runs, level=0.2).set_index("pairs").loc[8, "below_smallest"] == 1


def test_a_state_beyond_those_tried_is_a_bound(tmp_path: Path) -> None:
    never = {"recall-64-quarter": (0.1, 0.1), "recall-64": (0.8, 0.2)}
    frame, runs = collected(tmp_path, models(never))
    row = state_needed(frame, runs, level=0.8).set_index("pairs").loc[8]
    assert row[["floats", "seeds", "below_smallest", "above_largest"]].tolist() == [2048, 2, 0, 1]
    both = {"recall-64-quarter": (0.9, 0.1), "recall-64": (0.9, 0.2)}
    row = state_needed(*collected(tmp_path / "both", models(both))).set_index("pairs").loc[8]
    assert math.isnan(row["floats"]) and row[["below_smallest", "above_largest"]].tolist() == [1, 1]


def test_a_seed_that_lacks_a_state_does_not_count(tmp_path: Path) -> None:
    partly = {"recall-64-quarter": (0.1, 0.1), "recall-64": (1.0,)}
    row = state_needed(*collected(tmp_path, models(partly))).set_index("pairs").loc[8]
    assert row["seeds"] == 1 and 512 < row["floats"] < 2048 and math.isnan(row["high"])


def test_accuracy_over_the_state_joins_the_presets_of_one_width(tmp_path: Path) -> None:
    other = models({"recall-32": (0.5, 0.5)})
    attention = models({"recall-64": (0.9, 0.7), "recall-64-quarter": (1.0, 1.0)}, "attention", "attention")
    frame, runs = collected(tmp_path, [*models(ACCURACY), *other, *attention])
    drawn = state(frame, runs)
    four, eight, _, below = drawn.get_axes()
    assert [axes.get_title() for axes in (four, eight)] == ["4 pairs", "8 pairs"]
    assert four.get_ylabel() == "width 64\naccuracy, %"  # width 32 has one size alone
    np.testing.assert_allclose(lines(eight)["GDN2"], [(512, 20), (2048, 70), (8192, 100)])
    chance, level, growing = (line.get_ydata()[0] for line in eight.get_lines()[:3])
    assert (chance, level, growing) == pytest.approx((12.5, 90, 90))
    assert [text.get_text() for text in below.get_xticklabels()] == ["512", "2K", "8K"]
    (mark,) = (line for line in below.get_lines() if len(line.get_xdata()) == 1 and line.get_marker() == "o")
    assert mark.get_xdata()[0] == pytest.approx(2**12.25)
    assert "ATTENTION: horizontal, since its state grows with the context" in drawn.get_suptitle()
    assert list(state_needed(frame, runs)["mixer"].unique()) == ["gdn2"]


def test_one_size_of_state_per_width_is_one_clear_error(tmp_path: Path) -> None:
    frame, runs = collected(tmp_path, models({"recall-64": (0.8,), "recall-32": (0.5,)}))
    for needs_sizes in (state, state_needed):
        with pytest.raises(ValueError, match="no mixer has several sizes of state at one width; name such presets"):
            needs_sizes(frame, runs)
    with pytest.raises(ValueError, match="no mixer has several sizes"):
        state(frame, runs.drop(columns="state_floats_per_layer"))
    with pytest.raises(ValueError, match="no records of the mqar suite"):
        mqar(frame[frame["suite"] == "recall"])
