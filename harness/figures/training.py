"""Figures of training: loss and recall over tokens, and quality against state size and speed."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from harness.data.state_tracking import TASKS, states
from harness.figures.numbers import caption, heading, lines
from harness.figures.style import BAND, CHANCE, LEVEL, Look, drawing, legend, looks, markers, panels
from harness.records.metrics import METRICS
from harness.run_folder import ACCURACY

SPEED = METRICS["tokens_per_second"]
COSTS = {
    "state_floats_per_layer": ("state, floats a layer", False),
    "tokens_per_second": (f"training speed, {SPEED.display}", SPEED.higher_is_better),
}
"""Columns of runs.json: label of the axis, and whether more is better."""
LOGARITHMIC = 20
"""Tokens get a logarithmic axis if the last logged step has seen more than this many times as many as the first."""
RUN = ["run", "label", "mixer", "layout", "preset", "seed"]


def curves(frame: pd.DataFrame) -> Figure:
    """Training loss over tokens, in nats: one panel per preset, one line per mixer.

    A line is the mean over seeds, with a band from the lowest to the highest seed. frame: from
    `harness.figures.learning_curves.read_curves`. Raises ValueError if no run has logged a step.
    """
    if frame.empty:
        raise ValueError("figure: no run has logged a step; submit the experiment and collect again")
    frame = frame.assign(line=lines(frame))
    presets, drawn = list(dict.fromkeys(frame["preset"])), looks(zip(frame["line"], frame["mixer"], strict=True))
    with drawing():
        figure, axs = panels(1, len(presets), 2.4, drawn, sharey=True)
        for preset, axes in zip(presets, axs[0], strict=True):
            of = frame[frame["preset"] == preset]
            for name, own in of.groupby("line", sort=False):
                _curve(axes, own, drawn[name], (list(drawn).index(name), len(drawn)))
            axes.set_xlabel("tokens seen, millions")
            axes.set_title(preset)
            axes.set_xlim(left=0)
        axs[0, 0].set_ylabel("training loss, nats")
        axs[0, 0].set_ylim(bottom=0)
        legend(figure, drawn)
        if frame["seed"].nunique() > 1:
            figure.suptitle("mean over seeds, band from the lowest to the highest")
    return figure


def _curve(axes: Axes, frame: pd.DataFrame, look: Look, place: tuple[int, int]) -> None:
    """Draw one line, up to the step that all of its seeds have reached. place: its index, and the number of lines."""
    tokens, losses = together(frame, "loss")
    x = tokens / 1e6
    axes.plot(x, losses.mean(axis=0), **asdict(look), markevery=markers(len(x), *place), linewidth=1)
    if len(losses) > 1:
        axes.fill_between(x, losses.min(axis=0), losses.max(axis=0), color=look.color, **BAND)


def together(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The curves of several seeds at the same tokens: tokens [P] and values [S, P] of S seeds.

    Seeds may draw rows of different lengths, so that they log at different tokens. Each curve is interpolated linearly
    at the tokens of all, from where the last one begins to where the first one ends; rows without a value are left out.
    """
    curves = [own.sort_values("tokens") for _, own in frame[frame[column].notna()].groupby("seed")]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    tokens = np.unique(np.concatenate([own["tokens"].to_numpy(dtype=float) for own in curves]))
    begin, end = max(own["tokens"].min() for own in curves), min(own["tokens"].max() for own in curves)
    tokens = tokens[(tokens >= begin) & (tokens <= end)]
    return tokens, np.array([np.interp(tokens, own["tokens"], own[column]) for own in curves])


def learning(frame: pd.DataFrame) -> Figure:
    """Accuracy on the rows of training over tokens: one column per recall task, one row per preset, one line per mixer.

    Bands are ± one standard error over seeds. A task whose tokens span more than a factor of LOGARITHMIC gets a
    logarithmic axis. frame: from `harness.figures.learning_curves.read_curves`. Raises ValueError if no run has logged
    accuracies.
    """
    tasks = [name for name in frame if name.startswith(ACCURACY) and frame[name].notna().any()]
    if not tasks:
        raise ValueError("figure: no run has logged an accuracy; train on phases with `mqar` and collect again")
    frame = frame.assign(line=lines(frame))[frame[tasks].notna().any(axis=1)]
    presets = list(dict.fromkeys(frame["preset"]))
    drawn = looks(zip(frame["line"], frame["mixer"], strict=True))
    (chance,) = CHANCE.values()
    names = CHANCE if all(name.startswith(f"{ACCURACY}mqar") for name in tasks) else {"chance": chance}
    with drawing():
        figure, axs = panels(len(presets), len(tasks), 1.5, drawn | names, sharex="col", sharey=True)
        for preset, row in zip(presets, axs, strict=True):
            for name, axes in zip(tasks, row, strict=True):
                task, _, difficulty = name.removeprefix(ACCURACY).partition("@")
                if choices := int(difficulty) if task == "mqar" else states(task) if task in TASKS else 0:
                    axes.axhline(100 / choices, color=chance.color, linestyle=chance.linestyle, linewidth=1)
                axes.axhline(100 * LEVEL, color="#999999", linewidth=0.6)
                for line, own in frame[frame["preset"] == preset].groupby("line", sort=False):
                    tokens, values = together(own, name)
                    _learned(axes, tokens, 100 * values, drawn[line], (list(drawn).index(line), len(drawn)))
                if preset == presets[0]:
                    axes.set_title(f"{difficulty} pairs" if task == "mqar" else name.removeprefix(ACCURACY))
                if preset == presets[-1]:
                    axes.set_xlabel("tokens seen")
            row[0].set_ylabel(f"{preset}\naccuracy, %")
        axs[0, 0].set_ylim(-3, 103)
        for name, axes in zip(tasks, axs[0], strict=True):
            seen = frame.loc[frame[name].notna(), "tokens"]
            if seen.max() > LOGARITHMIC * seen.min():
                axes.set_xscale("log")
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        legend(figure, drawn | names)
        seeds = frame["seed"].nunique()
        over = "one seed" if seeds == 1 else "mean over seeds, band ± one standard error over seeds"
        figure.suptitle(f"on the rows of training, before each step; {over}; grey: {LEVEL:.0%}")
    return figure


