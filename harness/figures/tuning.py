"""The figure of tuning: the score of every trial over the tuned values, and the values that were chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from harness.figures.numbers import heading, lines
from harness.figures.style import CHANCE, STYLES, Look, abreast, drawing, looks, panels
from harness.records.metrics import METRICS

RATE = "train.lr"
MARKERS = ("o", "s", "^", "D", "v", "P", "*")
ABREAST = (4, 3)
"""Numbers of panels per row; the one that leaves the fewest positions empty is used."""
GREY = "#333333"
FLOOR, STEP = 0.05, 0.07
"""Heights of the crosses of diverged trials, as fractions of a panel: of the first, and from one to the next."""
RING = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": "black", "linestyle": "", "clip_on": False}
CROSS = {"marker": "x", "markersize": 3, "color": GREY, "linestyle": ""}


def tuning_numbers(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with the name of their line, `score` in the unit of figures, and one column per field of the grid.

    `score` is NaN if training diverged. Columns of the grid are named as in the experiment, such as `train.lr`. trials:
    from trials.json. Raises ValueError if there are none.
    """
    if trials.empty:
        raise ValueError("figure: no trials there; give the experiment `tuning`, submit and collect again")
    values = pd.DataFrame([json.loads(text) for text in trials["values"]], index=trials.index, dtype=object)
    scale = METRICS[trials["metric"].iloc[0]].scale
    score = scale * trials["score"].astype(float)
    return trials.assign(line=lines(trials), score=score.where(np.isfinite(score))).join(values)


def fields(trials: pd.DataFrame) -> list[str]:
    """The fields of the grid, that of the x axis first: the learning rate, else the first numeric one, else the first.

    trials: from trials.json.
    """
    values = [json.loads(text) for text in trials["values"]]
    names = list(dict.fromkeys(name for each in values for name in each))
    numeric = [name for name in names if all(_numeric(each.get(name)) for each in values)]
    first = RATE if RATE in numeric else [*numeric, *names][0]
    return [first, *(name for name in names if name != first)]


