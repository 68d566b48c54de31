"""Collect the results of an experiment: records, per-sample scores, learning curves and one row per run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.code import code_text, contributing
from harness.experiments.load import load_experiment, stored_experiment
from harness.experiments.matching import meta_model
from harness.experiments.presets import preset
from harness.experiments.schema import DataConfig, Experiment
from harness.experiments.tuning import RECIPE, fields_of
from harness.figures.learning_curves import read_curves
from harness.progress import working
from harness.records.answers import grouped
from harness.records.metrics import BUILT_IN, METRICS
from harness.records.provenance import Provenance, provenance
from harness.records.record import BASELINE, Record, read_lines
from harness.records.store import load, load_answers, load_samples, write_records
from harness.records.units import suite_of
from harness.run_folder import (
    TRAIN,
    Collection,
    RunFolder,
    Submission,
    collection_of,
    run_of_records,
    submissions,
    unit_of,
)
from harness.tables.collection import write_table
from harness.training.inputs import run_tokenizer
from mixers.identity import identity
from mixers.registry import mixer_config
from slurm.plan import RunPlan, plan, selections
from suites.registry import stored_config, suite


def runs_frame(plans: list[RunPlan], unreadable: Mapping[Path, str]) -> pd.DataFrame:
    """One row per run: its model, its training, the reason if it failed, and why its records are unreadable.

    The column `options` holds the mixer's options with their defaults; `recipe` holds those fields of `train` that the
    experiment sets differently for different models, None if there are none; `unreadable` holds reasons by unit. Of a
    tuned run, `tuned` holds the chosen values, `at_edge` those fields whose value is the least or largest that was
    tried, `trials` the number of trials, `tuned_at` their scale, and `tuned_share` their share of the tokens.
    unreadable: the reason for each file of records that could not be read.
    """
    rows: list[dict[str, Any]] = []
    own = _own_fields(plans)
    for run in plans:
        config = run.config
        row = {"run": config.run_id, "label": config.label, "mixer": config.mixer, "layout": config.layout}
        row |= {"preset": config.preset, "match": config.match, "seed": config.seed}
        row["recipe"] = {name: getattr(config.train, name) for name in own} or None
        row["options"] = mixer_config(config.mixer, config.model.mixer_options).model_dump(mode="json")
        summary = RunFolder(run.folder).read_summary()
        if not config.data.phases:  # nothing is trained, so there is no summary
            row |= asdict(meta_model(config.model).cost(preset(config.preset).context))
        if summary is not None:
            row |= asdict(summary) | {"label": config.label, "trained_on": trained_on(run)}
            row["mixture"] = mixture(config.data)
        if config.tuned is not None:
            row |= {"tuned": config.tuned.values, "trials": config.tuned.trials, "tuned_at": config.tuned.preset}
            row |= {"tuned_share": config.tuned.share, "at_edge": config.tuned.at_edge}
        statuses = [RunFolder(run.folder).read_status(run.place(unit)) for unit in run.missing]
        row["failure"] = next((s.detail for s in statuses if s is not None and s.state == "failed"), None)
        reasons = {unit_of(path.stem): why for path, why in unreadable.items() if run_of_records(path) == run.folder}
        row["unreadable"] = reasons or None
        row["history"] = {unit: found for unit in (TRAIN, *run.units) if (found := history(run, unit))} or None
        rows.append(row)
    return pd.DataFrame(rows)


def _own_fields(plans: list[RunPlan]) -> list[str]:
    """Fields of `train` in which models differ, but for those that were tuned."""
    recipes = [run.config.train for run in plans]
    tuned = [run.config.tuned.candidates[0].values for run in plans if run.config.tuned is not None]
    tried = {name for values in tuned for name in fields_of(values, RECIPE)}
    named = sorted({name for recipe in recipes for name in identity(recipe)} - tried)
    return [name for name in named if any(getattr(one, name) != getattr(recipes[0], name) for one in recipes)]


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


def history(run: RunPlan, unit: str) -> list[dict[str, Any]]:
    """The starts that the result of a unit rests on, oldest first; empty if it has none.

    Results of earlier versions have one, the provenance that they hold.
    """
    folder = RunFolder(run.folder)
    if unit == TRAIN:
        known = [] if folder.read_summary() is None else [folder.read_training_provenance()]
        place = TRAIN
    elif (place := run.results(unit)) is None:
        return []
    else:
        known = read_lines(folder.records(place))[:1]
    if not known:
        return []
    facts = [f.name for f in fields(Provenance)] + ["reached", "processes", "sharding"]
    entries = contributing(folder.read_history(place)) or known
    return [{name: entry[name] for name in facts if name in entry} for entry in entries]


def trained_on(run: RunPlan) -> str:
    """Device, dtype, threads and code with which a finished run was trained, in words; all of them if starts differ."""
    texts = [
        f"{birth['device']}, {birth['dtype']}, {birth['threads']} threads, code {code_text(birth)}"
        for birth in history(run, TRAIN)
    ]
    return ", then ".join(dict.fromkeys(texts))


def mixture(data: DataConfig) -> str:
    """The training data, phase by phase, in words."""
    return f"{Path(data.source).name} data; " + ", then ".join(map(str, data.phases))


def _plain(experiment: Experiment) -> dict[str, Any]:
    values = experiment.model_dump(mode="json")
    if not experiment.data.phases:
        del values["data"]["phases"]  # nothing is trained; a list that is given is not empty
    return values


def collect(
    plans: list[RunPlan],
    experiment: Experiment,
    out: Path,
    command: str,
    at: Callable[[str], None] = lambda doing: None,
) -> tuple[pd.DataFrame, list[str]]:
    """Replace the collection in `out` by the results of an experiment: records, per-sample scores, answers, one row per
    run, curves of training, trials of tuned values, and the experiment itself, resolved.

    Returns the records and the ids of the runs that lack some. The suites' baselines are added. metrics.json describes
    the metrics that suites from elsewhere declare, so that readers need no suite. Unreadable records are left out;
    runs.json names the reason. at: told what is being done. Raises ValueError if there are no readable records.
    """
    # Records with other options or of other weights do not belong to the experiment as it is now.
    places = [(run, place) for run in plans for unit in run.units if (place := run.results(unit)) is not None]
    if not places:
        raise ValueError("collect: no run of the experiment has records yet; submit it first")
    files = [RunFolder(run.folder).records(place) for run, place in places] + _baselines(plans, command)
    at(f"reading {len(files):,} files of records of {len(plans):,} runs")
    unreadable: dict[Path, str] = {}
    frame = load(files, unreadable=unreadable)
    of_runs = {path for path in unreadable if run_of_records(path) in {run.folder for run in plans}}
    if frame.empty or len(of_runs) < len(unreadable):
        reasons = (reason for path, reason in unreadable.items() if frame.empty or path not in of_runs)
        raise ValueError(next(reasons, f"{files[0]}: holds no records; delete it and submit again"))
    labels = {run.config.run_id: run.config.label for run in plans}
    frame["label"] = frame["run"].map(labels).fillna(frame["label"])
    readable = [path for path in files if path not in unreadable]
    at(f"reading scores and answers of {len(readable):,} files")
    scores = load_samples(readable)
    samples = [[list(key), list(values)] for key, values in scores.items()]
    at(f"reading training curves of {len(plans):,} runs")
    curves = read_curves({run.folder: run.config for run in plans})
    outside = {name: asdict(METRICS[name]) for name in frame["metric"].unique() if name not in BUILT_IN}
    at("writing the collection")
    Collection(out).write(
        frame.drop(columns="file"),
        samples,
        runs_frame(plans, unreadable),
        curves,
        trials_frame(plans),
        _plain(experiment),
        outside,
        grouped(load_answers(readable)),
    )
    broken = {run_of_records(path) for path in of_runs}
    return frame, [run.config.run_id for run in plans if run.missing or run.folder in broken]


def collect_here(experiment: Experiment, runs_root: Path | str = "runs", out: Path | str | None = None) -> Collection:
    """Collect the results so far of an experiment, from Python. Returns the collection.

    out: its folder; by default `collected/NAME` among the runs. Raises ValueError as `plan` and `collect` do.
    """
    root = Path(runs_root).resolve()
    target = collection_of(root, experiment.name) if out is None else Collection(Path(out))
    with target.replacing(), working(f"planning {experiment.name}") as at:
        collect(plan(experiment, root), experiment, target.path, "python", at)
    return target


def collect_newest(submission: Submission, runs_root: Path, out: Path, command: str) -> None:
    """Collect the results so far of the newest submission of the same experiment, and write its table.

    An older submission may end last. What it would collect is no longer what is asked for.
    """
    name = load_experiment(submission.experiment).name
    with Collection(out).replacing():
        newest = [submission, *submissions(runs_root, name)][-1]
        experiment = load_experiment(newest.experiment)
        collect(plan(experiment, runs_root), experiment, out, command)
        write_table(out, None, allow_mixed=False, experiment=stored_experiment(out))


def _baselines(plans: list[RunPlan], command: str) -> list[Path]:
    """Return the records of every row that needs no model.

    Each is measured once per set of options and data, into a folder next to the runs.
    """
    files = []
    first: dict[str, RunPlan] = {}
    # Runs that were started first: they have kept their tokenizer, which may have gone elsewhere.
    for run in sorted(plans, key=lambda run: not RunFolder(run.folder).inputs.is_file()):
        for unit in run.units:
            first.setdefault(unit, run)
    for unit, run in first.items():
        evaluation, chosen = run.units[unit], suite(suite_of(unit))
        config = stored_config(chosen.name, evaluation.options)
        for baseline in chosen.baselines(config):
            key = evaluation.key(run.config.data_sha256)
            folder = RunFolder(run.folder.parent / f"{baseline.name}-{key[:8]}")
            if folder.read_done(unit) != key:
                measured = baseline.measure(run_tokenizer(run.folder, run.config))
                measurements = chosen.stamped(config, measured)
                birth = provenance(
                    key, "cpu", "float64", backend="none", command=command, files=(evaluation.suite_file,)
                )
                row = {"run": baseline.name, "label": baseline.label, "mixer": baseline.name, "layout": BASELINE}
                row |= {"preset": run.config.preset, "seed": 0}
                write_records(folder.path, unit, [Record.of(m, birth, **row) for m in measurements])
                folder.write_done(unit, key)
            files.append(folder.records(unit))
    return files
