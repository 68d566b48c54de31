"""Figures of speed: training throughput over length beside the paper's, and kernels beside what the device allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from harness.figures.numbers import estimate, lines
from harness.figures.style import BAND, LOOK, STYLE, Look, count, legend, looks, panels, steps_of_two
from harness.published import published
from mixers.registry import get

Row = dict[str, Any]

DIRECTIONS = {"forward": "forward", "forward+backward": "forward and backward", "decode": "decoding one token"}
RATE = "train_tokens_per_second"
ERRORS = ("output_error", "gradient_error", "state_error")


def throughput_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """What the suite `throughput` measured: a row a preset, device, dtype, line, length and batch with tokens a second,
    `value`, and the bounds `low` and `high` of its 95% interval over windows."""
    own = frame[(frame["suite"] == "throughput") & (frame["metric"] == RATE)]
    rows = []
    for machine, found in own.assign(line=lines(own)).groupby(["preset", "device", "dtype"], sort=False):
        for key, records in found.groupby(["mixer", "line", "task", "length"], sort=False):
            number = estimate(records)
            low, high = number.interval or (math.nan, math.nan)
            row = dict(
                zip(("preset", "device", "dtype", "mixer", "line", "task", "length"), (*machine, *key), strict=True)
            )
            row |= {"batch": int(row.pop("task").removeprefix("batch_")), "layouts": _layouts(found)}
            rows.append(row | {"value": number.value, "low": low, "high": high, "band": "95% interval over windows"})
    return pd.DataFrame(rows)


def bench_numbers(rows: Sequence[Row]) -> pd.DataFrame:
    """The same of rows that `bench throughput --out` wrote, from any number of files; the bounds are the 20th and 80th
    percentile of the windows. What was refused or left out has no row; ValueError when that is everything."""
    own = pd.DataFrame([row for row in rows if row["tokens_per_s"] is not None])
    if own.empty:
        raise ValueError(
            f"throughput: none of the {len(rows)} rows has a time; see why in their `refused` or `left_out`"
        )
    own = own.rename(columns={"tokens_per_s": "value", "tokens_per_s_p20": "low", "tokens_per_s_p80": "high"})
    own = own.astype({"low": float, "high": float})  # one window alone has neither
    own = own.assign(line=lines(own.assign(label=own["display"])), band="20th to 80th percentile of windows")
    return own.assign(layouts=_layouts(own))


def _layouts(rows: pd.DataFrame) -> str:
    return ", ".join(name for name in dict.fromkeys(rows["layout"]) if name != "attention")


def throughput(numbers: pd.DataFrame | None) -> Figure:
    """Training throughput over length: the paper's figure 2, and beside it a panel for each preset, device and dtype
    among the numbers, a line a mixer with its band. Without numbers the paper's panel stands alone.

    numbers: of `throughput_numbers` or `bench_numbers`.
    """
    paper = published("figure2")
    paper = paper.assign(line=[get(mixer).display for mixer in paper["mixer"]], low=math.nan, high=math.nan)
    machines = [] if numbers is None else list(numbers.groupby(["preset", "device", "dtype"], sort=False))
    named = [
        (line, mixer) for own in (paper, *(own for _, own in machines)) for line, mixer in own[["line", "mixer"]].values
    ]
    drawn = looks(named)
    with mpl.rc_context(STYLE):
        figure, axs = panels(1, 1 + len(machines), 2.6, len(drawn))
        _rates(axs[0, 0], paper, drawn)
        axs[0, 0].set_title("paper, figure 2: 1.3B parameters, hybrid\none H100, read off the plot to ±0.3")
        for axes, ((preset, device, dtype), own) in zip(axs[0, 1:], machines, strict=True):
            _rates(axes, own, drawn)
            layouts, band = own["layouts"].iloc[0], own["band"].iloc[0]
            axes.set_title(f"{preset}, {layouts or 'attention'}; {band}\n{device}, {dtype}")
        axs[0, 0].set_ylabel("training, thousand tokens/s")
        legend(figure, drawn)
    return figure


def _rates(axes: Axes, numbers: pd.DataFrame, drawn: dict[str, Look]) -> None:
    for name, own in numbers.sort_values("length", kind="stable").groupby("line", sort=False):
        x, value, low, high = (own[key].astype(float) for key in ("length", "value", "low", "high"))
        axes.plot(x, value / 1e3, **asdict(drawn[name]))
        axes.fill_between(x, low / 1e3, high / 1e3, color=drawn[name].color, **BAND)
    _over_length(axes, numbers)


def _over_length(axes: Axes, found: pd.DataFrame) -> None:
    shapes = dict(sorted({(int(t), int(b)) for t, b in zip(found["length"], found["batch"], strict=True)}))
    steps_of_two(axes, shapes, [f"{count(t)}×{b}" for t, b in shapes.items()])
    axes.set_xlabel("length × batch")
    axes.set_ylim(bottom=0)


def kernels(rows: Sequence[Row]) -> Figure:
    """Time of the operators' kernels over length, decoding over batch, with the floor that the device's measured
    ceilings set, dotted: the slower of the least bytes at the speed of a copy and the chunk form's FLOPs at that of a
    matrix product.

    rows: those of kernels.json, which `bench kernels --out` writes on a GPU. Drawn is the head shape of the first row;
    bars span the 20th to the 80th percentile; the legend gives every implementation's worst relative error, since a
    time says nothing of a wrong result. Raises ValueError when no row has a time.
    """
    timed = [row for row in rows if row["ms"] is not None]
    if not timed:
        raise ValueError(f"kernels: none of the {len(rows)} rows has a time; see why in their `refused` or `left_out`")
    shape = [timed[0][key] for key in ("H", "HV", "K", "V")]
    own = pd.DataFrame([row for row in timed if [row[key] for key in ("H", "HV", "K", "V")] == shape])
    directions = [name for name in DIRECTIONS if name in set(own["direction"])]
    own["source"] = own["implementation"].str.split().str[0]  # the direction says which of its forms it is
    forms = list(dict.fromkeys(zip(own["operator"], own["source"], strict=True)))
    drawn = {form: Look(*LOOK[form[0]], "-" if form[1] == "mixerbench" else "--") for form in forms}
    with mpl.rc_context(STYLE):
        figure, axs = panels(1, len(directions), 2.7, 2 * len(forms))
        for direction, axes in zip(directions, axs[0], strict=True):
            _times(axes, own[own["direction"] == direction], drawn, over="B" if direction == "decode" else "T")
            axes.set_title(DIRECTIONS[direction])
        axs[0, 0].set_ylabel("milliseconds")
        handles = [Line2D([], [], **asdict(look)) for look in drawn.values()]
        names = [f"{get(form[0]).display}, {form[1]}{_error(own, form)}" for form in forms]
        floor = Line2D([], [], color="#555555", linestyle=":")
        figure.legend(
            [*handles, floor],
            [*names, "floor: bytes and FLOPs, colour by operator"],
            loc="outside lower center",
            ncols=2,
        )
        first = timed[0]
        copy, matmul = first["copy_bytes_per_s"] / 1e12, first["matmul_flop_per_s"] / 1e12
        figure.suptitle(
            f"{first['device']}, {first['dtype']}, H = {shape[0]}, K = {shape[2]}, V = {shape[3]}; "
            f"copy {copy:.2f} TB/s, matrix product {matmul:.0f} TFLOP/s"
        )
    return figure


def _times(axes: Axes, rows: pd.DataFrame, drawn: dict[tuple[str, str], Look], over: str) -> None:
    for (operator, source), line in rows.sort_values(over).groupby(["operator", "source"], sort=False):
        reach = [line["ms"] - line["ms_p20"], line["ms_p80"] - line["ms"]]
        axes.errorbar(
            line[over], line["ms"], yerr=reach, elinewidth=0.8, capsize=1.5, **asdict(drawn[operator, source])
        )
    for operator, line in rows.sort_values(over).groupby("operator", sort=False):
        floors = line.drop_duplicates(over)
        axes.plot(floors[over], floor_ms(floors), color=LOOK[operator][0], linestyle=":", linewidth=1)
    steps_of_two(axes, rows[over])
    if over == "T":
        shapes = dict(sorted(zip(rows["T"], rows["B"], strict=True)))
        axes.set_xticks(list(shapes), [f"{count(t)}×{b}" for t, b in shapes.items()])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("length × batch" if over == "T" else "batch")


def floor_ms(rows: pd.DataFrame) -> pd.Series:
    """The least time of each row by the device's measured ceilings (the roofline), in ms."""
    bytes_ms = 1e3 * rows["bytes"] / rows["copy_bytes_per_s"]
    return bytes_ms.combine(1e3 * rows["flops"] / rows["matmul_flop_per_s"], max)


def _error(rows: pd.DataFrame, form: tuple[str, str]) -> str:
    own = rows[(rows["operator"] == form[0]) & (rows["source"] == form[1])]
    worst = own[list(ERRORS)].astype(float).max().max()
    return "" if pd.isna(worst) else f" (error ≤ {worst:.0e})"
