"""Figures of the suite mqar: accuracy over pairs, over the size of the state, and by place and distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.experiments.presets import preset
from harness.figures.numbers import INTERVAL, lines, of_suite
from harness.figures.style import BAND, CHANCE, LEVEL, Look, banded, drawing, legend, looks, panels, steps_of_two
from harness.records.metrics import METRICS
from harness.records.record import length_unit, parse_settings
from harness.records.stats import around, seeds_part

SUITE = "mqar"
ABREAST = (4, 3)
"""Numbers of panels per row; the one that leaves the fewest positions empty is used."""
MOST_ROWS = 6
"""Most rows of panels for all numbers of pairs; a figure that would have more shows the largest number alone."""
MOST_MARKERS = 10
"""Most markers of a line over places."""
GROWING = "attention"
"""The layout whose state grows with the context, so that it has no one size."""
DETAILS = ("acc_by_position", "acc_by_distance")
NEEDED = ["width", "mixer", "line", "pairs", "floats", "low", "high", "seeds", "below_smallest", "above_largest"]


def mqar_values(frame: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """The suite's records of a metric, with the name of their line; `value` and `chance` in percent.

    `chance` is that of naming any listed value. Raises ValueError if the frame has no records of mqar.
    """
    records = of_suite(frame, SUITE)
    records = records.assign(line=lines(records))
    records = records[records["metric"] == metric]
    scale = METRICS[metric].scale
    chance = [scale * parse_settings(text)["chance"] for text in records["settings"]]
    return records.assign(value=scale * records["value"], chance=chance)


def over_seeds(values: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over seeds, one row per group: `value`, `low` and `high` one standard error below and above it, `seeds`.

    The bounds are NaN with one seed. values: from `mqar_values`. by: columns that tell groups apart.
    """
    groups = values.groupby(list(by), sort=False)
    numbers = groups.agg(
        value=("value", "mean"), error=("value", "sem"), seeds=("value", "count"), chance=("chance", "first")
    ).reset_index()
    return numbers.assign(low=numbers["value"] - numbers["error"], high=numbers["value"] + numbers["error"])


