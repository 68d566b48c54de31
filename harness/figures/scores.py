"""Figures of scores: recall over difficulty, RULER over length, many columns at once, and ablations."""

from __future__ import annotations

import json
import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.figures.numbers import PAPER, caption, estimate, heading, lines
from harness.figures.style import LOOK, STYLE, Look, banded, legend, looks, panels, steps_of_two, wrapped
from harness.records import stats
from harness.records.metrics import METRICS
from harness.records.published import TASK_NAMES, VARIANTS, column_name, published, task_sizes
from harness.records.record import SampleKey
from harness.records.significance import printed_gap

ABREAST = (5, 4, 3)  # panels in a row, whichever leaves the fewest places empty


def recall_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """What the figure of recall shows: a row a task, metric, preset, line and difficulty (`length`) with the `mean`
    over seeds, their standard deviation `sd`, NaN with one, and `seeds`. Fractions are in percent. A line is called by
    its label, and its layout where the label has several.

    Raises ValueError when the frame has no records of recall.
    """
    own = frame[frame["suite"] == "recall"]
    if own.empty:
        raise ValueError("figure: no records of the recall suite; name it under suites, submit and collect again")
    own = own.assign(line=lines(own))
    groups = own.groupby(["task", "metric", "preset", "mixer", "line", "length"], sort=False)["value"]
    numbers = groups.agg(mean="mean", sd="std", seeds="count").reset_index()
    return numbers.assign(mean=100 * numbers["mean"], sd=100 * numbers["sd"])


def recall(frame: pd.DataFrame) -> Figure:
    """Recall over difficulty: a column of panels a task and metric, a row a preset, a line a mixer with a band of
    ± one standard deviation over seeds."""
    numbers = recall_numbers(frame)
    units = {task: _unit(own) for task, own in frame[frame["suite"] == "recall"].groupby("task")}
    columns = list(dict.fromkeys(zip(numbers["task"], numbers["metric"], strict=True)))
    presets = list(dict.fromkeys(numbers["preset"]))
    drawn = looks(zip(numbers["line"], numbers["mixer"], strict=True))
    with mpl.rc_context(STYLE):
        figure, axs = panels(len(presets), len(columns), 1.5, drawn, sharey=True, sharex="col")
        for row, preset in enumerate(presets):
            for column, (task, metric) in enumerate(columns):
                axes = axs[row, column]
                of = (numbers["task"] == task) & (numbers["metric"] == metric) & (numbers["preset"] == preset)
                own = numbers[of]
                band = own.assign(value=own["mean"], low=own["mean"] - own["sd"], high=own["mean"] + own["sd"])
                _lines(axes, band, drawn)
                axes.set_ylim(-3, 103)
                if row == 0:
                    axes.set_title(heading(task, metric))
                if row == len(presets) - 1:
                    axes.set_xlabel(wrapped(units[task]))
                if column == 0:
                    axes.set_ylabel(f"{preset}\n%")
        legend(figure, drawn)
        if (numbers["seeds"] > 1).any():
            figure.suptitle("mean over seeds, band ± one standard deviation")
    return figure


def _lines(axes: Axes, numbers: pd.DataFrame, drawn: dict[str, Look]) -> None:
    """A line a mixer over length, with its band; one point alone has a bar instead."""
    for name, own in numbers.sort_values("length", kind="stable").groupby("line", sort=False):
        x, value, low, high = (own[column].astype(float) for column in ("length", "value", "low", "high"))
        banded(axes, x, value, low, high, drawn[name], label=name)
    steps_of_two(axes, numbers["length"].astype(int))


def _unit(records: pd.DataFrame) -> str:
    """What the difficulties of a task count."""
    return json.loads(records["settings"].iloc[0])["length_unit"]


def ruler(numbers: pd.DataFrame) -> Figure:
    """RULER over context length: a column of panels a task, a row a preset and metric, a line a mixer with the band of
    its 95% interval. numbers: of `measured` or `printed`; the likelihood of the needle depends on the prose around it
    and is left out for its gain.

    Raises ValueError when there is no record of the suite.
    """
    own = numbers[(numbers["suite"] == "ruler") & (numbers["metric"] != "needle_logprob")]
    if own.empty:
        raise ValueError("figure: no records of the ruler suite; name it under suites, submit and collect again")
    tasks, drawn = list(dict.fromkeys(own["task"])), looks(zip(own["line"], own["mixer"], strict=True))
    rows = list(dict.fromkeys(zip(own["preset"], own["metric"], strict=True)))
    if own["length"].nunique() == 1:  # there is nothing to draw a line over
        return scores(own.sort_values("metric", kind="stable"))
    with mpl.rc_context(STYLE):
        figure, axs = panels(len(rows), len(tasks), 1.55, drawn, sharey="row", sharex="col")
        for (preset, metric), row in zip(rows, axs, strict=True):
            for task, axes in zip(tasks, row, strict=True):
                of = (own["preset"] == preset) & (own["metric"] == metric) & (own["task"] == task)
                if of.any():
                    _lines(axes, own[of], drawn)
                if METRICS[metric].percent:
                    axes.set_ylim(-3, 103)
            unit = "accuracy, %" if metric == "contains" else wrapped(METRICS[metric].display)
            row[0].set_ylabel(f"{preset}\n{unit}" if len(set(own["preset"])) > 1 else unit)
        for task, axes in zip(tasks, axs[0], strict=True):
            stand_in = own.loc[own["task"] == task, "stand_in"].any()
            axes.set_title(_name(task, own["preset"].iloc[0]) + ("*" if stand_in else ""))
        for axes in axs[-1]:
            axes.set_xlabel("context, tokens")
        legend(figure, drawn)
        figure.suptitle(caption(own))
    return figure


