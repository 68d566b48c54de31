"""How long it takes from files of records to a table of the paper, for sweeps of many seeds."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from harness.records.provenance import Provenance, provenance
from harness.records.published import published
from harness.records.record import Measurement, Record, record_line
from harness.records.store import load
from harness.tables.cells import Column
from harness.tables.paper import PAPER_TABLES, paper_table, printed_columns

REPEATS = 3


def run(records: int) -> dict[str, float]:
    """Seconds to load `records` records and to make table 2 of them, medians of REPEATS, and of the processor for both
    (`cpu_s`), which others on the machine do not lengthen; `records` and `runs` are how many there were.

    The records are those of the paper's 13 models with as many seeds as it takes, each with every number of tables 2 to
    4, with values drawn at random. Writing them is not timed. Raises ValueError below one seed.
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
    found = {"records": len(frame), "runs": frame["run"].nunique(), "load_s": load_s, "table_s": table_s}
    return found | {"total_s": load_s + table_s, "cpu_s": statistics.median(processor)}


def write_run(
    folder: Path,
    mixer: str,
    layout: str,
    seed: int,
    columns: list[Column],
    rng: np.random.Generator,
    birth: Provenance,
) -> None:
    """The files of one run."""
    run_id = f"{mixer}-{layout}-s{seed}"
    own = {"run": run_id, "label": mixer, "mixer": mixer, "layout": layout, "preset": "none", "seed": seed}
    (folder / run_id / "records").mkdir(parents=True)
    for suite in dict.fromkeys(c.suite for c in columns):
        values = {c: float(rng.uniform(0.4, 0.6)) for c in columns if c.suite == suite}
        found = [Measurement(suite, c.task, c.metric, value, 0.01, 500, c.length) for c, value in values.items()]
        lines = [record_line(Record.of(m, birth, **own)) for m in found]
        # Not by write_records, which waits for the disk at every file.
        (folder / run_id / "records" / f"{suite}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
