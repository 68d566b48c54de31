"""Figures of speed: training throughput over length, decoding over context, and kernels against the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from harness.figures.numbers import INTERVAL, estimate, lines, of_suite
from harness.figures.style import (
    LOOK,
    WIDTH,
    Look,
    abreast,
    banded,
    count,
    drawing,
    legend,
    looks,
    panels,
    size,
    steps_of_two,
    wrapped,
)
from harness.records.metrics import METRICS
from harness.records.published import PARAMETERS, published
from mixers.registry import get

Row = dict[str, Any]

DIRECTIONS = {"forward": "forward", "forward+backward": "forward and backward", "decode": "decoding one token"}
RATE = "train_tokens_per_second"
DECODING = ("prefill_tokens_per_second", "decode_tokens_per_second", "state_bytes")
NO_ROOM = "decode_out_of_memory"
MACHINE = ["preset", "device", "dtype"]
WINDOWS = f"{INTERVAL} over windows"
ERRORS = ("output_error", "gradient_error", "state_error")


def throughput_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Training throughput from records: one row per preset, device, dtype, line, length and batch.

    `value` is in tokens per second; `low` and `high` bound its 95% interval over windows. Empty without records.
    """
    return _of_windows(frame[(frame["suite"] == "throughput") & (frame["metric"] == RATE)])


