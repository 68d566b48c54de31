"""The numbers that the Gated DeltaNet-2 paper printed (arXiv 2605.22791v1), as data, and its names of columns.

The CSV files are laid out as the paper's tables; README.md beside them says where each comes from.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import pandas as pd

from harness.records.metrics import METRICS

PAPER = "arXiv 2605.22791v1"
SCALE = "1.3B parameters, 100B tokens of FineWeb-Edu"

TABLES = {
    "table2": ("table2_language.csv", "language"),
    "table3": ("table3_ruler.csv", "ruler"),
    "table4": ("table4_retrieval.csv", "retrieval"),
    "table5": ("table5_ablations.csv", None),
    "figure2": ("figure2_throughput.csv", "throughput"),
}

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
    "avg": "Avg.",
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
"""The paper's heading of each of its tasks. A stand-in is never shown under it."""

VARIANTS = {
    "w_only": "w only (scalar erase gate)",
    "b_only": "b only (scalar write gate)",
    "full": "full",
    "expanded": "expanded (erase range 2)",
}
"""The rows of table 5."""

SUFFIXES = {"word_perplexity": "_ppl", "perplexity": "_ppl", "acc": "_acc", "acc_norm": "_acc_norm", "contains": ""}
"""What a column's name appends to the task for the metrics of the paper; other metrics append their own name."""

ROW_COLUMNS = ("mixer", "layout", "variant", "erase_gate", "write_gate", "erase_range", "source")
RETRIEVAL_AVERAGE = "retrieval_avg"


def column_name(task: str, metric: str, length: int | None = None) -> str:
    """A column as files name it: `wikitext_ppl`, `hellaswag_acc_norm`, `s_niah_2@4096`."""
    name = task + SUFFIXES.get(metric, f"_{metric}")
    return name if length is None else f"{name}@{length}"


def parse_column(column: str) -> tuple[str, str, int | None]:
    """(task, metric, length) of a column of the paper's tables: the inverse of `column_name` for them."""
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
    """One of `table2` … `table5`, `figure2`, tidy: suite, mixer, layout, task, metric, length, value, source.

    Values are in the metrics' own units, as records hold them: accuracies are fractions, throughput is in tokens
    a second. `table5` adds variant, erase_gate, write_gate and erase_range; `figure2` adds batch. Do not modify
    the frame: it is read once. Raises ValueError for a table that is not known.
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
            row = {"mixer": "gdn2", "layout": "recurrent", **row}
        for column in wide.columns:
            if column not in ROW_COLUMNS:
                cell = figure2_cell(column) if table == "figure2" else table_cell(column, suite)
                scale = cell.pop("scale")
                rows.append({**row, **cell, "value": float(printed[column]) * scale})
    return pd.DataFrame(rows).astype({"length": "Int64"})


def table_cell(column: str, suite: str | None) -> dict:
    """What a column of a table measures, and what turns its printed value into the metric's own unit."""
    task, metric, length = ("avg", "contains", None) if column == RETRIEVAL_AVERAGE else parse_column(column)
    if suite is None:
        suite = "retrieval" if column == RETRIEVAL_AVERAGE else "ruler" if length else "language"
    scale = 0.01 if METRICS[metric].percent else 1.0
    return {"suite": suite, "task": task, "metric": metric, "length": length, "scale": scale}


def figure2_cell(column: str) -> dict:
    """A column `<sequence length>x<batch>` of figure 2, in thousands of tokens a second."""
    length, batch = map(int, column.split("x"))
    cell = {"suite": "throughput", "task": f"batch_{batch}", "metric": "train_tokens_per_second", "length": length}
    return {**cell, "batch": batch, "scale": 1e3}


@cache
def printed_values() -> dict[tuple[str, str, str, str, str, int | None], float]:
    """The paper's tables 2 to 4 and figure 2 by (mixer, layout, suite, task, metric, length), in the metrics' own
    units."""
    frame = pd.concat([published(table) for table in ("table2", "table3", "table4", "figure2")])
    keys = ["mixer", "layout", "suite", "task", "metric", "length"]
    return {
        (*key[:5], None if pd.isna(key[5]) else int(key[5])): value
        for *key, value in frame[[*keys, "value"]].itertuples(index=False)
    }


@cache
def task_sizes() -> dict[str, int]:
    """Samples behind the paper's printed numbers by its name of the task: published/sizes.csv, which has sources.

    The paper does not print them; they are the sizes of the sets that its tasks read. RULER's are per length.
    """
    with (Path(__file__).parent / "sizes.csv").open(encoding="utf-8", newline="") as file:
        return {row["task"]: int(row["n"]) for row in csv.DictReader(file)}
