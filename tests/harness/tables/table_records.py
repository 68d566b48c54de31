"""Hand-made records for the tests of tables, written and read through the real store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from harness.experiments.schema import Expected
from harness.files import CHECKOUT
from harness.records.answers import grouped, kept
from harness.records.provenance import Provenance
from harness.records.published import printed_values
from harness.records.record import Measurement, Record
from harness.records.stats import mean_stderr
from harness.records.store import load, load_samples, write_records
from harness.tables.cells import Column
from harness.tables.paper import averaged, printed_columns

CERTIFICATE = Provenance(
    config_hash="abc123",
    git_commit="0123456789abcdef",
    git_dirty=False,
    version_python="3.11.7",
    version_torch="2.13.0",
    version_triton=None,
    version_fla=None,
    version_mamba_ssm=None,
    version_lm_eval="0.4.13",
    version_transformers="5.23.0",
    device="Some CPU",
    dtype="float32",
    backend="torch",
    threads=1,
    time="2026-01-01T00:00:00+00:00",
    command="run.py submit demo",
)


def record(label: str, task: str, metric: str, value: float, stderr: float | None, n: int = 100, **changes) -> Record:
    run = {"mixer": label, "layout": "recurrent", "preset": "cpu-1m", "seed": 0, "certificate": CERTIFICATE}
    run |= {key: changes.pop(key) for key in list(changes) if key in run}
    certificate = run.pop("certificate")
    suite = changes.pop("suite", "language")
    return Record.of(
        Measurement(suite, task, metric, value, stderr, n, **changes),
        certificate,
        run=f"{label}-{run['layout']}-{run['seed']}",
        label=label,
        **run,
    )


def store(folder, records: list[Record]) -> pd.DataFrame:
    """Write records by run and suite, and load them as a frame."""
    by_file: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        by_file.setdefault((r.run, r.suite), []).append(r)
    for (run, suite), own in by_file.items():
        write_records(folder / run, suite, own)
    return load([folder / run for run in dict.fromkeys(r.run for r in records)])


RUNS = pd.DataFrame(
    [
        {"label": label, "mixer": mixer, "layout": layout, "run": f"{label}-{layout}-0", "seed": 0, **rest}
        for label, mixer, layout, rest in [
            ("gdn2", "gdn2", "recurrent", {"non_embedding_params": 1184123, "tokens_seen": 4096000}),
            ("kda", "kda", "recurrent", {"non_embedding_params": 1182000, "tokens_seen": 4096000}),
            ("mamba2", "mamba2", "recurrent", {"failure": "loss is nan\nat step 7"}),
            ("attention", "attention", "attention", {"non_embedding_params": 1180000, "tokens_seen": 4096000}),
        ]
    ]
)


def golden_records() -> list[Record]:
    attention = {"layout": "attention"}
    haystack = {"suite": "ruler", "length": 512, "stand_in": "essays are novels", "n": 50}
    return [
        record("gdn2", "piqa", "acc", 0.64, 0.01, 300, limit=300),
        record("gdn2", "novels", "word_perplexity", 40.0, 1.0, stand_in="novels, not WikiText"),
        record("kda", "piqa", "acc", 0.58, 0.01, 300, limit=300),
        record("kda", "novels", "word_perplexity", 50.0, 1.5, stand_in="novels, not WikiText"),
        record("attention", "piqa", "acc", 0.5, 0.03, 300, limit=300, **attention),
        record("attention", "novels", "word_perplexity", 1.5e9, 4e7, stand_in="novels, not WikiText", **attention),
        record("gdn2", "s_niah_2", "contains", 0.0, 0.0, **haystack),
        record("gdn2", "s_niah_2", "needle_gain", 0.25, 0.125, **haystack),
        record("kda", "s_niah_2", "contains", 0.5, 0.07, **haystack),
    ]


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table><h1>&lt;b&gt;</h1>",
    "a|b\n\n# A heading\n`code` *bold* _it_ ~~no~~ [link](javascript:x) ![x](y)",
    "\\input{/etc/passwd} $x_1$ \\| & % # ^ ~ { } `` \\\\",
    '=HYPERLINK("http://x","y")',
    "@SUM(1),=1+1",
    "-1+1",
    "\t+1",
    "*[2pt] \x1b[31mred\x00\u202e \x7f\x85\u2028 end",
)
"""Texts that some form would take for markup, a command or a formula."""


def hostile_collection(folder: Path) -> Path:
    """A collection whose labels, devices, times, tasks, notes, answers and error texts are HOSTILE."""
    folder.mkdir(parents=True)
    texts = kept(HOSTILE, HOSTILE, HOSTILE)
    scored = [tuple(float(n <= i) for n in range(len(HOSTILE))) for i in range(len(HOSTILE))]
    own = {"n": len(HOSTILE), "stand_in": "x", "answers": texts}
    records = [record(f"m{i}", "piqa", "acc", *mean_stderr(s), samples=s, **own) for i, s in enumerate(scored)]
    frame = store(folder / "runs", records).drop(columns="file")
    keys = [(each.run, HOSTILE[0], HOSTILE[3], "acc", None) for each in records]
    for name in ("label", "device", "time", "command", "backend", "git_commit", "version_torch", "stand_in"):
        frame[name] = HOSTILE
    frame[["suite", "task"]] = HOSTILE[0], HOSTILE[3]
    frame.to_parquet(folder / "records.parquet")
    runs = frame[["run", "label", "mixer", "layout", "preset", "seed"]].assign(non_embedding_params=1000)
    failed = {"run": "f", "label": f"{HOSTILE[1]}!", "mixer": "f", "layout": "recurrent", "seed": 1}
    failed["failure"] = HOSTILE[3]
    (folder / "runs.json").write_text(json.dumps([*runs.to_dict("records"), failed]))
    (folder / "samples.json").write_text(json.dumps(list(zip(keys, scored, strict=True))))
    (folder / "answers.json").write_text(json.dumps(grouped(dict.fromkeys(keys, texts))))
    shutil.copy(CHECKOUT / "results" / "demo" / "experiment.yaml", folder)
    return folder


ITEMS = 60
TOKENS = 1_000_000
DISPLAY = {
    "mamba2": "Mamba-2",
    "gated_deltanet": "Gated DeltaNet",
    "gdn2": "Gated DeltaNet-2",
    "attention": "Transformer",
}


def run_row(label: str, mixer: str, layout: str, seed: int, **rest) -> dict:
    row = {"run": f"{label}-{layout}-{seed}", "label": label, "mixer": mixer, "layout": layout, "preset": "cpu-1m"}
    return row | {"seed": seed, "tokens_seen": TOKENS + 512, "non_embedding_params": 1184123} | rest


def expectation(table: str, **tolerance: float) -> Expected:
    return Expected(table=table, preset="cpu-1m", tokens=TOKENS, tolerance=tolerance)


def answers(mixer: str, layout: str, column: Column, shift: float) -> np.ndarray:
    """0/1 scores at about the printed rate plus `shift`; the easiest items are the same for all mixers."""
    share = printed_values()[mixer, layout, *column.key] + shift
    hard = np.random.default_rng(len(column.task)).random(ITEMS)
    return (hard < share).astype(float)


def of_table2(folder: Path):
    """(frame, runs, samples) of a small table 2 with per-sample scores.

    It has a stand-in for WikiText, LAMBADA without an error, a recurrent mixer without one of the tasks, one that
    failed, one whose records cannot be read, and a hybrid at another scale than the paper's.
    """
    records, runs = [], []
    rows = [("gdn2", "recurrent", 0.1), ("gated_deltanet", "recurrent", 0.0), ("mamba2", "recurrent", -0.2)]
    for mixer, layout, shift in [*rows, ("attention", "attention", -0.1), ("gdn2", "hybrid", 0.0)]:
        label = DISPLAY[mixer]
        own = {"mixer": mixer, "layout": layout}
        runs.append(run_row(label, mixer, layout, 0, **({"tokens_seen": 500_000} if layout == "hybrid" else {})))
        stand_in = {"stand_in": "105 articles of another encyclopedia"}
        value = {"recurrent": 16.0, "hybrid": 15.7, "attention": 2e5}[layout] - shift
        records.append(record(label, "wikitext", "word_perplexity", value, 0.25, ITEMS, **stand_in, **own))
        records.append(record(label, "lambada", "perplexity", 11.5 - shift, None, ITEMS, **own))
        for column in [c for c in printed_columns("table2") if c.unit.percent and c.task != "avg"]:
            if (mixer, column.task) == ("mamba2", "boolq"):
                continue
            scores = answers(mixer, layout, column, shift)
            rate = {"limit": ITEMS, "samples": tuple(scores), "settings": {"items": column.task}}
            records.append(record(label, column.task, column.metric, *mean_stderr(scores), ITEMS, **rate, **own))
    runs.append(run_row("KDA", "kda", "recurrent", 0, failure="loss is nan\nat step 7", tokens_seen=None))
    broken = {"language": "runs/x/records/language.jsonl, line 1: schema 2 is newer than this version reads, 1; update"}
    runs.append(run_row("Mamba-3 SISO", "mamba3_siso", "recurrent", 0, unreadable=broken))
    return store(folder, records), pd.DataFrame(runs), load_samples(folder)


def of_table5(folder: Path):
    """(frame, runs, samples) of a small table 5 with two seeds and every task of its averages.

    The rows are the whole model, one with a scalar erase gate, and the paper's fourth variant with unknown options.
    """
    variants = {
        "Gated DeltaNet-2": {"erase_gate": "channel", "write_gate": "channel", "erase_range": 1},
        "Gated DeltaNet-2, scalar erase gate": {"erase_gate": "scalar", "write_gate": "channel", "erase_range": 1},
        "Gated DeltaNet-2, erase range 2": None,
    }
    columns = {c.key: c for c in printed_columns("table5")}
    keys = [key for c in columns.values() for key in (averaged(c) or [c.key])]
    records, runs = [], []
    for (label, options), shift in zip(variants.items(), (0.0, -0.03, 0.0), strict=True):
        for seed in (0, 1):
            runs.append(run_row(label, "gdn2", "recurrent", seed, options=options))
            for suite, task, metric, length in keys:
                printed = printed_values()["gdn2", "recurrent", suite, task, metric, length]
                value = printed - 30 * shift if printed > 1 else printed + shift + 0.004 * seed
                own = {"suite": suite, "length": length, "mixer": "gdn2"}
                records.append(record(label, task, metric, value, 0.01, 2000, seed=seed, **own))
    return store(folder, records), pd.DataFrame(runs), load_samples(folder)
