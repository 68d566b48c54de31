"""Gathering what an experiment has produced: one data frame of records, one of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import meta_model
from harness.experiments.presets import preset
from harness.experiments.schema import DataConfig, Experiment
from harness.figures.learning_curves import read_curves
from harness.files import write_atomic
from harness.records.provenance import provenance
from harness.records.store import Record, load, load_samples, write_records
from harness.run_folder import RunFolder
from harness.tables.collection import write_table
from mixers.registry import mixer_config
from slurm.plan import RunPlan, plan
from slurm.state import read_status
from suites import suite
from suites.units import evaluated, evaluation_key

BASELINE = "unigram"


def runs_frame(plans: list[RunPlan], unreadable: Mapping[Path, str]) -> pd.DataFrame:
    """A row a run: what was built, how it was trained, why it failed if it did, and by unit why its records cannot be
    read, from the reasons by file. `options` are the mixer's, defaults included."""
    rows: list[dict[str, Any]] = []
    for work in plans:
        config = work.config
        row = {"run": config.run_id, "label": config.label, "mixer": config.mixer, "layout": config.layout}
        row |= {"preset": config.preset, "seed": config.seed}
        row["options"] = mixer_config(config.mixer, config.model.mixer_options).model_dump(mode="json")
        summary = RunFolder(work.folder).read_summary()
        if not config.data.phases:  # a fresh model, which has no summary
            row |= asdict(meta_model(config.model).cost(preset(config.preset).context))
        if summary is not None:
            row |= asdict(summary) | {"label": config.label, "trained_on": trained_on(work.folder)}
            row["mixture"] = mixture(config.data)
        statuses = [read_status(work.folder, unit) for unit in work.missing]
        row["failure"] = next((s.detail for s in statuses if s is not None and s.state == "failed"), None)
        own = {path.stem: reason for path, reason in unreadable.items() if path.parents[1] == work.folder}
        row["unreadable"] = own or None
        rows.append(row)
    return pd.DataFrame(rows)


def trained_on(folder: Path) -> str:
    """Device, dtype, threads and code of a finished run's training."""
    birth = RunFolder(folder).read_training_provenance()
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
    """Write `records.parquet`, `samples.json` (per-sample scores), `runs.json` and `curves.parquet` (training) of an
    experiment to `out`; return its records and the ids of runs that lack some. A language suite with `heldout` adds the
    unigram baseline, measured on the same documents. A run's records that cannot be read are left out, and `runs.json`
    says why.

    Raises ValueError when there is nothing to collect that can be read.
    """
    # Records of other options, or of other weights, stay in their folders.
    files = [w.folder / "records" / f"{unit}.jsonl" for w in plans for unit in w.units if unit not in w.missing]
    if not files:
        raise ValueError("collect: no run of the experiment has records yet; submit it first")
    heldout = [w for w in plans if "heldout" in w.units.get("language", {}).get("tasks", [])]
    if heldout:
        files.append(_baseline(heldout[0], command) / "records" / "language.jsonl")
    unreadable: dict[Path, str] = {}
    frame = load(files, unreadable=unreadable)
    of_runs = {path for path in unreadable if path.parents[1] in {work.folder for work in plans}}
    if frame.empty or len(of_runs) < len(unreadable):
        raise ValueError(next(reason for path, reason in unreadable.items() if frame.empty or path not in of_runs))
    labels = {work.config.run_id: work.config.label for work in plans}
    frame["label"] = frame["run"].map(labels).fillna(frame["label"])
    scores = load_samples([path for path in files if path not in unreadable])
    kept = [[list(key), list(values)] for key, values in scores.items()]
    write_atomic(out / "records.parquet", frame.drop(columns="file").to_parquet())
    write_atomic(out / "curves.parquet", read_curves({w.folder: w.config for w in plans}).to_parquet())
    write_atomic(out / "samples.json", json.dumps(kept).encode())
    write_atomic(out / "runs.json", runs_frame(plans, unreadable).to_json(orient="records", indent=1).encode())
    broken = {path.parents[1] for path in of_runs}
    return frame, [work.config.run_id for work in plans if work.missing or work.folder in broken]


def collect_and_tabulate(experiment: Experiment, runs_root: Path, out: Path, command: str) -> None:
    """Collect what there is of an experiment, and write its table."""
    collect(plan(experiment, runs_root), out, command)
    write_table(out, None, allow_mixed=False, experiment=experiment)


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
