"""One style for all figures: a colour and a marker a mixer, the same everywhere, and letters that print can show.

Colours are those of Okabe and Ito, told apart by colour-blind readers; markers tell the lines apart without colour.
Figures are as wide as they are printed, so a font size here is the size on paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

WIDTH = 6.75
"""Inches: across both columns of a paper."""

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
BAND = {"alpha": 0.18, "linewidth": 0}

STYLE: dict[str, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "figure.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "figure.dpi": 150,  # on a screen: notebooks
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


def panels(rows: int, columns: int, height: float, entries: int, **options: Any) -> tuple[Figure, Any]:
    """A figure of print width with panels [rows, columns], each `height` inches high with its labels, and room for a
    legend of so many entries."""
    lines = -(-entries // abreast(entries))
    figure = Figure(figsize=(WIDTH, height * rows + 0.3 + 0.16 * lines), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def abreast(entries: int) -> int:
    """Entries of a legend in a row, such that rows are about equally long: four fit, five if that is all."""
    return max(1, entries if entries <= 5 else -(-entries // -(-entries // 4)))


def legend(figure: Figure, looked: dict[str, Look]) -> None:
    """One legend below all panels."""
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle) for look in looked.values()
    ]
    figure.legend(handles, list(looked), loc="outside lower center", ncols=abreast(len(handles)))


def steps_of_two(axes: Axes, values: Iterable[int], labels: Iterable[str] | None = None) -> None:
    """The x axis in powers of two, with a tick at each of the values."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [count(tick) for tick in ticks] if labels is None else list(labels))


def count(value: int) -> str:
    """320, 1K, 16K: multiples of 1024 shortened."""
    return f"{value // 1024}K" if value and value % 1024 == 0 else str(value)


def wrapped(text: str, width: int = 18) -> str:
    return fill(text, width, break_long_words=False, break_on_hyphens=False)
