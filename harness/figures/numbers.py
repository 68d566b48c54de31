"""The numbers that figures of scores draw, each with its 95% interval, ours and the paper's alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from harness.records import stats
from harness.records.metrics import METRICS, without_details
from harness.records.published import AVERAGE, OPTIONS, SCALE, column_name, published, task_sizes
from harness.records.record import BASELINE, parse_settings
from harness.records.significance import Z_LEVEL, proportion_stderr
from harness.records.stats import ALPHA, Estimate
from mixers.registry import get

KEYS = ["suite", "task", "metric", "length", "preset", "mixer", "line"]
COLUMNS = [*KEYS, "column", "value", "stderr", "low", "high", "seeds", "n", "stand_in", "chance"]
PAPER = "paper"
"""The preset of the paper's numbers."""
INTERVAL = f"{1 - ALPHA:.0%} interval"


def of_suite(frame: pd.DataFrame, suite: str) -> pd.DataFrame:
    """The rows of a suite. Raises ValueError if there are none."""
    rows = frame[frame["suite"] == suite]
    if rows.empty:
        raise ValueError(f"figure: no records of the {suite} suite; name it under suites, submit and collect again")
    return rows


def lines(frame: pd.DataFrame) -> pd.Series:
    """The name of each row's line: its label, with the layout if the label has several."""
    layouts = frame.groupby("label")["layout"].transform("nunique")
    return frame["label"].where(layouts == 1, frame["label"] + " (" + frame["layout"] + ")")


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers from records: one row per task, metric, length, preset and line.

    `stderr` is the standard error of `value` over seeds and samples (over samples alone with one seed, NaN if unknown),
    and `low` and `high` bound its 95% interval. `chance`: the value of guessing, NaN if unknown. `n`: samples.
    `stand_in`: whether it is not the paper's own measurement. Fractions are in percent. Details and baselines are left
    out.
    """
    frame = without_details(frame)
    models = frame[frame["layout"] != BASELINE]
    rows = []
    for key, records in models.assign(line=lines(models)).groupby(KEYS, sort=False, dropna=False):
        number = dict(zip(KEYS, key, strict=True))
        number["chance"] = chance(number["task"], number["metric"], records["settings"])
        number |= {"n": int(records["n"].min()), "stand_in": bool(records["stand_in"].notna().any())}
        rows.append(number | _shown(estimate(records), number["metric"]))
    return _frame(rows)


def chance(task: str, metric: str, settings: Iterable[str]) -> float:
    """The value of guessing, in the unit of figures: as records state it, else one of the options; NaN if unknown.

    settings: those of the records of a number, as JSON text.
    """
    stated = {parse_settings(text).get("chance") for text in settings}
    value = stated.pop() if len(stated) == 1 else None
    if value is None and task in OPTIONS and metric in ("acc", "acc_norm"):
        value = 1 / OPTIONS[task]
    return math.nan if value is None else METRICS[metric].scale * value


def estimate(records: pd.DataFrame) -> Estimate:
    """The number of records that differ only in their seed, with the errors that tables give it."""
    rows = records[["metric", "value", "stderr", "n"]].itertuples(index=False)
    errors = [stats.sampling_error(*row) for row in rows]
    return stats.estimate(list(records["value"]), errors, list(records["n"]))


def printed(table: str, layout: str) -> pd.DataFrame:
    """The paper's `table2`, `table3` or `table4` in one layout, with attention, in the form of `measured`.

    The paper prints no errors. Intervals come from the binomial sampling error over the items of each task; for an
    average, over those of all its tasks. Perplexities have none.
    """
    frame = published(table)
    frame = frame[frame["layout"].isin([layout, "attention"])]
    sizes, rows = task_sizes(), []
    for record in frame.to_dict("records"):
        tasks = [record] if record["task"] != AVERAGE else _averaged(frame, record)
        error, metric = None, METRICS[record["metric"]]
        if metric.percent:
            error = math.hypot(*(proportion_stderr(t["value"], sizes[t["task"]]) for t in tasks)) / len(tasks)
        number = {key: record.get(key) for key in KEYS} | {"line": get(record["mixer"]).display, "preset": PAPER}
        half = math.nan if error is None else Z_LEVEL * error
        number |= {"value": metric.scale * record["value"], "seeds": 1, "stand_in": False}
        number["stderr"] = math.nan if error is None else metric.scale * error
        number["chance"] = chance(record["task"], record["metric"], ())
        number |= {"low": metric.scale * (record["value"] - half), "high": metric.scale * (record["value"] + half)}
        number["n"] = sum(sizes.get(t["task"], 0) for t in tasks)
        rows.append(number)
    return _frame(rows)


def _averaged(frame: pd.DataFrame, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The accuracies that an average of the paper is over."""
    same = (frame["mixer"] == record["mixer"]) & (frame["layout"] == record["layout"])
    accuracies = frame["metric"].map(lambda metric: METRICS[metric].percent) & (frame["task"] != AVERAGE)
    return frame[same & accuracies].to_dict("records")


