"""One style for all figures: a colour and a marker per mixer, font sizes, and common parts of axes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; markers work without colour. Figures are
as wide as they are printed, so a font size here is the size on paper.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import cycle
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

WIDTH = 6.75
"""Width in inches, across both columns of a paper."""

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
"""Colour and marker of mixers that LOOK does not list, in order of appearance."""
STYLES = ("-", "--", ":", "-.")
"""Line styles of several rows of one mixer (options, layouts), in order of appearance."""
BAND = {"alpha": 0.18, "linewidth": 0}
FEW = 6
"""Markers of a line of many points: enough to tell lines apart that are alike in grey."""
LEVEL = 0.9
"""Accuracy at which figures of recall say that a task is solved."""

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
    "text.parse_math": False,  # labels are data: a $ is a $
}
"""Matplotlib's settings for every figure, over its own defaults."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def drawing(changes: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """Draw in STYLE with some `changes`, whatever the reader's own matplotlibrc says."""
    return style.context(STYLE | dict(changes or {}), after_reset=True)


@dataclass(frozen=True)
class Look:
    """How a line is drawn, as matplotlib's arguments."""

    color: str
    marker: str
    linestyle: str


CHANCE = {"names any listed value": Look("#777777", "", "--")}
"""The line of chance in figures of multi-query associative recall, by its name in legends."""


def looks(lines: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """The look of every line of a figure by name, from (name, mixer) pairs."""
    others, by_name = cycle(OTHERS), dict[str, Look]()
    by_mixer: dict[str, tuple[str, str]] = {}
    times = Counter[str]()
    for name, mixer in dict.fromkeys(lines):
        if mixer not in by_mixer:
            by_mixer[mixer] = LOOK.get(mixer) or next(others)
        by_name[name] = Look(*by_mixer[mixer], STYLES[times[mixer] % len(STYLES)])
        times[mixer] += 1
    return by_name


def panels(rows: int, columns: int, height: float, names: Collection[str], **options: Any) -> tuple[Figure, Any]:
    """A figure of print width with axes [rows, columns], and room for a legend of the given names.

    height: inches per row of panels, labels included. options: passed to matplotlib's `subplots`.
    """
    lines = -(-len(names) // abreast(names))
    figure = Figure(figsize=(WIDTH, height * rows + 0.3 + 0.16 * lines), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def abreast(names: Collection[str]) -> int:
    """Number of legend entries per row, so that rows are about equally long and fit the page.

    At most four, or five if there are no more than five entries.
    """
    each = 0.5 + 0.052 * max(map(len, names), default=0)  # inches: handle and gaps, then letters of 7 points
    fit = max(1, min(5 if len(names) <= 5 else 4, int(WIDTH / each)))
    rows = max(1, -(-len(names) // fit))
    return max(1, -(-len(names) // rows))


def legend(figure: Figure, looked: dict[str, Look]) -> None:
    """Draw one legend below all panels."""
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle) for look in looked.values()
    ]
    figure.legend(handles, list(looked), loc="outside lower center", ncols=abreast(looked))


def banded(
    axes: Axes, x: pd.Series, value: pd.Series, low: pd.Series, high: pd.Series, look: Look, **line: Any
) -> None:
    """Draw a line with the band between its bounds; a single point gets a bar instead. NaN bounds are not drawn.

    line: further arguments of matplotlib's `plot`.
    """
    axes.plot(x, value, **asdict(look), **line)
    if len(x) > 1:
        axes.fill_between(x, low, high, color=look.color, **BAND)
    else:
        axes.errorbar(x, value, yerr=[value - low, high - value], fmt="none", color=look.color, elinewidth=0.8)


def markers(points: int, index: int, lines: int) -> tuple[int, int]:
    """First point and step of a line's markers, matplotlib's `markevery`: a few, and apart from other lines'."""
    step = max(1, points // FEW)
    return step * index // max(1, lines), step


def steps_of_two(axes: Axes, values: Iterable[int]) -> None:
    """Set the x axis to powers of two, with a tick at each of the values."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [count(tick) for tick in ticks])
    if len(ticks) == 1 and ticks[0] > 0:  # a range of one power's rounding error would put its points outside
        axes.set_xlim(ticks[0] / 2, ticks[0] * 2)


def count(value: int) -> str:
    """A count as text: `320`, `1K`, `16K`; multiples of 1024 are abbreviated."""
    return f"{value // 1024}K" if value and value % 1024 == 0 else str(value)


def power_of_ten(value: float, position: int | None = None) -> str:
    """A power of ten as a tick's label: `1`, `10`, `10⁵`."""
    exponent = round(math.log10(value))
    return f"{10**exponent}" if exponent in (0, 1) else f"10{str(exponent).translate(SUPERSCRIPTS)}"


def size(value: int) -> str:
    """Bytes as text: `512 B`, `16 MiB`; in the largest unit that leaves at least one."""
    power = min(4, max(0, value.bit_length() - 1) // 10)
    return f"{value / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def wrapped(text: str, width: int = 18) -> str:
    """Text with line breaks between words, at most `width` letters per line."""
    return fill(text, width, break_long_words=False, break_on_hyphens=False)
