"""Figures of scores: recall over difficulty, RULER over length, any columns as points, and ablations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from harness.figures.numbers import INTERVAL, PAPER, caption, estimate, heading, measured, of_suite
from harness.figures.style import (
    CHANCE,
    LOOK,
    OTHERS,
    Look,
    banded,
    drawing,
    legend,
    looks,
    panels,
    power_of_ten,
    steps_of_two,
    wrapped,
)
from harness.records import stats
from harness.records.metrics import METRICS, without_details
from harness.records.published import (
    ABLATED,
    PARAMETERS,
    TASK_NAMES,
    VARIANTS,
    WHOLE,
    column_name,
    published,
    task_sizes,
)
from harness.records.record import SampleKey, length_unit
from harness.records.significance import printed_gap

PANELS_ABREAST = (5, 4, 3)
"""Numbers of panels per row; the one that leaves the fewest positions empty is used."""


def recall_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers of the recall figure, in the form of `measured`; `low` and `high` lie one standard error away.

    Raises ValueError if the frame has no records of recall.
    """
    numbers = measured(of_suite(frame, "recall"))
    error = numbers["stderr"].fillna(0)
    return numbers.assign(low=numbers["value"] - error, high=numbers["value"] + error)


def recall(frame: pd.DataFrame) -> Figure:
    """Recall over difficulty: one column of panels per task and metric, one row per preset, one line per mixer.

    Bands are ± one standard error, as in tables. Raises ValueError if the frame has no records of recall.
    """
    numbers = recall_numbers(frame)
    tasks = of_suite(frame, "recall").groupby("task")
    units = {task: length_unit(records["settings"]) or "tokens" for task, records in tasks}
    columns = list(dict.fromkeys(zip(numbers["task"], numbers["metric"], strict=True)))
    presets = list(dict.fromkeys(numbers["preset"]))
    drawn = looks(zip(numbers["line"], numbers["mixer"], strict=True))
    with drawing():
        known = CHANCE if "mqar" in tasks.groups else {}
        figure, axs = panels(len(presets), len(columns), 1.5, drawn | known, sharey=True, sharex="col")
        for row, preset in enumerate(presets):
            for column, (task, metric) in enumerate(columns):
                axes = axs[row, column]
                of = (numbers["task"] == task) & (numbers["metric"] == metric) & (numbers["preset"] == preset)
                own = numbers[of]
                if (task, metric) == ("mqar", "acc"):
                    pairs = sorted(own["length"].astype(int).unique())
                    (look,) = CHANCE.values()
                    guessed = [100 / n for n in pairs]
                    axes.plot(pairs, guessed, color=look.color, linestyle=look.linestyle, linewidth=1, zorder=1)
                _lines(axes, own, drawn)
                axes.set_ylim(-3, 103)
                if row == 0:
                    axes.set_title(heading(task, metric))
                if row == len(presets) - 1:
                    axes.set_xlabel(wrapped(units[task]))
                if column == 0:
                    axes.set_ylabel(f"{preset}\n%")
        legend(figure, drawn | known)
        seeds = "–".join(str(n) for n in dict.fromkeys((numbers["seeds"].min(), numbers["seeds"].max())))
        over = "one seed; band ± one standard error over samples"
        if seeds != "1":
            over = f"mean of {seeds} seeds; band ± one standard error over seeds and samples"
        figure.suptitle(over)
    return figure


def _lines(axes: Axes, numbers: pd.DataFrame, drawn: dict[str, Look]) -> None:
    """Draw one line per mixer over length, with its band. A single point gets a bar instead."""
    for name, own in numbers.sort_values("length", kind="stable").groupby("line", sort=False):
        x, value, low, high = (own[column].astype(float) for column in ("length", "value", "low", "high"))
        banded(axes, x, value, low, high, drawn[name], label=name)
    steps_of_two(axes, numbers["length"].astype(int))