def _learned(axes: Axes, tokens: np.ndarray, values: np.ndarray, look: Look, place: tuple[int, int]) -> None:
    if not len(tokens):
        return
    mean = values.mean(axis=0)
    axes.plot(tokens, mean, **asdict(look), markevery=markers(len(tokens), *place), linewidth=1)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        axes.fill_between(tokens, mean - error, mean + error, color=look.color, **BAND)


def tokens_needed(frame: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """Tokens at which the accuracy of training first reaches a level: one row per run and recall task it trained on.

    Columns: those that name a run, `task`, such as `mqar@8`, and `tokens`, those of the first logged row that reaches
    the level; <NA> if none does. A row's accuracy is over the steps since the row before, so a level close to what a
    run hovers at is reached by luck. frame: from `harness.figures.learning_curves.read_curves`. level: a fraction.
    """
    rows = []
    names = [name for name in frame if name.startswith(ACCURACY)]
    for key, own in frame.groupby(RUN, sort=False):
        own = own.sort_values("tokens")
        for name in names:
            if own[name].notna().any():
                reached = own.loc[own[name] >= level, "tokens"]
                tokens = pd.NA if reached.empty else int(reached.iloc[0])
                rows.append((*key, name.removeprefix(ACCURACY), tokens))
    return pd.DataFrame(rows, columns=[*RUN, "task", "tokens"]).astype({"tokens": "Int64"})


def pareto(numbers: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Quality against state size and against training speed: one row of panels per column.

    Each line's numbers have 95% intervals and are joined over presets. The grey line joins the Pareto front (`front`).
    numbers: from `measured`, for the columns to show. runs: from runs.json. Speed is that of the runs' own training, on
    whatever machine that was.
    """
    costs = runs.assign(line=lines(runs)).groupby(["preset", "line"])[list(COSTS)].mean()
    shown = numbers.join(costs, on=["preset", "line"])
    shown = shown[shown[list(COSTS)].notna().all(axis=1)]
    drawn = looks(zip(shown["line"], shown["mixer"], strict=True))
    columns = list(dict.fromkeys(shown["column"]))
    with drawing():
        figure, axs = panels(len(columns), len(COSTS), 2.1, drawn, sharey="row", sharex="col")
        for column, row in zip(columns, axs, strict=True):
            own = shown[shown["column"] == column]
            metric = METRICS[own["metric"].iloc[0]]
            for (cost, (label, more)), axes in zip(COSTS.items(), row, strict=True):
                best = front(own[cost], own["value"], more, metric.higher_is_better)
                axes.plot(
                    own[cost].iloc[best], own["value"].iloc[best], color="#999999", linewidth=3, alpha=0.4, zorder=0
                )
                for name, points in own.groupby("line", sort=False):
                    _points(axes, points.sort_values(cost), cost, drawn[name])
                axes.set_xscale("log", base=2 if cost == "state_floats_per_layer" else 10)
                _plain_ticks(axes, own[cost])
                if column == columns[-1]:
                    axes.set_xlabel(f"{label} {'→' if more else '←'} better")
            first = own.iloc[0]
            unit = ", %" if metric.percent else ""
            task = first["task"] + ("*" if first["stand_in"] else "")
            row[0].set_ylabel(heading(task, first["metric"], first["length"]) + unit)
        legend(figure, drawn)
        presets = list(dict.fromkeys(shown["preset"]))
        figure.suptitle(caption(shown) + ("; a line joins a mixer's presets" if len(presets) > 1 else ""))
    return figure


def front(cost: pd.Series, value: pd.Series, more_is_better: bool, higher_is_better: bool) -> list[int]:
    """Indices of the Pareto front: points that no other point beats on one axis and at least equals on the other.

    They are ordered from the worst cost to the best.
    """
    x = (cost if more_is_better else -cost).tolist()
    y = (value if higher_is_better else -value).tolist()
    unbeaten = [
        i
        for i in range(len(x))
        if not any(x[j] >= x[i] and y[j] >= y[i] and (x[j], y[j]) != (x[i], y[i]) for j in range(len(x)))
    ]
    return sorted(unbeaten, key=lambda i: x[i])


def _points(axes: Axes, points: pd.DataFrame, cost: str, look: Look) -> None:
    known = points[points["low"].notna()]
    axes.plot(points[cost], points["value"], **asdict(look))
    reach = [known["value"] - known["low"], known["high"] - known["value"]]
    axes.errorbar(known[cost], known["value"], yerr=reach, fmt="none", color=look.color, elinewidth=0.8, capsize=1.5)


def _plain_ticks(axes: Axes, values: pd.Series) -> None:
    """Put ticks at round numbers, written in full: an axis that spans little may contain no power of its base."""
    low, high = values.min(), values.max()
    steps = (1, 1.5, 2, 3, 5, 7) if high < 8 * low else (1, 3)
    if axes.get_xaxis().get_transform().base == 2:
        ticks = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_xlim(low / 1.35, high * 1.35)