def decode_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Speed and state of decoding from records: one row per preset, device, dtype, line, length, batch and metric.

    Columns are those of `throughput_numbers`. A shape that ran out of memory has only the metric
    `decode_out_of_memory`. Raises ValueError if the frame has no records of the suite.
    """
    return _of_windows(of_suite(frame, "decode"))


def _of_windows(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for machine, measured in frame.assign(line=lines(frame)).groupby(MACHINE, sort=False):
        keys = ["mixer", "line", "task", "metric", "length"]
        for key, records in measured.groupby(keys, sort=False):
            number = estimate(records)
            low, high = number.interval or (math.nan, math.nan)
            row = dict(zip((*MACHINE, *keys), (*machine, *key), strict=True))
            row |= {"batch": int(row["task"].removeprefix("batch_")), "layouts": _layouts(measured)}
            rows.append(row | {"value": number.value, "low": low, "high": high, "band": WINDOWS})
    return pd.DataFrame(rows)


def bench_numbers(rows: Sequence[Row]) -> pd.DataFrame:
    """Training throughput from rows that `bench throughput --out` wrote, in the form of `throughput_numbers`.

    The bounds are the 20th and 80th percentile of the windows. Rows without a time are left out. Raises ValueError if
    no row has one.
    """
    own = pd.DataFrame([row for row in rows if row["tokens_per_s"] is not None])
    if own.empty:
        raise ValueError(
            f"throughput: none of the {len(rows)} rows has a time; see why in their `refused` or `left_out`"
        )
    own = own.rename(columns={"tokens_per_s": "value", "tokens_per_s_p20": "low", "tokens_per_s_p80": "high"})
    own = own.astype({"low": float, "high": float})  # a single window has neither
    own = own.assign(line=lines(own.assign(label=own["display"])), band="20th to 80th percentile of windows")
    return own.assign(layouts=_layouts(own))


def _layouts(rows: pd.DataFrame) -> str:
    return ", ".join(name for name in dict.fromkeys(rows["layout"]) if name != "attention")


def throughput(numbers: pd.DataFrame | None) -> Figure:
    """Training throughput over length: the paper's figure 2, then one panel per preset, device and dtype.

    Each panel has one line per mixer, with its band. numbers: from `throughput_numbers` or `bench_numbers`; without
    any, only the paper's panel is drawn.
    """
    paper = published("figure2")
    paper = paper.assign(line=[get(mixer).display for mixer in paper["mixer"]], low=math.nan, high=math.nan)
    machines = [] if numbers is None else list(numbers.groupby(MACHINE, sort=False))
    named = [
        (line, mixer) for own in (paper, *(own for _, own in machines)) for line, mixer in own[["line", "mixer"]].values
    ]
    drawn = looks(named)
    with drawing():
        figure, axs = panels(1, 1 + len(machines), 2.6, drawn)
        _rates(axs[0, 0], paper, drawn)
        letters = 110 // axs.shape[1]
        paper_title = f"paper, figure 2: {PARAMETERS}, hybrid", "one H100, read off the plot to within 0.3"
        axs[0, 0].set_title("\n".join(wrapped(text, letters) for text in paper_title))
        for axes, ((preset, device, dtype), own) in zip(axs[0, 1:], machines, strict=True):
            _rates(axes, own, drawn)
            layouts, band = own["layouts"].iloc[0], own["band"].iloc[0]
            title = f"{preset}, {layouts or 'attention'}; {band}", f"{device}, {dtype}"
            axes.set_title("\n".join(wrapped(text, letters) for text in title))
        axs[0, 0].set_ylabel("training, thousand tokens/s")
        legend(figure, drawn)
    return figure


def _rates(axes: Axes, numbers: pd.DataFrame, drawn: dict[str, Look]) -> None:
    """Draw rates over shapes, one step apart, ordered by length and then batch."""
    shape = pd.Series(list(zip(numbers["length"], numbers["batch"], strict=True)), numbers.index)
    shapes = sorted(set(shape))
    placed = numbers.assign(position=shape.map(shapes.index)).sort_values("position", kind="stable")
    for name, own in placed.groupby("line", sort=False):
        value, low, high = (own[key].astype(float) / 1e3 for key in ("value", "low", "high"))
        banded(axes, own["position"], value, low, high, drawn[name])
    labels = [f"{count(t)}×{b}" for t, b in shapes]
    room = WIDTH / axes.get_gridspec().ncols - 0.4
    rotated = 0.05 * sum(len(label) + 2 for label in labels) > room  # inches, at 6.5 points
    axes.set_xticks(range(len(shapes)), labels, rotation=90 if rotated else 0)
    axes.set_xlabel("length × batch")
    axes.set_ylim(bottom=0)


def decode(numbers: pd.DataFrame) -> Figure:
    """Speed of reading a context, speed of decoding after it, and size of the state, over the context's length.

    One column of panels per metric, one row per batch, preset, device and dtype, one line per mixer with its band.
    Shapes that ran out of memory are named above the panels. numbers: from `decode_numbers`. Raises ValueError if every
    shape ran out of memory.
    """
    timed = numbers[numbers["metric"].isin(DECODING)]
    if timed.empty:
        raise ValueError("figure: every shape of the decode suite ran out of memory; list smaller ones, submit again")
    drawn = looks(zip(timed["line"], timed["mixer"], strict=True))
    rows = [
        (machine, task, own)
        for machine, of in numbers.groupby(MACHINE, sort=False)
        for (_, task), own in of.groupby(["batch", "task"])
    ]
    several = len({machine for machine, _, _ in rows}) > 1
    above = [f"{'' if several else _machine(numbers) + '; '}{WINDOWS}"]
    for _, task, own in rows:
        if full := _without_room(own):
            at = f"{task}, {_machine(own)}" if several else task
            above.append(wrapped(f"{at} out of memory: {full}", 115))
    head = 0.12 * sum(1 + text.count("\n") for text in above)
    with drawing():
        figure, axs = panels(len(rows), len(DECODING), 1.7 + head / len(rows), drawn)
        for (_, task, own), row in zip(rows, axs, strict=True):
            for metric, axes in zip(DECODING, row, strict=True):
                _over_context(axes, own[own["metric"] == metric], drawn)
                steps_of_two(axes, own["length"].astype(int))
            _sizes(row[-1], own.loc[own["metric"] == "state_bytes", "value"])
            row[0].set_ylabel(f"{wrapped(_machine(own), 30)}\n{task}" if several else task)
        for metric, first, last in zip(DECODING, axs[0], axs[-1], strict=True):
            first.set_title(METRICS[metric].display)
            last.set_xlabel("context, tokens")
        legend(figure, drawn)
        figure.suptitle("\n".join(above))
    return figure


def _machine(numbers: pd.DataFrame) -> str:
    preset, device, dtype, layouts = numbers[[*MACHINE, "layouts"]].iloc[0]
    return f"{preset}, {layouts or 'attention'}; {device}, {dtype}"


def _without_room(numbers: pd.DataFrame) -> str:
    full = numbers[numbers["metric"] == NO_ROOM].sort_values("length", kind="stable")
    by_line = full.groupby("line", sort=False)["length"]
    return "; ".join(f"{line} at {', '.join(count(int(n)) for n in lengths)}" for line, lengths in by_line)


def _over_context(axes: Axes, numbers: pd.DataFrame, drawn: dict[str, Look]) -> None:
    for name, own in numbers.sort_values("length", kind="stable").groupby("line", sort=False):
        banded(axes, *(own[key].astype(float) for key in ("length", "value", "low", "high")), drawn[name])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylim(bottom=0)


def _sizes(axes: Axes, values: pd.Series) -> None:
    """Set the y axis to powers of two, with at most about six ticks: attention's state grows with the context."""
    held = values[values > 0]
    if held.empty:
        return
    low, high = math.floor(math.log2(held.min())), math.ceil(math.log2(held.max()))
    ticks = [2**power for power in range(low, high + 1, max(1, math.ceil((high - low) / 5)))]
    axes.set_yscale("log", base=2)
    axes.set_ylim(2.0 ** (low - 0.5), 2.0 ** (high + 0.5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [size(tick) for tick in ticks])


def kernels(rows: Sequence[Row]) -> Figure:
    """Time of the operators' kernels over length (decoding: over batch), with the device's floor as dotted lines.

    The floor is the larger of two times: the least bytes at the measured speed of a copy, and the chunk form's FLOPs at
    that of a matrix product. Bars span the 20th to 80th percentile. The legend gives the worst relative error of each
    implementation, since a time means nothing if the result is wrong.

    rows: those of kernels.json, which `bench kernels --out` writes on a GPU; only the head shape of the first timed row
    is drawn. Raises ValueError if no row has a time.
    """
    timed = [row for row in rows if row["ms"] is not None]
    if not timed:
        raise ValueError(f"kernels: none of the {len(rows)} rows has a time; see why in their `refused` or `left_out`")
    shape = [timed[0][key] for key in ("H", "HV", "K", "V")]
    own = pd.DataFrame([row for row in timed if [row[key] for key in ("H", "HV", "K", "V")] == shape])
    directions = [name for name in DIRECTIONS if name in set(own["direction"])]
    own["source"] = own["implementation"].str.split().str[0]  # without the form, which the direction implies
    forms = list(dict.fromkeys(zip(own["operator"], own["source"], strict=True)))
    drawn = {form: Look(*LOOK[form[0]], "-" if form[1] == "mixerbench" else "--") for form in forms}
    names = [f"{get(form[0]).display}, {form[1]}{_error(own, form)}" for form in forms]
    names.append("floor: bytes and FLOPs, colour by operator")
    with drawing():
        figure, axs = panels(1, len(directions), 2.7, names)
        for direction, axes in zip(directions, axs[0], strict=True):
            _times(axes, own[own["direction"] == direction], drawn, over="B" if direction == "decode" else "T")
            axes.set_title(DIRECTIONS[direction])
        axs[0, 0].set_ylabel("milliseconds")
        handles = [Line2D([], [], **asdict(look)) for look in drawn.values()]
        floor = Line2D([], [], color="#555555", linestyle=":")
        figure.legend([*handles, floor], names, loc="outside lower center", ncols=abreast(names))
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
    """Least time of each row by the device's measured ceilings (the roofline), in ms."""
    bytes_ms = 1e3 * rows["bytes"] / rows["copy_bytes_per_s"]
    return bytes_ms.combine(1e3 * rows["flops"] / rows["matmul_flop_per_s"], max)


def _error(rows: pd.DataFrame, form: tuple[str, str]) -> str:
    own = rows[(rows["operator"] == form[0]) & (rows["source"] == form[1])]
    worst = own[list(ERRORS)].astype(float).max().max()
    return "" if pd.isna(worst) else f" (error ≤ {worst:.0e})"
