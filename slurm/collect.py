"""Collect the results of an experiment: records, per-sample scores, learning curves and one row per run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.experiments.matching import meta_model
from harness.experiments.presets import preset
from harness.experiments.schema import DataConfig, Experiment
from harness.figures.learning_curves import read_curves
from harness.files import write_json
from harness.records.metrics import BUILT_IN, METRICS
from harness.records.provenance import provenance
from harness.records.record import BASELINE, Record
from harness.records.store import load, load_samples, write_records
from harness.records.units import suite_of
from harness.run_folder import Collection, RunFolder, run_of_records
from harness.tables.collection import write_table
from harness.training.inputs import run_tokenizer
from mixers.registry import mixer_config
from slurm.plan import RunPlan, plan, selections
from suites.registry import stored_config, suite


def runs_frame(plans: list[RunPlan], unreadable: Mapping[Path, str]) -> pd.DataFrame:
    """One row per run: its model, its training, the reason if it failed, and why its records are unreadable.

    The column `options` holds the mixer's options with their defaults; `unreadable` holds reasons by unit. Of a tuned
    run, `tuned` holds the chosen values, `at_edge` those fields whose value is the least or largest that was tried,
    `trials` the number of trials, `tuned_at` their scale, and `tuned_share` their share of the tokens. unreadable: the
    reason for each file of records that could not be read.
    """
    rows: list[dict[str, Any]] = []
    for run in plans:
        config = run.config
        row = {"run": config.run_id, "label": config.label, "mixer": config.mixer, "layout": config.layout}
        row |= {"preset": config.preset, "match": config.match, "seed": config.seed}
        row["options"] = mixer_config(config.mixer, config.model.mixer_options).model_dump(mode="json")
        summary = RunFolder(run.folder).read_summary()
        if not config.data.phases:  # nothing is trained, so there is no summary
            row |= asdict(meta_model(config.model).cost(preset(config.preset).context))
        if summary is not None:
            row |= asdict(summary) | {"label": config.label, "trained_on": trained_on(run.folder)}
            row["mixture"] = mixture(config.data)
        if config.tuned is not None:
            row |= {"tuned": config.tuned.values, "trials": config.tuned.trials, "tuned_at": config.tuned.preset}
            row |= {"tuned_share": config.tuned.share, "at_edge": config.tuned.at_edge}
        statuses = [RunFolder(run.folder).read_status(unit) for unit in run.missing]
        row["failure"] = next((s.detail for s in statuses if s is not None and s.state == "failed"), None)
        reasons = {path.stem: reason for path, reason in unreadable.items() if run_of_records(path) == run.folder}
        row["unreadable"] = reasons or None
        rows.append(row)
    return pd.DataFrame(rows)


def trials_frame(plans: list[RunPlan]) -> pd.DataFrame:
    """One row per trial of every choice that is made.

    Columns: label, mixer, layout, preset, seed, run, share (of the tokens), score (in the metric's own unit; None if
    training diverged), loss, reason, values (JSON), chosen, and the metric that was chosen by: suite, task, metric,
    lengths.
    """
    rows: list[dict[str, Any]] = []
    for selection in selections(plans):
        made = selection.file.read()
        if made is None:
            continue
        by, first = selection.tuned.choose, selection.trials[0].config
        model = {"label": first.label, "mixer": first.mixer, "layout": first.layout, "preset": first.preset}
        score = {"suite": by.suite, "task": by.task, "metric": by.metric, "lengths": by.lengths}
        rows += [
            model
            | {key: trial[key] for key in ("run", "seed", "score", "loss", "reason")}
            | {"values": json.dumps(trial["values"]), "chosen": trial["values"] == made["values"]}
            | {"share": selection.tuned.share}
            | score
            for trial in made["trials"]
        ]
    return pd.DataFrame(rows)


def trained_on(folder: Path) -> str:
    """Device, dtype, threads and code with which a finished run was trained, in words."""
    birth = RunFolder(folder).read_training_provenance()
    code = "code unknown" if birth["git_commit"] is None else f"code {birth['git_commit'][:10]}"
    dirty = " with uncommitted changes" if birth["git_dirty"] else ""
    return f"{birth['device']}, {birth['dtype']}, {birth['threads']} threads, {code}{dirty}"


def mixture(data: DataConfig) -> str:
    """The training data, phase by phase, in words."""
    return f"{Path(data.source).name} data; " + ", then ".join(map(str, data.phases))


def collect(plans: list[RunPlan], out: Path, command: str) -> tuple[pd.DataFrame, list[str]]:
    """Write records.parquet, samples.json (per-sample scores), runs.json, curves.parquet (training) and trials.json
    (tuning) to `out`.

    Returns the records and the ids of the runs that lack some. The suites' baselines are added. metrics.json describes
    the metrics that suites from elsewhere declare, so that readers need no suite. Unreadable records are left out;
    runs.json names the reason. Raises ValueError if there are no readable records.
    """
    # Records with other options or of other weights do not belong to the experiment as it is now.
    files = [RunFolder(run.folder).records(unit) for run in plans for unit in run.units if unit not in run.missing]
    if not files:
        raise ValueError("collect: no run of the experiment has records yet; submit it first")
    files += _baselines(plans, command)
    unreadable: dict[Path, str] = {}
    frame = load(files, unreadable=unreadable)
    of_runs = {path for path in unreadable if run_of_records(path) in {run.folder for run in plans}}
    if frame.empty or len(of_runs) < len(unreadable):
        reasons = (reason for path, reason in unreadable.items() if frame.empty or path not in of_runs)
        raise ValueError(next(reasons, f"{files[0]}: holds no records; delete it and submit again"))
    labels = {run.config.run_id: run.config.label for run in plans}
    frame["label"] = frame["run"].map(labels).fillna(frame["label"])
    scores = load_samples([path for path in files if path not in unreadable])
    samples = [[list(key), list(values)] for key, values in scores.items()]
    curves = read_curves({run.folder: run.config for run in plans})
    tried = trials_frame(plans)
    Collection(out).write(frame.drop(columns="file"), samples, runs_frame(plans, unreadable), curves, tried)
    outside = {name: asdict(METRICS[name]) for name in frame["metric"].unique() if name not in BUILT_IN}
    if outside:
        write_json(Collection(out).metrics, outside)
    broken = {run_of_records(path) for path in of_runs}
    return frame, [run.config.run_id for run in plans if run.missing or run.folder in broken]


def collect_and_tabulate(experiment: Experiment, runs_root: Path, out: Path, command: str) -> None:
    """Collect the results that an experiment has so far, and write its table."""
    collect(plan(experiment, runs_root), out, command)
    write_table(out, None, allow_mixed=False, experiment=experiment)


def _baselines(plans: list[RunPlan], command: str) -> list[Path]:
    """Return the records of every row that needs no model.

    Each is measured once per set of options and data, into a folder next to the runs.
    """
    files = []
    first: dict[str, RunPlan] = {}
    for run in plans:
        for unit in run.units:
            first.setdefault(unit, run)
    for unit, run in first.items():
        evaluation, chosen = run.units[unit], suite(suite_of(unit))
        for baseline in chosen.baselines(stored_config(chosen.name, evaluation.options)):
            key = evaluation.key(run.config.data_sha256)
            folder = RunFolder(run.folder.parent / f"{baseline.name}-{key[:8]}")
            if folder.read_done(unit) != key:
                measurements = baseline.measure(run_tokenizer(run.folder, run.config))
                birth = provenance(key, "cpu", "float64", backend="none", command=command)
                row = {"run": baseline.name, "label": baseline.label, "mixer": baseline.name, "layout": BASELINE}
                row |= {"preset": run.config.preset, "seed": 0}
                write_records(folder.path, unit, [Record.of(m, birth, **row) for m in measurements])
                folder.write_done(unit, key)
            files.append(folder.records(unit))
    return files