def ruler(numbers: pd.DataFrame) -> Figure:
    """RULER over context length: one column of panels per task, one row per preset and metric, one line per mixer.

    numbers: from `measured` or `printed`. Bands are 95% intervals. The needle's likelihood is left out, since it
    depends on the surrounding prose; its gain is shown. Raises ValueError if there are no numbers of RULER.
    """
    own = of_suite(numbers[numbers["metric"] != "needle_logprob"], "ruler")
    tasks, drawn = list(dict.fromkeys(own["task"])), looks(zip(own["line"], own["mixer"], strict=True))
    rows = list(dict.fromkeys(zip(own["preset"], own["metric"], strict=True)))
    if own["length"].nunique() == 1:  # a single length needs no line
        return scores(own.sort_values("metric", kind="stable"))
    with drawing():
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
    """The paper's name of a task for its own numbers, the task's own name for ours."""
    return TASK_NAMES[task] if preset == PAPER else task


def scores(numbers: pd.DataFrame) -> Figure:
    """One panel per column, with every line's number and its 95% interval.

    numbers: from `measured` or `printed`. With several presets, lines are grouped by preset. Perplexities that span
    more than a factor of ten get a logarithmic axis. A dashed line is the value of guessing, where it is known.
    """
    columns = list(dict.fromkeys(numbers["column"]))
    drawn = looks(zip(numbers["line"], numbers["mixer"], strict=True))
    groups = list(dict.fromkeys(zip(numbers["preset"], numbers["line"], strict=True)))
    several = numbers["preset"].nunique() > 1
    names = [f"{line}, {preset}" if several else line for preset, line in groups]
    wide = min(len(columns), min(PANELS_ABREAST, key=lambda n: -len(columns) % n))
    with drawing():
        figure, axs = panels(-(-len(columns) // wide), wide, 0.5 + 0.15 * len(groups), (), sharey=True)
        for axes in axs.flat[len(columns) :]:
            axes.set_axis_off()
        for column, axes in zip(columns, axs.flat, strict=False):
            own = numbers[numbers["column"] == column].set_index(["preset", "line"])
            for position, group in enumerate(groups):
                if group in own.index:
                    _point(axes, own.loc[group], position, drawn[group[1]])
            first = own.iloc[0]
            if not math.isnan(first["chance"]):
                (look,) = CHANCE.values()
                axes.axvline(first["chance"], color=look.color, linestyle=look.linestyle, linewidth=0.8, zorder=1)
            task = _name(first["task"], first.name[0]) + ("*" if first["stand_in"] else "")
            axes.set_title(wrapped(heading(task, first["metric"], first["length"])))
            if METRICS[first["metric"]].logarithmic and own["value"].max() > 10 * own["value"].min():
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.grid(axis="y", visible=False)
        axs[0, 0].set_yticks(range(len(groups)), names)
        axs[0, 0].set_ylim(len(groups) - 0.5, -0.5)
        percent = any(METRICS[metric].percent for metric in numbers["metric"])
        guessed = "; dashed: guessing" if numbers["chance"].notna().any() else ""
        figure.suptitle(caption(numbers) + ("; accuracies in percent" if percent else "") + guessed)
    return figure


def _point(axes: Axes, number: pd.Series, position: int, look: Look) -> None:
    known = not math.isnan(number["low"])
    reach = [[number["value"] - number["low"]], [number["high"] - number["value"]]] if known else None
    axes.errorbar(
        [number["value"]], [position], xerr=reach, fmt=look.marker, color=look.color, elinewidth=1.0, capsize=1.5
    )


ABLATION_COLUMNS = ["column", "heading", "mixer", "variant", "difference", "low", "high", "source"]


def ablation_numbers(
    frame: pd.DataFrame, samples: dict[SampleKey, tuple[float, ...]], columns: list[str] | None = None
) -> pd.DataFrame:
    """The effect of each ablation: one row per column and variant.

    `difference` is from the unablated model, with the bounds `low` and `high` of its 95% interval (NaN if unknown), by
    the tests that tables use. Fractions are in percentage points. A variant's label is that of another model of the
    same mixer, layout and preset, followed by a comma and the change.

    samples: per-sample scores (`records.load_samples`). columns: by default those of table 5 that have records, else
    all. Raises ValueError if there is no ablation, and for a column without records.
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
    frame = without_details(frame)
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
    # The scores of a perplexity are logarithms, so their differences would be in another unit.
    paired = None
    if metric.percent:
        both = [[samples.get(_key(r)) for r in side.to_dict("records")] for side in (own, base)]
        scores = [s for side in both for s in side]
        complete = all(s is not None for s in scores) and len({len(s) for s in scores}) == 1
        paired = tuple(both) if complete else None
    gap, scale = stats.difference(estimate(own), estimate(base), paired), metric.scale
    return {
        "column": column,
        "heading": heading(first["task"], first["metric"], first["length"]),
        "mixer": first["mixer"],
        "variant": f"{label}\n({base.iloc[0]['label']}, {first['preset']})" if several else label,
        "difference": scale * gap.difference,
        "low": math.nan if gap.low is None else scale * gap.low,
        "high": math.nan if gap.high is None else scale * gap.high,
        "source": f"{base.iloc[0]['label']}, {first['preset']}",
    }


def _key(record: dict[str, Any]) -> SampleKey:
    length = None if pd.isna(record["length"]) else int(record["length"])
    return record["run"], record["suite"], record["task"], record["metric"], length


def published_ablations() -> pd.DataFrame:
    """The paper's table 5 in the form of `ablation_numbers`: differences from its full model.

    Intervals are those of two independent samples of the task's size. Perplexities have none, nor do averages, whose
    tasks the table does not print.
    """
    frame, rows = published("table5"), []
    for key, own in frame.groupby(["task", "metric", "length"], sort=False, dropna=False):
        task, metric, length = key
        values = own.set_index("variant")["value"]
        scale, size = METRICS[metric].scale, task_sizes().get(task)
        shown = "retrieval avg" if own["suite"].iloc[0] == "retrieval" else TASK_NAMES[task]
        for variant in values.index.drop(WHOLE):
            gap = printed_gap(values[variant], values[WHOLE], size) if size and METRICS[metric].percent else None
            rows.append(
                {
                    "column": column_name(task, metric, None if pd.isna(length) else int(length)),
                    "heading": heading(shown, metric, length).replace(" contains", ""),
                    "mixer": ABLATED["mixer"],
                    "variant": VARIANTS[variant],
                    "difference": scale * (values[variant] - values[WHOLE]),
                    "low": math.nan if gap is None else scale * gap.low,
                    "high": math.nan if gap is None else scale * gap.high,
                    "source": f"paper, {PARAMETERS}",
                }
            )
    return pd.DataFrame(rows, columns=ABLATION_COLUMNS)


def ablations(numbers: pd.DataFrame) -> Figure:
    """Differences from the unablated model: one panel per column, one bar per variant with its 95% interval, if known.

    numbers: from `ablation_numbers` or `published_ablations`.
    """
    columns, variants = list(dict.fromkeys(numbers["column"])), list(dict.fromkeys(numbers["variant"]))
    wide = min(4, len(columns))
    with drawing():
        height = 0.55 + 0.2 * sum(1 + name.count("\n") for name in variants)
        figure, axs = panels(-(-len(columns) // wide), wide, height, (), sharey=True)
        for axes in axs.flat[len(columns) :]:
            axes.set_axis_off()
        for column, axes in zip(columns, axs.flat, strict=False):
            own = numbers[numbers["column"] == column]
            positions = [variants.index(name) for name in own["variant"]]
            colors = [LOOK.get(mixer, OTHERS[0])[0] for mixer in own["mixer"]]
            axes.barh(positions, own["difference"], color=colors, height=0.55, alpha=0.75)
            known = own["low"].notna().to_numpy()
            if known.any():
                reach = np.array([own["difference"] - own["low"], own["high"] - own["difference"]])[:, known]
                at = np.array(positions)[known]
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
        figure.suptitle(f"difference from the model as it is ({sources}); bar: {INTERVAL} where it is known")
    return figure
