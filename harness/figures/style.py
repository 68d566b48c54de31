"""One style for all figures: a colour and a marker a mixer, the same everywhere, and letters that print can show.

Colours are those of Okabe and Ito, told apart by colour-blind readers; markers tell the lines apart without colour.
Figures are as wide as they are printed, so a font size here is the size on paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import cycle
from textwrap import fill
from typing import Any

import pandas as pd
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


def panels(rows: int, columns: int, height: float, names: Collection[str], **options: Any) -> tuple[Figure, Any]:
    """A figure of print width with panels [rows, columns], each `height` inches high with its labels, and room for a
    legend of these names."""
    lines = -(-len(names) // abreast(names))
    figure = Figure(figsize=(WIDTH, height * rows + 0.3 + 0.16 * lines), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def abreast(names: Collection[str]) -> int:
    """Entries of a legend in a row, such that rows are about equally long: at most four, five if that is all, and no
    more than the page is wide."""
    each = 0.5 + 0.052 * max(map(len, names), default=0)  # inches: handle and gaps, then letters of 7 points
    fit = max(1, min(5 if len(names) <= 5 else 4, int(WIDTH / each)))
    rows = max(1, -(-len(names) // fit))
    return max(1, -(-len(names) // rows))


def legend(figure: Figure, looked: dict[str, Look]) -> None:
    """One legend below all panels."""
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle) for look in looked.values()
    ]
    figure.legend(handles, list(looked), loc="outside lower center", ncols=abreast(looked))


def banded(
    axes: Axes, x: pd.Series, value: pd.Series, low: pd.Series, high: pd.Series, look: Look, **line: Any
) -> None:
    """A line with the band between its bounds; one point alone, which has no band, with a bar. NaN bounds are left out.

    line: more of matplotlib's words for the line."""
    axes.plot(x, value, **asdict(look), **line)
    if len(x) > 1:
        axes.fill_between(x, low, high, color=look.color, **BAND)
    else:
        axes.errorbar(x, value, yerr=[value - low, high - value], fmt="none", color=look.color, elinewidth=0.8)


def steps_of_two(axes: Axes, values: Iterable[int]) -> None:
    """The x axis in powers of two, with a tick at each of the values."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [count(tick) for tick in ticks])


def count(value: int) -> str:
    """320, 1K, 16K: multiples of 1024 shortened."""
    return f"{value // 1024}K" if value and value % 1024 == 0 else str(value)


def size(value: int) -> str:
    """512 B, 16 MiB: bytes in the largest unit of 1024 that leaves one or more."""
    power = min(4, max(0, value.bit_length() - 1) // 10)
    return f"{value / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def wrapped(text: str, width: int = 18) -> str:
    return fill(text, width, break_long_words=False, break_on_hyphens=False)
