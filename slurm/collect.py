"""Gathering what an experiment has produced: one data frame of records, one of runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config import DataConfig, Experiment
from harness.data import load_tokenizer
from harness.files import write_atomic
from harness.provenance import provenance
from harness.records import Record, load, load_samples, write_records
from harness.tables import comparison
from harness.train import read_birth, read_summary
from slurm.plan import RunPlan, plan
from slurm.state import evaluated, evaluation_key, read_status
from suites import suite

BASELINE = "unigram"


def runs_frame(plans: list[RunPlan]) -> pd.DataFrame:
    """A row a run: what was built, how it was trained, and why it failed if it did."""
    rows: list[dict[str, Any]] = []
    for work in plans:
        config = work.config
        row = {"run": config.run_id, "label": config.label, "mixer": config.mixer, "layout": config.layout}
        row |= {"preset": config.preset, "seed": config.seed}
        summary = read_summary(work.folder)
        if summary is not None:
            row |= asdict(summary) | {"label": config.label, "trained_on": trained_on(work.folder)}
            row["mixture"] = mixture(config.data)
        statuses = [read_status(work.folder, unit) for unit in work.missing]
        row["failure"] = next((s.detail for s in statuses if s is not None and s.state == "failed"), None)
        rows.append(row)
    return pd.DataFrame(rows)


def trained_on(folder: Path) -> str:
    """Device, dtype, threads and code of a finished run's training."""
    birth = read_birth(folder)
    code = "code unknown" if birth["git_commit"] is None else f"code {birth['git_commit'][:10]}"
    dirty = " with uncommitted changes" if birth["git_dirty"] else ""
    return f"{birth['device']}, {birth['dtype']}, {birth['threads']} threads, {code}{dirty}"


def mixture(data: DataConfig) -> str:
    """What was trained on, phase by phase."""
    phases = [
        f"{phase.steps * phase.tokens_per_step:,} tokens in rows of {phase.seq_len}: "
        + " and ".join(f"{count} {task}" for task, count in phase.rows.items())
        for phase in data.phases
    ]
    return f"{data.source} data; " + ", then ".join(phases)


def collect(plans: list[RunPlan], out: Path, command: str) -> tuple[pd.DataFrame, list[str]]:
    """Write `records.parquet`, `samples.json` (per-sample scores) and `runs.json` of an experiment to `out`; return its
    records and the ids of runs that lack some. A language suite with `heldout` adds the unigram baseline, measured on
    the same documents.

    Raises ValueError when there is nothing to collect.
    """
    # Records of other options, or of other weights, stay in their folders.
    files = [w.folder / "records" / f"{unit}.jsonl" for w in plans for unit in w.units if unit not in w.missing]
    if not files:
        raise ValueError("collect: no run of the experiment has records yet; submit it first")
    heldout = [w for w in plans if "heldout" in w.units.get("language", {}).get("tasks", [])]
    if heldout:
        files.append(_baseline(heldout[0], command) / "records" / "language.jsonl")
    frame = load(files)
    labels = {work.config.run_id: work.config.label for work in plans}
    frame["label"] = frame["run"].map(labels).fillna(frame["label"])
    kept = [[list(key), list(scores)] for key, scores in load_samples(files).items()]
    write_atomic(out / "records.parquet", frame.drop(columns="file").to_parquet())
    write_atomic(out / "samples.json", json.dumps(kept).encode())
    write_atomic(out / "runs.json", runs_frame(plans).to_json(orient="records", indent=1).encode())
    return frame, [work.config.run_id for work in plans if work.missing]


def collect_and_tabulate(experiment: Experiment, runs_root: Path, out: Path, command: str) -> None:
    """Collect what there is of an experiment, and write its table."""
    collect(plan(experiment, runs_root), out, command)
    write_table(out, None, allow_mixed=False)


def _baseline(work: RunPlan, command: str) -> Path:
    """The unigram baseline's record, in a folder beside the runs; measured once for the same question."""
    options = work.units["language"]
    key = evaluation_key(options, work.config.data_sha256)
    folder = work.folder.parent / f"{BASELINE}-{key[:8]}"
    if evaluated(folder, "language") == key:
        return folder
    module = suite("language")
    tokenizer = load_tokenizer(work.config.data.tokenizer)
    measurement = module.unigram_baseline(tokenizer, module.Config(**options))
    birth = provenance(key, "cpu", "float64", backend="none", command=command)
    run = {"run": BASELINE, "label": "unigram frequencies", "mixer": BASELINE, "layout": "baseline"}
    write_records(folder, "language", [Record.of(measurement, birth, **run, preset=work.config.preset, seed=0)])
    write_atomic(folder / "records" / "language.done", key.encode())
    return folder


def write_table(folder: Path, columns: list[str] | None, allow_mixed: bool) -> str:
    """Compare the records of a collection; writes `table.md` and `table.csv` beside them, returns the markdown.

    Raises ValueError when nothing was collected there, or when records of a column were measured differently.
    """
    if not (folder / "records.parquet").is_file():
        raise ValueError(f"{folder}: nothing collected there; run collect first")
    frame = pd.read_parquet(folder / "records.parquet")
    runs = pd.DataFrame(json.loads((folder / "runs.json").read_text()))
    samples = {tuple(key): tuple(scores) for key, scores in json.loads((folder / "samples.json").read_text())}
    found = comparison(frame, columns, runs, samples, allow_mixed)
    write_atomic(folder / "table.md", found.markdown().encode())
    write_atomic(folder / "table.csv", found.csv().encode())
    return found.markdown()
