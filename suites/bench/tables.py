"""Time from files of records to table 2 of the paper, for sweeps of many seeds.

Compared: the time to load records with the time to make a table of them. On: records of the paper's 13 models, with as
many seeds as it takes, every number of tables 2 to 4 and values drawn at random. How often: REPEATS times. Spread: the
fastest and slowest total next to the medians, and processor time, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.records.metrics import METRICS
from harness.records.provenance import Provenance, provenance
from harness.records.published import published
from harness.records.record import Measurement, Record, record_line
from harness.records.store import load
from harness.run_folder import RunFolder
from harness.tables.cells import Column
from harness.tables.paper import PAPER_TABLES, paper_table, printed_columns

Row = dict[str, Any]

REPEATS = 3


def run(records: int) -> list[Row]:
    """Return one row: the median seconds to load about `records` records, to make table 2 of them, and of both.

    `cpu_s` is the processor's time for both, `low_s` and `high_s` are the fastest and the slowest total, and `records`
    and `runs` are the numbers actually used. Writing the records is not timed. Raises ValueError if `records` is less
    than one seed takes.
    """
    columns = [c for name in PAPER_TABLES[:3] for c in printed_columns(name) if c.task != "avg"]
    models = published("table2")[["mixer", "layout"]].drop_duplicates().values.tolist()
    seeds = records // (len(models) * len(columns))
    if seeds < 1:
        raise ValueError(f"records: {records} are less than one seed; give at least {len(models) * len(columns)}")
    rng = np.random.default_rng(0)
    birth = provenance("speed", "cpu", torch.float32, "none")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for mixer, layout in models:
                write_run(Path(folder), mixer, layout, seed, columns, rng, birth)
        loading, tabulating, processor = [], [], []
        for _ in range(REPEATS):
            start, busy = time.perf_counter(), time.process_time()
            frame = load(folder)
            loaded = time.perf_counter()
            paper_table("table2", frame)
            loading.append(loaded - start)
            tabulating.append(time.perf_counter() - loaded)
            processor.append(time.process_time() - busy)
    load_s, table_s = statistics.median(loading), statistics.median(tabulating)
    totals = [a + b for a, b in zip(loading, tabulating, strict=True)]
    return [
        {
            "records": len(frame),
            "runs": frame["run"].nunique(),
            "load_s": load_s,
            "table_s": table_s,
            "total_s": load_s + table_s,
            "cpu_s": statistics.median(processor),
            "low_s": min(totals),
            "high_s": max(totals),
            "repeats": REPEATS,
        }
    ]


def write_run(
    folder: Path,
    mixer: str,
    layout: str,
    seed: int,
    columns: list[Column],
    rng: np.random.Generator,
    birth: Provenance,
) -> None:
    """Write the record files of one run, with values from `rng`, to `folder`."""
    run_id = f"{mixer}-{layout}-s{seed}"
    fields = {"run": run_id, "label": mixer, "mixer": mixer, "layout": layout, "preset": "none", "seed": seed}
    for suite in dict.fromkeys(c.suite for c in columns):
        values = {
            c: float(rng.uniform(0.4, 0.6)) + max(0, METRICS[c.metric].range[0]) for c in columns if c.suite == suite
        }
        measurements = [Measurement(suite, c.task, c.metric, value, 0.01, 500, c.length) for c, value in values.items()]
        lines = [record_line(Record.of(m, birth, **fields)) for m in measurements]
        # write_records would wait for the disk at every file.
        path = RunFolder(folder / run_id).records(suite)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def render(rows: list[Row]) -> str:
    """Return the rows as text, under a header that says what was timed."""
    lines = [
        f"{'records':>9}{'runs':>7}{'load, s':>9}{'table, s':>10}{'total, s':>10}{'fastest–slowest':>18}{'CPU, s':>8}"
    ]
    for r in rows:
        spread = f"{r['low_s']:.2f}–{r['high_s']:.2f}"
        lines.append(
            f"{r['records']:9,}{r['runs']:7,}{r['load_s']:9.2f}{r['table_s']:10.2f}{r['total_s']:10.2f}{spread:>18}"
            f"{r['cpu_s']:8.2f}"
        )
    return "\n".join([f"table 2 from files of records, medians of {rows[0]['repeats']}", *lines])
