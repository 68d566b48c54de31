"""The plan of an experiment: its runs with the trials of tuned ones, and what each still lacks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.synthetic import recall_words
from harness.data.tokenizer import load_tokenizer
from harness.experiments.expand import expand
from harness.experiments.load import EXPERIMENTS, load_experiment
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment
from harness.experiments.tuning import Tuned, Values
from harness.records.units import suite_of
from harness.run_folder import ChoiceFile, RunFolder, choice_file, submissions
from harness.training.batches import data_sha256, open_data
from harness.training.metrics_log import require_tracker
from suites.registry import check as check_suite
from suites.registry import evaluations, load_files, suite, suite_config
from suites.units import Evaluation, missing, place, results


@dataclass(frozen=True)
class RunPlan:
    """One run of an experiment, and what it still lacks.

    config: of a tuned run, with its values if they are chosen. folder: holds everything the run produces. units: its
    evaluations, by unit name (a suite, or SUITE@LENGTH). missing: the units without results, in the order in which they
    are done; `train` comes first. selection: the trials that choose the run's values; None if it is not tuned. trial:
    whether the run is one of those trials.
    """

    config: RunConfig
    folder: Path
    units: dict[str, Evaluation]
    missing: list[str]
    selection: Selection | None = None
    trial: bool = False

    def place(self, unit: str) -> str:
        """The name under which the run's folder keeps a unit: its state, and the records of an evaluation."""
        return place(unit, self.units)

    def results(self, unit: str) -> str | None:
        """The place of an evaluation's records; None if it has none."""
        return results(self.folder, unit, self.units[unit], RunFolder(self.folder).weights_sha256())


@dataclass(frozen=True)
class Selection:
    """The choice of tuned values that some runs share.

    trials: the runs that try values. file: holds the choice once it is made.
    """

    tuned: Tuned
    trials: tuple[RunPlan, ...]
    file: ChoiceFile


def selections(plans: Iterable[RunPlan]) -> list[Selection]:
    """The different choices that runs depend on, in their order."""
    return list({s.tuned.key: s for plan in plans if (s := plan.selection) is not None}.values())


def trials(plans: Iterable[RunPlan]) -> list[RunPlan]:
    """The trials that runs depend on, each once, in their order."""
    return list({trial.config.run_id: trial for s in selections(plans) for trial in s.trials}.values())


def asked_for(path_or_name: str, overrides: list[str] | None, scale: str | None, runs_root: Path) -> Experiment:
    """The experiment that a command names: a file, a shipped one, or else the newest submission of that name.

    Raises ValueError as `load_experiment` does.
    """
    if not Path(path_or_name).exists() and not (EXPERIMENTS / f"{path_or_name}.yaml").is_file():
        name = path_or_name if scale is None else f"{path_or_name}-{scale}"
        if known := submissions(runs_root, name):
            return load_experiment(known[-1].experiment, overrides)
    return load_experiment(path_or_name, overrides, scale)


def check(experiment: Experiment) -> None:
    """Check everything that training and evaluation need and `plan` does not look at.

    Raises ValueError if the training data are unsound or too short, if data of a suite are missing, or if the tracker
    is not installed. Writes the shards of the embedded corpus if they do not exist yet. Checks nothing for an
    experiment without training.
    """
    if not experiment.data.phases:
        return
    require_tracker(experiment.train)
    tokenizer = load_tokenizer(experiment.data.tokenizer)
    data = open_data(experiment.data)
    for phase in experiment.data.phases if data is not None else ():
        if "text" in phase.rows:
            data.windows("train", phase.seq_len)
        if phase.rows.keys() - {"text"}:
            recall_words(tokenizer)
    for name, options in experiment.suites.items():
        check_suite(name, options, tokenizer)
    if experiment.tuning is not None:
        check_suite(experiment.tuning.choose.suite, _validation_options(experiment), tokenizer)


def plan(experiment: Experiment, runs_root: Path) -> list[RunPlan]:
    """All reported runs of an experiment, and what each still lacks. Their trials are in their selections.

    An experiment without training needs no data and no tokenizer: its models have the preset's vocabulary. Raises
    ValueError for unknown mixers or suites, invalid options, an impossible match, or a missing tokenizer or data set.
    """
    load_files(experiment.suite_files)
    units: dict[str, Evaluation] = {}
    for name, options in experiment.suites.items():
        units |= evaluations(name, options)
    validation = {}
    if experiment.tuning is not None:
        validation = evaluations(experiment.tuning.choose.suite, _validation_options(experiment))
    if experiment.data.phases:
        asked = {unit: evaluation.options for unit, evaluation in validation.items()}
        vocab_size = len(load_tokenizer(experiment.data.tokenizer))
        expansion = expand(experiment, vocab_size, data_sha256(experiment.data), asked)
    elif units and all(evaluation.fresh for evaluation in units.values()):
        expansion = expand(experiment, None, "none")
    else:
        needing = (
            ", ".join(dict.fromkeys(suite_of(u) for u in units if not units[u].fresh)) or "an experiment without suites"
        )
        raise ValueError(f"data.phases: none, and {needing} needs trained models; say what they are trained on")

    def planned(
        config: RunConfig, units: dict[str, Evaluation], selection: Selection | None = None, trial: bool = False
    ) -> RunPlan:
        folder = runs_root / config.run_id
        return RunPlan(config, folder, units, missing(folder, units), selection, trial)

    tried = {run_id: planned(config, validation, trial=True) for run_id, config in expansion.trials.items()}
    chosen: dict[str, tuple[Selection, Values | None]] = {}
    plans = []
    for config in expansion.runs:
        if config.tuned is None:
            plans.append(planned(config, units))
            continue
        if config.tuned.key not in chosen:
            file = choice_file(runs_root, config.tuned.key)
            ids = [run_id for candidate in config.tuned.candidates for run_id in candidate.trials]
            selection = Selection(config.tuned, tuple(tried[run_id] for run_id in ids), file)
            content = file.read()
            chosen[config.tuned.key] = selection, None if content is None else content["values"]
        selection, values = chosen[config.tuned.key]
        plans.append(planned(config if values is None else config.chosen(values), units, selection))
    return plans


def _validation_options(experiment: Experiment) -> dict[str, Any]:
    """Options with which trials are evaluated. Raises ValueError if their suite has no validation split."""
    assert experiment.tuning is not None
    by = experiment.tuning.choose
    config = suite_config(by.suite, experiment.suites[by.suite] | by.options)
    return suite(by.suite).validation(config).model_dump(mode="json")