def mqar(frame: pd.DataFrame) -> Figure:
    """Accuracy over the number of pairs: one panel per preset, one line per mixer, a faint point per seed.

    Bands are ± one standard error over seeds. Raises ValueError if the frame has no records of mqar.
    """
    values = mqar_values(frame)
    numbers = over_seeds(values, ["preset", "mixer", "line", "length"])
    presets, drawn = list(dict.fromkeys(values["preset"])), looks(zip(values["line"], values["mixer"], strict=True))
    count = len(presets)
    wide = min(count, min(ABREAST, key=lambda n: -count % n))
    with drawing():
        figure, axs = panels(-(-count // wide), wide, 1.75, drawn | CHANCE, sharey=True)
        for axes in axs.flat[count:]:
            axes.set_axis_off()
        for position, (name, axes) in enumerate(zip(presets, axs.flat, strict=False)):
            of, own = numbers[numbers["preset"] == name], values[values["preset"] == name]
            _chance(axes, of["length"], of["chance"])
            _points(axes, own, "length", drawn)
            _lines(axes, of, "length", drawn)
            steps_of_two(axes, of["length"].astype(int))
            axes.set_title(name)
            if position + wide >= count:
                axes.set_xlabel("key-value pairs")
            if position % wide == 0:
                axes.set_ylabel("accuracy, %")
        axs[0, 0].set_ylim(-3, 103)
        legend(figure, drawn | CHANCE)
        figure.suptitle(_caption(numbers, points=True))
    return figure


def positions(frame: pd.DataFrame) -> Figure:
    """Accuracy by the place of the asked pair in the listing, and by the distance from its value to the question.

    One row of panels per preset and number of pairs; the largest number alone if there would be more than MOST_ROWS.
    Bands are ± one standard error over seeds. Raises ValueError if the frame has no records of mqar.
    """
    values = {metric: mqar_values(frame, metric) for metric in DETAILS}
    every = pd.concat(values.values())
    pairs = every["task"].str.partition("@")[2].astype(int)
    rows = list(dict.fromkeys(zip(every["preset"], pairs, every["task"], strict=True)))
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row[1] == max(pairs)]
    drawn = looks(zip(every["line"], every["mixer"], strict=True))
    shown = []
    with drawing():
        figure, axs = panels(len(rows), len(DETAILS), 1.5, drawn | CHANCE, sharey=True)
        for (name, number, task), row in zip(rows, axs, strict=True):
            for metric, axes in zip(DETAILS, row, strict=True):
                of = values[metric]
                of = of[(of["preset"] == name) & (of["task"] == task)]
                numbers = over_seeds(of, ["mixer", "line", "length"])
                shown.append(numbers)
                _chance(axes, numbers["length"], numbers["chance"])
                _lines(axes, numbers, "length", drawn, markevery=-(-numbers["length"].nunique() // MOST_MARKERS))
                if metric == "acc_by_distance":
                    steps_of_two(axes, numbers["length"].astype(int))
                else:
                    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
                    axes.set_xlim(0.5, number + 0.5)
                if name == rows[-1][0] and task == rows[-1][2]:
                    axes.set_xlabel(length_unit(of["settings"]))
            row[0].set_ylabel(f"{name}\n{number} pairs, %")
        axs[0, 0].set_ylim(-3, 103)
        for metric, axes in zip(DETAILS, axs[0], strict=True):
            axes.set_title(f"{METRICS[metric].display} {METRICS[metric].arrow}")
        legend(figure, drawn | CHANCE)
        figure.suptitle(_caption(pd.concat(shown)))
    return figure


def state(frame: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Accuracy over the size of the recurrent state, of presets of one width: one column per number of pairs.

    Each width with several sizes has two rows: accuracies with one line per mixer, bands ± one standard error over
    seeds and a faint point per seed; and the sizes of `state_needed` with their 95% intervals. Attention is a
    horizontal line, its mean over these presets, with a band from the lowest preset to the highest. runs: from
    runs.json. Raises ValueError if the frame has no records of mqar, and if no width has several sizes of state.
    """
    values, needed = _sized(frame, runs), state_needed(frame, runs)
    growing = values[values["layout"] == GROWING]
    own = values[values["layout"] != GROWING]
    numbers = over_seeds(own, ["width", "mixer", "line", "length", "floats"])
    drawn = looks(zip(values["line"], values["mixer"], strict=True))
    widths, pairs = sorted(own["width"].unique()), sorted(own["length"].unique())
    heights = [2.1, 0.25 + 0.11 * own["line"].nunique()] * len(widths)
    with drawing():
        height = sum(heights) / len(heights)
        options = {"sharex": True, "sharey": "row", "height_ratios": heights}
        figure, axs = panels(2 * len(widths), len(pairs), height, drawn | CHANCE, **options)
        for row, width in enumerate(widths):
            for column, number in enumerate(pairs):
                above, below = axs[2 * row, column], axs[2 * row + 1, column]
                of, seeds, line = (
                    part[(part["width"] == width) & (part["length"] == number)] for part in (numbers, own, growing)
                )
                _chance(above, of["floats"], of["chance"])
                above.axhline(100 * LEVEL, color="#999999", linewidth=0.6)
                _level(above, line, drawn)
                _points(above, seeds, "floats", drawn)
                _lines(above, of, "floats", drawn)
                part = needed[(needed["width"] == width) & (needed["pairs"] == number)]
                _needed(below, part, drawn)
                if row == 0:
                    above.set_title(f"{number} pairs")
            above, below = axs[2 * row, 0], axs[2 * row + 1, 0]
            above.set_ylim(-3, 103)
            above.set_ylabel(f"width {width}\naccuracy, %")
            below.set_ylabel(f"{LEVEL:.0%} at")
        steps_of_two(axs[0, 0], own["floats"].astype(int))
        low, high = own["floats"].min(), own["floats"].max()
        axs[0, 0].set_xlim(low / 1.5, high * 1.5)
        for axes in axs[-1]:
            axes.set_xlabel("state, floats a layer")
        flat = {name: Look(drawn[name].color, "", drawn[name].linestyle) for name in growing["line"]}
        legend(figure, drawn | flat | CHANCE)
        names = ", ".join(dict.fromkeys(growing["line"]))
        figure.suptitle(
            _caption(numbers, points=True)
            + (f"\n{names}: horizontal, since its state grows with the context" if names else "")
            + f"\nbelow: smallest state that reaches {LEVEL:.0%}, {INTERVAL} over seeds"
            + "\narrow: some seeds reach it at the smallest state tried, or not at the largest"
        )
    return figure


def state_needed(frame: pd.DataFrame, runs: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """The smallest state, in floats per layer, at which each mixer first reaches an accuracy: rows of NEEDED columns.

    Per seed, accuracy is interpolated linearly over log2 of the state. `floats` is the mean over seeds of that log2,
    raised again; `low` and `high` bound its 95% t-interval, NaN with one seed. `below_smallest` and `above_largest`
    count the seeds that reach the level at the smallest state tried already, or not even at the largest. They enter
    with that state, so that `floats` is a bound, and has no interval; with both kinds it is NaN. Seeds that lack one of
    the mixer's states are left out. Attention is, too: its state grows with the context.

    runs: from runs.json. level: a fraction. Raises ValueError as `state` does.
    """
    values = _sized(frame, runs)
    values = values[values["layout"] != GROWING]
    rows = []
    for key, own in values.groupby(["width", "mixer", "line", "length"], sort=False):
        table = own.pivot_table(index="seed", columns="floats", values="value").dropna()
        if table.empty:
            continue
        sizes = np.log2(table.columns.to_numpy(dtype=float))
        found = np.array([_first(sizes, seed, 100 * level) for seed in table.to_numpy()])
        below, above = int((found == -math.inf).sum()), int((found == math.inf).sum())
        logs = found.clip(sizes[0], sizes[-1])
        mean, part = float(logs.mean()), seeds_part(logs)
        floats, low, high = 2**mean, math.nan, math.nan
        if below and above:
            floats = math.nan
        elif not below and not above and part is not None:
            low, high = (2**bound for bound in around(mean, part))
        rows.append(dict(zip(NEEDED, (*key, floats, low, high, len(table), below, above), strict=True)))
    return pd.DataFrame(rows, columns=NEEDED)


def _first(sizes: np.ndarray, accuracies: np.ndarray, level: float) -> float:
    """log2 of the state at which accuracies first reach a level: -inf if they begin there, inf if they never do."""
    reached = np.flatnonzero(accuracies >= level)
    if not reached.size:
        return math.inf
    at = int(reached[0])
    if at == 0:
        return -math.inf
    return float(np.interp(level, accuracies[at - 1 : at + 1], sizes[at - 1 : at + 1]))


def _sized(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The values of `acc` with the `floats` of their runs' states and their models' `width`, where it has several.

    Of other layouts than attention's, only lines with several states are kept.
    """
    values = mqar_values(frame)
    known = runs.set_index("run").get("state_floats_per_layer", pd.Series(dtype=float))
    values = values.assign(floats=values["run"].map(known), width=values["preset"].map(lambda p: preset(p).d_model))
    values = values[values["floats"].notna()]
    growing = values["layout"] == GROWING
    several = values.groupby(["width", "line"])["floats"].transform("nunique") > 1
    widths = set(values.loc[several & ~growing, "width"])
    if not widths:
        raise ValueError(
            "figure: no mixer has several sizes of state at one width; name such presets, as recall-64 and "
            "recall-64-quarter, submit and collect again"
        )
    return values[(several | growing) & values["width"].isin(widths)]


def _lines(axes: Axes, numbers: pd.DataFrame, over: str, drawn: dict[str, Look], **line: Any) -> None:
    """Draw one line per mixer, with its band. line: further arguments of matplotlib's `plot`."""
    for name, own in numbers.sort_values(over, kind="stable").groupby("line", sort=False):
        x, value, low, high = (own[column].astype(float) for column in (over, "value", "low", "high"))
        banded(axes, x, value, low, high, drawn[name], label=name, **line)


def _points(axes: Axes, values: pd.DataFrame, over: str, drawn: dict[str, Look]) -> None:
    """Draw a faint point per seed; nothing where there is one, which the line shows."""
    for name, own in values.groupby("line", sort=False):
        if own["seed"].nunique() > 1:
            axes.scatter(own[over].astype(float), own["value"], s=5, color=drawn[name].color, alpha=0.35, linewidth=0)


def _level(axes: Axes, values: pd.DataFrame, drawn: dict[str, Look]) -> None:
    """Draw a horizontal line per mixer whose state grows with the context."""
    for name, own in values.groupby("line", sort=False):
        means = own.groupby("preset")["value"].mean()
        look = drawn[name]
        axes.axhline(means.mean(), color=look.color, linestyle=look.linestyle, linewidth=1)
        axes.axhspan(means.min(), means.max(), color=look.color, **BAND)


def _needed(axes: Axes, needed: pd.DataFrame, drawn: dict[str, Look]) -> None:
    """Draw the state that each mixer needs, one below another."""
    names = [name for name in drawn if name in set(needed["line"])]
    for number in needed.itertuples():
        at, look = names.index(number.line), drawn[number.line]
        if number.below_smallest or number.above_largest:
            if not math.isnan(number.floats):
                axes.plot([number.floats], [at], linestyle="")  # a text alone would not widen the axis
                arrow = "←" if number.below_smallest else "→"
                axes.text(number.floats, at, arrow, color=look.color, ha="center", va="center")
            continue
        reach = [[number.floats - number.low], [number.high - number.floats]] if number.low == number.low else None
        axes.errorbar([number.floats], [at], xerr=reach, fmt=look.marker, color=look.color, elinewidth=1, capsize=1.5)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _chance(axes: Axes, x: pd.Series, chance: pd.Series) -> None:
    """Draw the accuracy of naming any listed value over x, under everything else."""
    (look,) = CHANCE.values()
    line = pd.Series(chance.to_numpy(dtype=float), x.to_numpy(dtype=float)).groupby(level=0).first()
    if line.nunique() == 1:
        axes.axhline(line.iloc[0], color=look.color, linestyle=look.linestyle, linewidth=1, zorder=1)
    else:
        axes.plot(line.index, line, color=look.color, linestyle=look.linestyle, linewidth=1, zorder=1)


def _caption(numbers: pd.DataFrame, points: bool = False) -> str:
    seeds = "–".join(str(n) for n in dict.fromkeys((numbers["seeds"].min(), numbers["seeds"].max())))
    if seeds == "1":
        return "one seed"
    return f"mean of {seeds} seeds, band ± one standard error over seeds" + ("; a point is a seed" if points else "")
