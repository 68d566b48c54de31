"""The numbers printed in the Gated DeltaNet-2 paper (arXiv 2605.22791v1), and its names of tasks and columns.

The CSV files next to this module are laid out as the paper's tables; README.md says where each comes from.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import pandas as pd

from harness.records.metrics import METRICS

PAPER = "arXiv 2605.22791v1"
PARAMETERS = "1.3B parameters"
SCALE = f"{PARAMETERS}, 100B tokens of FineWeb-Edu"

TABLES = {
    "table2": ("table2_language.csv", "language"),
    "table3": ("table3_ruler.csv", "ruler"),
    "table4": ("table4_retrieval.csv", "retrieval"),
    "table5": ("table5_ablations.csv", None),
    "figure2": ("figure2_throughput.csv", "throughput"),
}
"""File and suite by table; table 5 has columns of several suites."""

AVERAGE = "avg"
"""The task of a column that averages the table's accuracies."""

TASK_NAMES = {
    "wikitext": "Wiki.",
    "lambada": "LMB.",
    "piqa": "PIQA",
    "hellaswag": "Hella.",
    "winogrande": "Wino.",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
    "social_iqa": "SIQA",
    "boolq": "BoolQ",
    AVERAGE: "Avg.",
    "s_niah_1": "S-NIAH-1",
    "s_niah_2": "S-NIAH-2",
    "s_niah_3": "S-NIAH-3",
    "mk_niah_1": "MK-NIAH-1",
    "swde": "SWDE",
    "squad": "SQuAD",
    "fda": "FDA",
    "triviaqa": "TriviaQA",
    "nq": "NQ",
    "drop": "DROP",
}
"""The paper's heading for each of its tasks. A stand-in is never shown under it."""

OPTIONS = {
    **{"piqa": 2, "hellaswag": 4, "winogrande": 2, "arc_easy": 4, "arc_challenge": 4, "openbookqa": 4},
    **{"social_iqa": 3, "boolq": 2},
}
"""Answers that a multiple-choice task offers; of ARC's questions, a few offer three or five."""

VARIANTS = {
    "w_only": "w only (scalar erase gate)",
    "b_only": "b only (scalar write gate)",
    "full": "full",
    "expanded": "expanded (erase range 2)",
}
"""The rows of table 5."""
WHOLE = "full"
"""The row of table 5 that is the unablated model."""
ABLATED = {"mixer": "gdn2", "layout": "recurrent"}
"""The model that all rows of table 5 vary."""

SUFFIXES = {"word_perplexity": "_ppl", "perplexity": "_ppl", "acc": "_acc", "acc_norm": "_acc_norm", "contains": ""}
"""Suffix of a column's name for each metric of the paper; other metrics append `_` and their own name."""

ROW_COLUMNS = ("mixer", "layout", "variant", "erase_gate", "write_gate", "erase_range", "source")
RETRIEVAL_AVERAGE = "retrieval_avg"


def column_name(task: str, metric: str, length: int | None = None) -> str:
    """Name of a column in files: `wikitext_ppl`, `hellaswag_acc_norm`, `s_niah_2@4096`."""
    name = task + SUFFIXES.get(metric, f"_{metric}")
    return name if length is None else f"{name}@{length}"


def parse_column(column: str) -> tuple[str, str, int | None]:
    """(task, metric, length) of a column of the paper's tables; the inverse of `column_name` for these columns."""
    name, _, length = column.partition("@")
    if name.endswith("_ppl"):
        task = name.removesuffix("_ppl")
        metric = "word_perplexity" if task == "wikitext" else "perplexity"
    else:
        metric = next((m for m in ("acc_norm", "acc") if name.endswith(f"_{m}")), "contains")
        task = name if metric == "contains" else name.removesuffix(f"_{metric}")
    return task, metric, int(length) if length else None


@cache
def published(table: str) -> pd.DataFrame:
    """Return `table2` … `table5` or `figure2` as a tidy frame, one printed number per row.

    Columns: suite, mixer, layout, task, metric, length, value, source. `table5` adds variant, erase_gate, write_gate
    and erase_range; `figure2` adds batch. Values are in the metrics' own units, as in records: accuracies are
    fractions, throughput is in tokens per second. The frame is cached; do not modify it. Raises ValueError for an
    unknown table.
    """
    if table not in TABLES:
        raise ValueError(f"table: {table!r} is not published; choose from {', '.join(TABLES)}")
    file, suite = TABLES[table]
    wide = pd.read_csv(Path(__file__).parent / file)
    rows = []
    for _, printed in wide.iterrows():
        row = {name: printed[name] for name in ROW_COLUMNS if name in wide.columns}
        row["source"] = ", ".join(filter(None, (f"{PAPER}, {table}", row.get("source"))))
        if table == "table5":
            row = {**ABLATED, **row}
        for column in wide.columns:
            if column not in ROW_COLUMNS:
                cell = _figure2_cell(column) if table == "figure2" else _table_cell(column, suite)
                scale = cell.pop("scale")
                rows.append({**row, **cell, "value": float(printed[column]) * scale})
    return pd.DataFrame(rows).astype({"length": "Int64"})


def _table_cell(column: str, suite: str | None) -> dict:
    """The measurement of a column of a table, and the factor from its printed value to the metric's own unit."""
    task, metric, length = (AVERAGE, "contains", None) if column == RETRIEVAL_AVERAGE else parse_column(column)
    if suite is None:
        suite = "retrieval" if column == RETRIEVAL_AVERAGE else "ruler" if length else "language"
    return {"suite": suite, "task": task, "metric": metric, "length": length, "scale": 1 / METRICS[metric].scale}


def _figure2_cell(column: str) -> dict:
    """Measurement of a column `<sequence length>x<batch>` of figure 2; printed in thousands of tokens per second."""
    length, batch = map(int, column.split("x"))
    cell = {"suite": "throughput", "task": f"batch_{batch}", "metric": "train_tokens_per_second", "length": length}
    return {**cell, "batch": batch, "scale": 1e3}


@cache
def printed_values() -> dict[tuple[str, str, str, str, str, int | None], float]:
    """Numbers of tables 2 to 4 and figure 2, in the metrics' own units.

    Keys: (mixer, layout, suite, task, metric, length).
    """
    frame = pd.concat([published(table) for table in ("table2", "table3", "table4", "figure2")])
    keys = ["mixer", "layout", "suite", "task", "metric", "length"]
    return {
        (*key[:5], None if pd.isna(key[5]) else int(key[5])): value
        for *key, value in frame[[*keys, "value"]].itertuples(index=False)
    }


@cache
def task_sizes() -> dict[str, int]:
    """Number of samples of each of the paper's tasks, from sizes.csv, which names the sources.

    The paper does not print them; they are the sizes of the sets that its tasks read, less what its protocol drops.
    RULER's are per length.
    """
    with (Path(__file__).parent / "sizes.csv").open(encoding="utf-8", newline="") as file:
        return {row["task"]: int(row["n"]) for row in csv.DictReader(file)}
