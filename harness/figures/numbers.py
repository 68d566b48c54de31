"""What figures of scores draw: every number with its 95% interval, ours and the paper's alike."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from harness.records import stats
from harness.records.metrics import METRICS
from harness.records.published import SCALE, column_name, published, task_sizes
from harness.records.significance import Z_LEVEL, proportion_stderr
from harness.records.stats import Estimate
from mixers.registry import get

KEYS = ["suite", "task", "metric", "length", "preset", "mixer", "line"]
COLUMNS = [*KEYS, "column", "value", "low", "high", "seeds", "n", "stand_in"]
PAPER = "paper"
"""The preset of the numbers that the paper printed."""
BASELINE = "baseline"


def lines(frame: pd.DataFrame) -> pd.Series:
    """What a line is called: its label, and its layout where the label has several."""
    layouts = frame.groupby("label")["layout"].transform("nunique")
    return frame["label"].where(layouts == 1, frame["label"] + " (" + frame["layout"] + ")")


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Records as numbers of figures: a row a task, metric, length, preset and line, with `value`, the bounds `low` and
    `high` of its 95% interval over seeds and samples (over samples alone with one seed; NaN where nothing is known),
    `seeds`, samples `n` and whether it is a `stand_in` for the paper's measurement. Fractions are in percent. What is
    not finite, and baselines, are left out."""
    kept = frame[frame["value"].map(math.isfinite) & (frame["layout"] != BASELINE)]
    rows = []
    for key, own in kept.assign(line=lines(kept)).groupby(KEYS, sort=False, dropna=False):
        number = dict(zip(KEYS, key, strict=True))
        number |= {"n": int(own["n"].min()), "stand_in": bool(own["stand_in"].notna().any())}
        rows.append(number | _shown(estimate(own), number["metric"]))
    return _frame(rows)


def estimate(records: pd.DataFrame) -> Estimate:
    """The number of records that differ by their seed; where all samples of one agree, its error is that of
    `stats.proportion_floor`, as in tables."""
    errors: list[float | None] = []
    for metric, value, error, n in records[["metric", "value", "stderr", "n"]].itertuples(index=False):
        agreed = METRICS[metric].percent and error == 0 and value in (0.0, 1.0)
        errors.append(stats.proportion_floor(n) if agreed else error if math.isfinite(error) else None)
    return stats.estimate(list(records["value"]), errors, list(records["n"]))


def printed(table: str, layout: str) -> pd.DataFrame:
    """The paper's `table2`, `table3` or `table4` in one layout beside attention, as `measured` gives ours.

    The paper prints no errors. Intervals are the binomial sampling error over the items that its tasks have, of an
    average those of its tasks; perplexities have none.
    """
    frame = published(table)
    frame = frame[frame["layout"].isin([layout, "attention"])]
    sizes, rows = task_sizes(), []
    for record in frame.to_dict("records"):
        tasks = [record] if record["task"] != "avg" else _averaged(frame, record)
        error = None
        if METRICS[record["metric"]].percent:
            error = math.hypot(*(proportion_stderr(t["value"], sizes[t["task"]]) for t in tasks)) / len(tasks)
        number = {key: record.get(key) for key in KEYS} | {"line": get(record["mixer"]).display, "preset": PAPER}
        scale = 100 if METRICS[record["metric"]].percent else 1
        half = math.nan if error is None else Z_LEVEL * error
        number |= {"value": scale * record["value"], "seeds": 1, "stand_in": False}
        number |= {"low": scale * (record["value"] - half), "high": scale * (record["value"] + half)}
        number["n"] = sum(sizes.get(t["task"], 0) for t in tasks)
        rows.append(number)
    return _frame(rows)


def _averaged(frame: pd.DataFrame, record: dict[str, Any]) -> list[dict[str, Any]]:
    same = (frame["mixer"] == record["mixer"]) & (frame["layout"] == record["layout"])
    accuracies = frame["metric"].map(lambda metric: METRICS[metric].percent) & (frame["task"] != "avg")
    return frame[same & accuracies].to_dict("records")


def _shown(found: Estimate, metric: str) -> dict[str, Any]:
    scale = 100 if METRICS[metric].percent else 1
    low, high = found.interval or (math.nan, math.nan)
    return {"value": scale * found.value, "low": scale * low, "high": scale * high, "seeds": found.seeds}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    for row in rows:
        length = None if pd.isna(row["length"]) else int(row["length"])
        row["column"] = column_name(row["task"], row["metric"], length)
        if METRICS[row["metric"]].percent:  # an interval of a proportion ends where proportions do
            row["low"], row["high"] = max(row["low"], 0.0), min(row["high"], 100.0)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"length": "Int64"})


def chosen(numbers: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The numbers of some columns, in their order; ValueError for one that is not there."""
    known = list(dict.fromkeys(numbers["column"]))
    for name in columns:
        if name not in known:
            raise ValueError(f"--column: no records of {name!r}; there are {', '.join(known)}")
    own = numbers[numbers["column"].isin(columns)]
    return own.sort_values("column", key=lambda names: names.map(columns.index), kind="stable")


def wide(numbers: pd.DataFrame) -> pd.DataFrame:
    """Numbers to read: a row a line (with its preset where there are several), a column a column. A number is
    written `72.8 ± 2.0` where the bounds of its 95% interval lie equally far away, `99.0 (95.3 to 100.0)` where they do
    not, and alone where it has none."""
    several = numbers["preset"].nunique() > 1
    names = numbers["line"] + (", " + numbers["preset"] if several else "")
    cells = numbers.assign(line=names, text=[_text(*row) for row in numbers[["value", "low", "high"]].to_numpy()])
    table = cells.pivot(index="line", columns="column", values="text")
    found = table.loc[list(dict.fromkeys(names)), list(dict.fromkeys(numbers["column"]))]
    return found.rename_axis(index=None, columns=None).fillna("–")


def _text(value: float, low: float, high: float) -> str:
    digits = max(1, 3 - math.ceil(math.log10(abs(value)))) if value and abs(value) < 1 else 1
    if math.isnan(low):
        return f"{value:.{max(digits, 2)}f}"
    if math.isclose(value - low, high - value, rel_tol=1e-3):
        return f"{value:.{digits}f} ± {high - value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def heading(task: str, metric: str, length: Any = None) -> str:
    """`mqar acc @16 ↑`."""
    arrow = "↑" if METRICS[metric].higher_is_better else "↓"
    at = "" if length is None or pd.isna(length) else f" @{int(length)}"
    return f"{task} {METRICS[metric].display}{at} {arrow}"


def caption(numbers: pd.DataFrame) -> str:
    """What numbers are and what their intervals cover, as a figure says it above its panels."""
    if PAPER in set(numbers["preset"]):
        return f"paper ({SCALE}), as printed; 95% interval of the sampling error alone"
    seeds = [str(n) for n in dict.fromkeys((numbers["seeds"].min(), numbers["seeds"].max()))]
    over = "one seed; 95% interval over samples"
    if seeds != ["1"]:
        over = f"mean of {'–'.join(seeds)} seeds; 95% interval over seeds and samples"
    items = "–".join(str(n) for n in dict.fromkeys((numbers["n"].min(), numbers["n"].max())))
    text = f"{', '.join(dict.fromkeys(numbers['preset']))}; {over} ({items} a number)"
    return text + ("\n* a stand-in, not the paper's measurement" if numbers["stand_in"].any() else "")