def tuning(trials: pd.DataFrame) -> Figure:
    """Scores of trials over the tuned values: one panel per mixer and preset.

    The learning rate, or else the first numeric field, is the x axis. The other fields tell lines apart: the first by
    line style, the rest by marker, or both if it is the only one. A point is a trial, a line the mean over the seeds
    that did not diverge; diverged trials are crosses at the bottom, with their line's marker. The chosen values are
    ringed. trials: from trials.json. Raises ValueError if there are none.
    """
    numbers = tuning_numbers(trials)
    axis, *others = fields(trials)
    keys = [tuple(json.dumps(v) for v in row) for row in numbers[others].to_numpy(dtype=object).tolist()]
    numbers = numbers.assign(combination=keys)
    styles = _styles(numbers["combination"], others)
    place = _places(numbers[axis])
    mixers = looks(zip(numbers["line"], numbers["mixer"], strict=True))
    groups = numbers.groupby(["preset", "line"], sort=False)
    wide = min(len(groups), min(ABREAST, key=lambda n: -len(groups) % n))
    chance = _chance(trials)
    handles = _handles(styles, others, numbers["score"].isna().any(), chance is not None)
    with drawing():
        figure, axs = panels(-(-len(groups) // wide), wide, 1.6, handles, sharex=True, sharey=True)
        for axes in axs.flat[len(groups) :]:
            axes.set_axis_off()
        for position, (((preset, name), own), axes) in enumerate(zip(groups, axs.flat, strict=False)):
            if chance is not None:
                axes.axhline(chance, **_line(*CHANCE.values()), linewidth=1, zorder=1)
            _panel(axes, own.assign(x=own[axis].map(json.dumps).map(place)), styles, mixers[name].color)
            axes.set_title(f"{name}, {preset}" if numbers["preset"].nunique() > 1 else name)
            if position + wide >= len(groups):
                axes.set_xlabel(_short(axis))
                axes.tick_params(labelbottom=True)
        _scale(axs[0, 0], place, numbers[axis].map(_numeric).all())
        metric = METRICS[numbers["metric"].iloc[0]]
        if metric.percent:
            axs[0, 0].set_ylim(-3, 103)
        for row in axs:
            row[0].set_ylabel("score, %" if metric.percent else f"score, {metric.display}")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=abreast(handles))
        figure.suptitle(_caption(trials))
    return figure


def _panel(axes: Axes, trials: pd.DataFrame, styles: dict[tuple[str, ...], tuple[str, str]], color: str) -> None:
    """Draw one mixer's trials, each at its `x`."""
    for combination, own in trials.groupby("combination", sort=False):
        style, marker = styles[combination]
        axes.plot(own["x"], own["score"], color=color, linestyle="", marker=marker, markersize=3, alpha=0.45)
        means = own.groupby("x")["score"].mean()
        axes.plot(means.index, means, color=color, linestyle=style, marker=marker)
        best = means[means.index.isin(own.loc[own["chosen"], "x"])]
        if not best.empty:  # an unclipped line without points has no extent that a layout could use
            axes.plot(best.index, best, **RING)
    for x, gone in trials[trials["score"].isna()].groupby("x"):
        for step, combination in enumerate(gone["combination"]):
            at = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            hollow = {"color": color, "markerfacecolor": "white", "markersize": 5, "linestyle": ""}
            height = FLOOR + STEP * step
            axes.plot([x], [height], marker=styles[combination][1], **hollow, **at)
            axes.plot([x], [height], **CROSS, **at)


def _places(values: pd.Series) -> dict[str, float]:
    """The place of each value, as JSON, on the x axis: the number itself, or its rank if some value is no number."""
    if values.map(_numeric).all():
        return {json.dumps(value): float(value) for value in sorted(set(values))}
    return {text: float(rank) for rank, text in enumerate(dict.fromkeys(map(json.dumps, values)))}


def _scale(axes: Axes, place: dict[str, float], numeric: bool) -> None:
    """Set up the x axis, with a tick at each value: logarithmic for positive numbers."""
    x = list(place.values())
    if numeric and min(x) > 0:
        axes.set_xscale("log")
        margin = max(1.3, (max(x) / min(x)) ** 0.12)
        axes.set_xlim(min(x) / margin, max(x) * margin)
    else:
        margin = 0.15 * (max(x) - min(x)) or 0.5
        axes.set_xlim(min(x) - margin, max(x) + margin)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(x, [_text(json.loads(value)) for value in place])


def _styles(combinations: pd.Series, others: Sequence[str]) -> dict[tuple[str, ...], tuple[str, str]]:
    """Line style and marker of each combination of the fields that are not on the x axis."""
    firsts = list(dict.fromkeys(each[:1] for each in combinations))
    rests = list(dict.fromkeys(each[1:] for each in combinations))
    styles = {}
    for each in dict.fromkeys(combinations):
        first = firsts.index(each[:1])
        marker = rests.index(each[1:]) if len(others) > 1 else first
        styles[each] = (STYLES[first % len(STYLES)], MARKERS[marker % len(MARKERS)])
    return styles


def _handles(
    styles: dict[tuple[str, ...], tuple[str, str]], others: Sequence[str], diverged: bool, chance: bool
) -> dict[str, Line2D]:
    """The entries of the legend by name."""
    handles = {}
    for combination, (style, marker) in styles.items() if others else ():
        values = zip(others, combination, strict=True)
        name = ", ".join(f"{_short(field)} {_text(json.loads(value))}" for field, value in values)
        handles[name] = Line2D([], [], color=GREY, linestyle=style, marker=marker)
    handles["chosen"] = Line2D([], [], **RING)
    if diverged:
        handles["diverged"] = Line2D([], [], **CROSS)
    if chance:
        ((name, look),) = CHANCE.items()
        handles[name] = Line2D([], [], **_line(look))
    return handles


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.color, "linestyle": look.linestyle}


def _chance(trials: pd.DataFrame) -> float | None:
    """The score, in percent, of naming any listed value; None if it is not known."""
    by = trials.iloc[0]
    if by["suite"] != "mqar" or by["metric"] != "acc" or not by["lengths"]:
        return None
    return sum(100 / pairs for pairs in by["lengths"]) / len(by["lengths"])


def _caption(trials: pd.DataFrame) -> str:
    by = trials.iloc[0]
    at = f"at {', '.join(map(str, by['lengths']))}" if by["lengths"] else "over all lengths"
    seeds = trials["seed"].nunique()
    share = f"trials on {by['share']:.0%} of the tokens" if by["share"] < 1 else "trials on all tokens"
    return (
        f"mean {heading(by['task'], by['metric'])} {at}, on validation rows; {share}\n"
        f"a point is a trial; lines: mean over {seeds} seeds, without diverged trials"
    )


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(field: str) -> str:
    """The name of a field without its part: `lr`."""
    return field.partition(".")[2]


def _text(value: Any) -> str:
    """A value of the grid as text; numbers with three digits."""
    if _numeric(value):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