def _shown(number: Estimate, metric: str) -> dict[str, Any]:
    scale = METRICS[metric].scale
    low, high = number.interval or (math.nan, math.nan)
    error = math.nan if number.stderr is None else scale * number.stderr
    shown = {"value": scale * number.value, "stderr": error, "low": scale * low, "high": scale * high}
    return shown | {"seeds": number.seeds}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    for row in rows:
        length = None if pd.isna(row["length"]) else int(row["length"])
        row["column"] = column_name(row["task"], row["metric"], length)
        if METRICS[row["metric"]].percent:  # an interval of a proportion ends where proportions do
            row["low"], row["high"] = max(row["low"], 0.0), min(row["high"], 100.0)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"length": "Int64"})


def chosen(numbers: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The numbers of the given columns, in their order. Raises ValueError for a column without numbers."""
    known = list(dict.fromkeys(numbers["column"]))
    for name in columns:
        if name not in known:
            raise ValueError(f"--column: no records of {name!r}; there are {', '.join(known)}")
    rows = numbers[numbers["column"].isin(columns)]
    return rows.sort_values("column", key=lambda names: names.map(columns.index), kind="stable")


def wide(numbers: pd.DataFrame) -> pd.DataFrame:
    """Numbers as text: one row per line (and preset, if there are several), one column per column.

    A number is written `72.8 ± 1.0`, with its standard error as in tables, and alone if the error is unknown.
    """
    several = numbers["preset"].nunique() > 1
    names = numbers["line"] + (", " + numbers["preset"] if several else "")
    cells = numbers.assign(line=names, text=[_text(*row) for row in numbers[["value", "stderr"]].to_numpy()])
    table = cells.pivot(index="line", columns="column", values="text")
    ordered = table.loc[list(dict.fromkeys(names)), list(dict.fromkeys(numbers["column"]))]
    return ordered.rename_axis(index=None, columns=None).fillna("–")


def _text(value: float, stderr: float) -> str:
    digits = max(1, 3 - math.ceil(math.log10(abs(value)))) if value and abs(value) < 1 else 1
    return f"{value:.{max(digits, 2)}f}" if math.isnan(stderr) else f"{value:.{digits}f} ± {stderr:.{digits}f}"


def heading(task: str, metric: str, length: Any = None) -> str:
    """Heading of a panel: `mqar acc @16 ↑`."""
    unit = METRICS[metric]
    at = "" if length is None or pd.isna(length) else f" @{int(length)}"
    return f"{task} {unit.display}{at} {unit.arrow}"


def caption(numbers: pd.DataFrame) -> str:
    """Line above the panels: presets, seeds, and what the intervals cover."""
    if PAPER in set(numbers["preset"]):
        return f"paper ({SCALE}), as printed; {INTERVAL} of the sampling error alone"
    seeds = [str(n) for n in dict.fromkeys((numbers["seeds"].min(), numbers["seeds"].max()))]
    over = f"one seed; {INTERVAL} over samples"
    if seeds != ["1"]:
        over = f"mean of {'–'.join(seeds)} seeds; {INTERVAL} over seeds and samples"
    items = "–".join(str(n) for n in dict.fromkeys((numbers["n"].min(), numbers["n"].max())))
    text = f"{', '.join(dict.fromkeys(numbers['preset']))}; {over} ({items} a number)"
    return text + ("\n* a stand-in, not the paper's measurement" if numbers["stand_in"].any() else "")
