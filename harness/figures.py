"""Figures of collected records, in one style: a colour and a marker a mixer, the same in every figure.

Colours are those of Okabe and Ito, told apart by colour-blind readers; markers tell the lines apart without colour.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.files import write_atomic
from harness.metrics import METRICS

LOOK: dict[str, tuple[str, str]] = {
    "gdn2": ("#D55E00", "o"),
    "kda": ("#0072B2", "s"),
    "gated_deltanet": ("#009E73", "^"),
    "mamba2": ("#E69F00", "D"),
    "mamba3_siso": ("#CC79A7", "v"),
    "mamba3_mimo": ("#56B4E9", "<"),
    "attention": ("#000000", "x"),
}
"""Colour and marker by mixer."""
OTHERS = (("#7F7F7F", "P"), ("#882255", "*"), ("#999933", "X"), ("#332288", ">"))
"""Of mixers that LOOK does not know, in the order in which they appear."""
STYLES = ("-", "--", ":", "-.")
"""Line styles of several rows of one mixer: its options or layouts, in the order in which they appear."""

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "svg.hashsalt": "mixerbench",  # the same numbers give the same file
}


@dataclass(frozen=True)
class Look:
    """How a line is drawn, in matplotlib's words."""

    color: str
    marker: str
    linestyle: str


def looks(lines: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """The look of every line of a figure, from their names and mixers."""
    others, found = cycle(OTHERS), dict[str, Look]()
    own: dict[str, tuple[str, str]] = {}
    times = Counter[str]()
    for name, mixer in dict.fromkeys(lines):
        if mixer not in own:
            own[mixer] = LOOK.get(mixer) or next(others)
        found[name] = Look(*own[mixer], STYLES[times[mixer] % len(STYLES)])
        times[mixer] += 1
    return found


def recall_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """What the figure of recall shows: a row a task, metric, preset, line and difficulty (`length`) with the `mean`
    over seeds, their standard deviation `sd`, NaN with one, and `seeds`. Fractions are in percent. A line is called by
    its label, and its layout where the label has several.

    Raises ValueError when the frame has no records of recall.
    """
    own = frame[frame["suite"] == "recall"]
    if own.empty:
        raise ValueError("figure: no records of the recall suite; name it under suites, submit and collect again")
    layouts = own.groupby("label")["layout"].transform("nunique")
    own = own.assign(line=own["label"].where(layouts == 1, own["label"] + " (" + own["layout"] + ")"))
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
        abreast = min(len(drawn), max(1, round(1.2 * len(columns))))  # the entries of the legend that fit in a row
        height = 1.9 * len(presets) + 0.4 + 0.17 * -(-len(drawn) // abreast)
        figure = Figure(figsize=(2.1 * len(columns) + 0.3, height), layout="constrained")
        panels = figure.subplots(len(presets), len(columns), sharey=True, sharex="col", squeeze=False)
        for row, preset in enumerate(presets):
            for column, (task, metric) in enumerate(columns):
                axes = panels[row, column]
                chosen = (numbers["task"] == task) & (numbers["metric"] == metric) & (numbers["preset"] == preset)
                _lines(axes, numbers[chosen], drawn)
                if row == 0:
                    arrow = "↑" if METRICS[metric].higher_is_better else "↓"
                    axes.set_title(f"{task} {METRICS[metric].display} {arrow}")
                if row == len(presets) - 1:
                    axes.set_xlabel(units[task])
                if column == 0:
                    axes.set_ylabel(f"{preset}\n%")
        named = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=abreast)
        if (numbers["seeds"] > 1).any():
            figure.suptitle("mean over seeds, band ± one standard deviation", fontsize=8)
    return figure


def _lines(axes: Axes, numbers: pd.DataFrame, drawn: dict[str, Look]) -> None:
    for name, own in numbers.sort_values("length", kind="stable").groupby("line", sort=False):
        x, mean, sd = (own[column].astype(float) for column in ("length", "mean", "sd"))
        axes.plot(x, mean, label=name, **asdict(drawn[name]))
        axes.fill_between(x, mean - sd, mean + sd, color=drawn[name].color, alpha=0.2, linewidth=0)
    difficulties = sorted(set(numbers["length"].astype(int)))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(difficulties, [str(difficulty) for difficulty in difficulties])
    axes.set_ylim(-3, 103)


def _unit(records: pd.DataFrame) -> str:
    """What the difficulties of a task count."""
    return json.loads(records["settings"].iloc[0])["length_unit"]


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {"recall": recall}
"""Every figure: from a frame of records (`records.load`)."""


def write_figure(folder: Path, what: str) -> list[Path]:
    """Draw a figure of a collection; writes `<what>.png` and `<what>.svg` beside the records and returns them.

    Raises ValueError when nothing was collected there, for a figure that is not known, and when its records lack.
    """
    if what not in FIGURES:
        raise ValueError(f"--what: unknown value {what!r}; known: {', '.join(FIGURES)}")
    if not (folder / "records.parquet").is_file():
        raise ValueError(f"{folder}: nothing collected there; run collect first")
    figure = FIGURES[what](pd.read_parquet(folder / "records.parquet"))
    paths = []
    with mpl.rc_context(STYLE):
        for kind in ("png", "svg"):
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
            paths.append(folder / f"{what}.{kind}")
            write_atomic(paths[-1], file.getvalue())
    return paths