def _name(task: str, preset: str) -> str:
    """The paper's heading stands over its own numbers alone."""
    return TASK_NAMES[task] if preset == PAPER else task


def scores(numbers: pd.DataFrame) -> Figure:
    """Every column as a panel, in it every line's number with its 95% interval. Perplexities are on a logarithmic
    axis, and in a column that has several presets each is a group."""
    columns = list(dict.fromkeys(numbers["column"]))
    drawn = looks(zip(numbers["line"], numbers["mixer"], strict=True))
    groups = list(dict.fromkeys(zip(numbers["preset"], numbers["line"], strict=True)))
    several = numbers["preset"].nunique() > 1
    names = [f"{line}, {preset}" if several else line for preset, line in groups]
    wide = min(len(columns), min(ABREAST, key=lambda n: -len(columns) % n))
    with mpl.rc_context(STYLE):
        figure, axs = panels(-(-len(columns) // wide), wide, 0.5 + 0.15 * len(groups), (), sharey=True)
        for axes in axs.flat[len(columns) :]:
            axes.set_axis_off()
        for column, axes in zip(columns, axs.flat, strict=False):
            own = numbers[numbers["column"] == column].set_index(["preset", "line"])
            for place, group in enumerate(groups):
                if group in own.index:
                    _point(axes, own.loc[group], place, drawn[group[1]])
            first = own.iloc[0]
            task = _name(first["task"], first.name[0]) + ("*" if first["stand_in"] else "")
            axes.set_title(wrapped(heading(task, first["metric"], first["length"])))
            if first["metric"] in ("word_perplexity", "perplexity") and own["value"].max() > 10 * own["value"].min():
                axes.set_xscale("log")
            else:
                axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.grid(axis="y", visible=False)
        axs[0, 0].set_yticks(range(len(groups)), names)
        axs[0, 0].set_ylim(len(groups) - 0.5, -0.5)
        percent = any(METRICS[metric].percent for metric in numbers["metric"])
        figure.suptitle(caption(numbers) + ("; accuracies in percent" if percent else ""))
    return figure


def _point(axes: Axes, number: pd.Series, place: int, look: Look) -> None:
    known = not math.isnan(number["low"])
    reach = [[number["value"] - number["low"]], [number["high"] - number["value"]]] if known else None
    axes.errorbar(
        [number["value"]], [place], xerr=reach, fmt=look.marker, color=look.color, elinewidth=1.0, capsize=1.5
    )


ABLATION_COLUMNS = ["column", "heading", "mixer", "variant", "difference", "low", "high", "source"]


def ablation_numbers(
    frame: pd.DataFrame, samples: dict[SampleKey, tuple[float, ...]], columns: list[str] | None = None
) -> pd.DataFrame:
    """What each ablation changes: a row a column and variant with its `difference` from the model as it is and the 95%
    interval `low`, `high` (NaN where none is known), as tables compare two rows. Fractions are in percent points.

    A variant is a label that begins with another of the same mixer, layout and preset, and a comma. columns: those of
    table 5 that are there, or else all. Raises ValueError when there is no ablation.
    """
    variants = frame[["mixer", "layout", "preset", "label"]].drop_duplicates()
    pairs = [
        (base, own)
        for base in variants.itertuples(index=False)
        for own in variants.itertuples(index=False)
        if own[:3] == base[:3] and own.label.startswith(f"{base.label}, ")
    ]
    if not pairs:
        raise ValueError(
            "figure: no ablation among the records; write some under `ablations` of the experiment (as table5 does), "
            "submit and collect again"
        )
    keys = frame[["task", "metric", "length"]].itertuples(index=False)
    frame = frame.assign(column=[column_name(t, m, None if pd.isna(n) else int(n)) for t, m, n in keys])
    known = list(dict.fromkeys(frame["column"]))
    if columns is None:
        table5 = [name for name in published_ablations()["column"].unique() if name in known]
        columns = table5 or known
    rows = []
    for column in columns:
        if column not in known:
            raise ValueError(f"--column: no records of {column!r}; there are {', '.join(known)}")
        of = frame[frame["column"] == column]
        for base, own in pairs:
            theirs, ours = (_records(of, variant) for variant in (base, own))
            if not theirs.empty and not ours.empty:
                rows.append(_ablated(column, theirs, ours, samples, several=len({p[0] for p in pairs}) > 1))
    return pd.DataFrame(rows, columns=ABLATION_COLUMNS)


def _records(frame: pd.DataFrame, variant: Any) -> pd.DataFrame:
    same = (frame[["mixer", "layout", "preset", "label"]] == list(variant)).all(axis=1)
    return frame[same].sort_values("seed")


def _ablated(
    column: str, base: pd.DataFrame, own: pd.DataFrame, samples: dict[SampleKey, tuple[float, ...]], several: bool
) -> dict[str, Any]:
    first = own.iloc[0]
    metric, label = METRICS[first["metric"]], str(first["label"]).removeprefix(f"{base.iloc[0]['label']}, ")
    # Scores whose mean is not the value, a perplexity's logarithms, would be differences in another unit.
    paired = None
    if metric.percent:
        both = [[samples.get(_key(r)) for r in side.to_dict("records")] for side in (own, base)]
        complete = (
            all(s is not None for side in both for s in side) and len({len(s) for side in both for s in side}) == 1
        )
        paired = tuple(both) if complete else None
    found = stats.difference(estimate(own), estimate(base), paired)
    scale = 100 if metric.percent else 1
    return {
        "column": column,
        "heading": heading(first["task"], first["metric"], first["length"]),
        "mixer": first["mixer"],
        "variant": f"{label}\n({base.iloc[0]['label']}, {first['preset']})" if several else label,
        "difference": scale * found.difference,
        "low": math.nan if found.low is None else scale * found.low,
        "high": math.nan if found.high is None else scale * found.high,
        "source": f"{base.iloc[0]['label']}, {first['preset']}",
    }


def _key(record: dict[str, Any]) -> SampleKey:
    length = None if pd.isna(record["length"]) else int(record["length"])
    return record["run"], record["suite"], record["task"], record["metric"], length


def published_ablations() -> pd.DataFrame:
    """The paper's table 5 as `ablation_numbers` gives ours: differences from its full model. Intervals are those of two
    independent samples of a task's size; perplexities and averages, whose tasks the table does not print, have none."""
    frame, rows = published("table5"), []
    for key, own in frame.groupby(["task", "metric", "length"], sort=False, dropna=False):
        task, metric, length = key
        values = own.set_index("variant")["value"]
        scale, size = (100 if METRICS[metric].percent else 1), task_sizes().get(task)
        shown = "retrieval avg" if own["suite"].iloc[0] == "retrieval" else TASK_NAMES[task]
        for variant in values.index.drop("full"):
            gap = printed_gap(values[variant], values["full"], size) if size and METRICS[metric].percent else None
            rows.append(
                {
                    "column": column_name(task, metric, None if pd.isna(length) else int(length)),
                    "heading": heading(shown, metric, length).replace(" contains", ""),
                    "mixer": "gdn2",
                    "variant": VARIANTS[variant],
                    "difference": scale * (values[variant] - values["full"]),
                    "low": math.nan if gap is None else scale * gap.low,
                    "high": math.nan if gap is None else scale * gap.high,
                    "source": "paper, 1.3B parameters",
                }
            )
    return pd.DataFrame(rows, columns=ABLATION_COLUMNS)


def ablations(numbers: pd.DataFrame) -> Figure:
    """Differences from the model as it is: a panel a column, a bar a variant with its 95% interval where one is known.
    numbers: of `ablation_numbers` or `published_ablations`."""
    columns, variants = list(dict.fromkeys(numbers["column"])), list(dict.fromkeys(numbers["variant"]))
    wide = min(4, len(columns))
    with mpl.rc_context(STYLE):
        height = 0.55 + 0.2 * sum(1 + name.count("\n") for name in variants)
        figure, axs = panels(-(-len(columns) // wide), wide, height, (), sharey=True)
        for axes in axs.flat[len(columns) :]:
            axes.set_axis_off()
        for column, axes in zip(columns, axs.flat, strict=False):
            own = numbers[numbers["column"] == column]
            places = [variants.index(name) for name in own["variant"]]
            colors = [LOOK.get(mixer, ("#7F7F7F",))[0] for mixer in own["mixer"]]
            axes.barh(places, own["difference"], color=colors, height=0.55, alpha=0.75)
            known = own["low"].notna().to_numpy()
            if known.any():
                reach = np.array([own["difference"] - own["low"], own["high"] - own["difference"]])[:, known]
                at = np.array(places)[known]
                axes.errorbar(
                    own["difference"][known], at, xerr=reach, fmt="none", color="black", elinewidth=0.9, capsize=2
                )
            axes.axvline(0, color="black", linewidth=0.6)
            axes.set_title(own["heading"].iloc[0])
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y", visible=False)
        axs[0, 0].set_yticks(range(len(variants)), variants)
        axs[0, 0].set_ylim(len(variants) - 0.5, -0.5)
        sources = ", ".join(dict.fromkeys(numbers["source"]))
        figure.suptitle(f"difference from the model as it is ({sources}); bar: 95% interval where it is known")
    return figure
