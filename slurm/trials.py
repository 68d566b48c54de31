"""The outcomes of an experiment's trials, and the choice that they decide."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.experiments.run_config import RunConfig, read_config
from harness.experiments.tuning import Choice, Trial, Values, choose
from harness.records.record import read_lines
from harness.records.units import suite_of
from harness.run_folder import RunFolder, choice_file
from slurm.plan import RunPlan, Selection
from suites.units import TRAIN, missing

DIVERGED = "TrainingStopped"
"""The error of a training whose loss or gradient is no longer finite."""


class Unfinished(RuntimeError):
    """Raised where a choice is asked for before all its trials are done."""


def settled(trial: RunPlan) -> bool:
    """Whether a trial is finished or was given up."""
    return not missing(trial.folder, trial.units) or failure(trial) is not None


def failure(trial: RunPlan) -> tuple[str, str] | None:
    """The kind of error and the reason for which a trial was given up; None if it was not."""
    for unit in missing(trial.folder, trial.units):
        status = RunFolder(trial.folder).read_status(trial.place(unit))
        if status is not None and status.state == "failed":
            attempts = RunFolder(trial.folder).read_attempts(trial.place(unit))
            ends = [event for event in attempts if event["event"] == "ended"]
            return (ends[-1].get("kind", "") if ends else ""), f"{unit}: {status.detail}"
    return None


def outcome(trial: RunPlan, by: Choice) -> Trial:
    """The outcome of a trial: its score, or that its training diverged.

    Training diverged if it was stopped for a loss or gradient that is not finite, or if it skipped most of its steps
    for one. Raises Unfinished if it is neither done nor diverged, and ValueError if its records lack the metric.
    """
    run = trial.config.run_id
    if lacking := missing(trial.folder, trial.units):
        gone = failure(trial)
        if gone is not None and gone[0] == DIVERGED and lacking[0] == TRAIN:
            return Trial(run, None, None, gone[1])
        why = f"failed: {gone[1]}; `retry --failed` tries it again" if gone else f"lacks {', '.join(lacking)}"
        raise Unfinished(f"trial {run}: {why}")
    summary = RunFolder(trial.folder).read_summary()
    assert summary is not None
    if 2 * summary.skipped > summary.steps:
        return Trial(run, None, None, f"train: {summary.skipped} of {summary.steps} steps were skipped as not finite")
    files = [RunFolder(trial.folder).records(place) for unit in trial.units if (place := trial.results(unit))]
    rows = [row for file in files for row in read_lines(file)]
    found = {
        row["length"]: row["value"]
        for row in rows
        if (suite_of(row["suite"]), row["task"], row["metric"]) == (by.suite, by.task, by.metric)
    }
    lengths = list(found) if by.lengths is None else by.lengths
    if not lengths or any(length not in found for length in lengths):
        lacking = ", ".join(str(length) for length in lengths if length not in found) or "any length"
        raise ValueError(
            f"tuning.choose: trial {run} has no {by.metric} of {by.suite} {by.task} at {lacking}; it has "
            f"{sorted(found, key=str)}"
        )
    scores = [float(found[length]) for length in lengths]
    return Trial(run, sum(scores) / len(scores), summary.train_loss)


def decide(selection: Selection) -> Values:
    """The chosen values. Chosen from the trials the first time, then read: a choice never changes.

    Raises Unfinished naming what is left if a trial is neither done nor diverged.
    """
    if (made := selection.file.read()) is not None:
        return made["values"]
    by = selection.tuned.choose
    outcomes = {trial.config.run_id: outcome(trial, by) for trial in selection.trials}
    values = choose(selection.tuned.candidates, outcomes, by.metric).values
    tried = {run: candidate.values for candidate in selection.tuned.candidates for run in candidate.trials}
    trials = [asdict(outcomes[t.config.run_id]) for t in selection.trials]
    for trial, planned in zip(trials, selection.trials, strict=True):
        trial |= {"values": tried[trial["run"]], "seed": planned.config.seed}
    selection.file.write({"values": values, "choose": by.model_dump(mode="json"), "trials": trials})
    return values


def chosen_config(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration of the run in a folder with its chosen values; an untuned one as it is.

    Raises Unfinished if the choice is not made, and ValueError if the run has begun with other values.
    """
    if config.tuned is None:
        return config
    made: dict[str, Any] | None = choice_file(folder.parent, config.tuned.key).read()
    if made is None:
        raise Unfinished(f"{config.run_id}: its values are not chosen yet; submit the experiment, which tries them")
    if RunFolder(folder).config.is_file():
        begun = read_config(folder).tuned
        if begun is not None and begun.values != made["values"]:
            raise ValueError(
                f"{folder}: the run began with {begun.values}, and its trials now choose {made['values']}; delete the "
                "folder to train it anew"
            )
    return config.chosen(made["values"])
