"""The plan of an experiment: its runs with the trials of tuned ones, what each still lacks, and what is done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.data.synthetic import check_rows
from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.names import EXPERIMENTS
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment
from harness.experiments.tuning import Tuned, Values
from harness.records.units import suite_of
from harness.run_folder import ChoiceFile, RunFolder, Submission, choice_file, submissions, submissions_folder
from harness.training.batches import open_data
from harness.training.inputs import find_data, is_trusted, trusted
from harness.training.metrics_log import require_tracker
from slurm.queue import Queue
from slurm.state import at_work, failed_units, forgive
from suites.registry import check as check_suite
from suites.registry import evaluations, load_files, suite, suite_config
from suites.units import TRAIN, Evaluation, missing, place, results

PARTS = ("mixer", "seed", "label", "layout", "preset")
"""Fields of runs by which a part of an experiment is named."""


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

    Raises ValueError as `load_experiment` does, and if the submission names code that this user has not run before.
    """
    if not Path(path_or_name).exists() and not (EXPERIMENTS / f"{path_or_name}.yaml").is_file():
        name = path_or_name if scale is None else f"{path_or_name}-{scale}"
        if known := submissions(runs_root, name):
            return _submitted(known[-1], overrides)
    return load_experiment(path_or_name, overrides, scale)


def _submitted(submission: Submission, overrides: list[str] | None = None) -> Experiment:
    """The experiment of a submission. Raises ValueError if it names code that this user has not run before."""
    loaded = load_experiment(submission.experiment, overrides)
    for file in map(Path, (*loaded.mixer_files, *loaded.suite_files)):
        if file.is_file() and not is_trusted(file):
            raise ValueError(
                f"{file}: code that you have not run before, which the submission of {loaded.name} would execute; "
                "read it, and give the experiment's file instead of its name if it may run"
            )
    return loaded


def submitted_run(runs_root: Path, run_id: str) -> RunPlan:
    """The plan of a run as its newest submission asks for it. Raises ValueError if no submission has this run."""
    heads = [(s, s.read_plan()) for s in map(Submission, submissions_folder(runs_root).glob("*-*")) if s.plan.is_file()]
    having = [(head["time"], s) for s, head in heads if run_id in (run["run"] for run in head["runs"])]
    if not having:
        raise ValueError(f"run: no submission in {runs_root} has a run {run_id!r}; `status EXPERIMENT` lists its runs")
    _, submission = max(having, key=lambda pair: pair[0])
    plans = plan(_submitted(submission), runs_root)
    found = [run for run in (*trials(plans), *plans) if run.config.run_id == run_id]
    if not found:
        raise ValueError(f"run: {run_id!r} is not what this code makes of {submission.experiment}; submit it again")
    return found[0]


def next_unit(run: RunPlan, unit: str | None) -> str:
    """The unit of a run to do now: this one, or the first that it lacks.

    Raises ValueError if there is none, if it cannot be done now, or if a job or a process works on it.
    """
    name = run.config.run_id
    if not run.missing:
        raise ValueError(f"run: {name} lacks nothing; measure a suite again with `retry EXPERIMENT --suite NAME`")
    chosen = unit or run.missing[0]
    if chosen not in run.missing:
        raise ValueError(f"--unit: {name} does not lack {chosen!r}; give one of: {', '.join(run.missing)}")
    if chosen != TRAIN and TRAIN in run.missing and not run.units[chosen].fresh:
        raise ValueError(f"--unit: {chosen} waits for the training of {name}; do that first")
    if _held(run, chosen, Queue.read()):
        raise ValueError(f"run: at work on {chosen} of {name}; wait for it, or cancel it first")
    return chosen


Work = dict[Path, list[str]]
"""Units by the folder of their run."""


def failed_work(plans: Sequence[RunPlan], run: str | None) -> Work:
    """The units that have failed, of all runs and trials or of one run, by its id.

    A failed training takes the run's evaluations along, which waited for it. Raises ValueError for an unknown run.
    """
    work: Work = {}
    for each in _chosen(plans, run):
        if failed := _failed(each):
            work[each.folder] = list(each.missing) if TRAIN in failed else failed
    return work


def measured_work(plans: Sequence[RunPlan], run: str | None, suite: str) -> Work:
    """The evaluations of a suite, or of one unit of it, of all reported runs or of one run, by its id.

    Runs that are not trained are left out: they have nothing to measure again. Raises ValueError for an unknown run or
    suite.
    """
    known = dict.fromkeys(name for each in plans for unit in each.units for name in (suite_of(unit), unit))
    if suite not in known:
        raise ValueError(f"--suite: {suite!r} is not of this experiment; give one of: {', '.join(known)}")
    work: Work = {}
    for each in plans if run is None else _chosen(plans, run):
        units = [unit for unit in each.units if suite in (unit, suite_of(unit))]
        if units and TRAIN not in each.missing:
            work[each.folder] = units
    return work


def start_again(plans: Sequence[RunPlan], work: Mapping[Path, Sequence[str]], again: bool) -> None:
    """Forget the failures of units and, if they are to be measured again, their results and answers.

    Raises ValueError, before anything is removed, if a process works on one of them.
    """
    runs = {each.folder: each for each in (*trials(plans), *plans)}
    units = [(runs[folder], unit) for folder, some in work.items() for unit in some]
    queue = Queue.read()
    if busy := [f"{run.config.run_id} {unit}" for run, unit in units if _held(run, unit, queue)]:
        raise ValueError(f"retry: at work on {', '.join(busy)}; wait for it, or cancel it first")
    for run, unit in units:
        while again and (place := run.results(unit)) is not None:  # an earlier version has another place
            RunFolder(run.folder).forget(place)
        if again:
            RunFolder(run.folder).forget(run.place(unit))
        forgive(run.folder, run.place(unit))


def _held(run: RunPlan, unit: str, queue: Queue) -> bool:
    """Whether a job or a process works on a unit or is going to."""
    place = run.place(unit)
    status = RunFolder(run.folder).read_status(place)
    return at_work(run.folder, place) or (status is not None and queue.holds(run.folder, place, status) is not None)


def only(plans: Sequence[RunPlan], work: Mapping[Path, Sequence[str]]) -> list[RunPlan]:
    """The plans of this work: runs that lack these units and nothing else.

    A run whose values are not chosen comes along if its choice can be made after this work; it lacks what it lacked.
    """

    def narrowed(run: RunPlan) -> RunPlan:
        return replace(run, missing=[unit for unit in run.missing if unit in work.get(run.folder, ())])

    kept: dict[Path, RunPlan] = {}
    for run in plans:
        if run.selection is not None and run.selection.file.read() is None:
            tried = run.selection.trials
            over = [t.folder for t in tried if not t.missing or _failed(t)]
            if any(t.folder in work for t in tried) and all(t.folder in (*work, *over) for t in tried):
                selection = replace(run.selection, trials=tuple(map(narrowed, tried)))
                kept[run.folder] = replace(run, selection=selection)
        elif run.folder in work:
            kept[run.folder] = narrowed(run)
    along = {trial.folder for trial in trials(kept.values())}
    return [*(narrowed(t) for t in trials(plans) if t.folder in work and t.folder not in along), *kept.values()]


def part_of(plans: Sequence[RunPlan], only: str | None, limit: int | None) -> list[RunPlan]:
    """The reported runs with these values, `mixer=gdn2,seed=0`, and of them the first `limit` that lack something.

    Raises ValueError for an unknown field, a value that no run has, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: {limit} runs; give at least 1")
    chosen = list(plans)
    for pair in only.split(",") if only else ():
        name, equals, value = pair.partition("=")
        if name not in PARTS or not equals:
            raise ValueError(f"--only: {pair!r} is not FIELD=VALUE with a field of: {', '.join(PARTS)}")
        known = dict.fromkeys(str(getattr(run.config, name)) for run in plans)
        if value not in known:
            raise ValueError(f"--only: no run has {name} {value!r}; give one of: {', '.join(known)}")
        chosen = [run for run in chosen if str(getattr(run.config, name)) == value]
    if not chosen:
        raise ValueError(f"--only: no run has all of {only}; leave one out")
    return chosen if limit is None else [run for run in chosen if run.missing][:limit]


def _failed(run: RunPlan) -> list[str]:
    return failed_units(run.folder, {unit: run.place(unit) for unit in run.missing})


def _chosen(plans: Sequence[RunPlan], run: str | None) -> list[RunPlan]:
    every = list({each.folder: each for each in (*trials(plans), *plans)}.values())
    chosen = [each for each in every if run in (None, each.config.run_id)]
    if not chosen:
        ids = ", ".join(each.config.run_id for each in every)
        raise ValueError(f"--run: {run!r} is not of this experiment; its runs: {ids}")
    return chosen


def check(experiment: Experiment, plans: Sequence[RunPlan], runs_root: Path) -> None:
    """Check everything that what is missing needs and `plan` does not look at.

    Raises ValueError if the training data are unsound or too short, if data of a suite are missing, or if the tracker
    is not installed. Writes the shards of the embedded corpus if they do not exist yet. Does not look at the training
    data if all is trained, and checks nothing for an experiment without training.
    """
    if not experiment.data.phases:
        return
    tokenizer, _ = find_data(experiment.data, runs_root)
    if untrained(plans):
        require_tracker(experiment.train)
        data = open_data(experiment.data)
        for phase in experiment.data.phases if data is not None else ():
            check_rows(phase.rows, phase.seq_len, tokenizer, data)
    for name, options in experiment.suites.items():
        check_suite(name, options, tokenizer)
    if experiment.tuning is not None:
        check_suite(experiment.tuning.choose.suite, _validation_options(experiment), tokenizer)


def untrained(plans: Iterable[RunPlan]) -> list[RunPlan]:
    """The runs that are still to be trained, and before them their trials."""
    plans = list(plans)
    return [run for run in (*trials(plans), *plans) if TRAIN in run.missing]


def plan(experiment: Experiment, runs_root: Path | str) -> list[RunPlan]:
    """All reported runs of an experiment, and what each still lacks. Their trials are in their selections.

    An experiment without training needs no data and no tokenizer: its models have the preset's vocabulary. Raises
    ValueError for unknown mixers or suites, invalid options, an impossible match, or a missing tokenizer or data set.
    """
    runs_root = Path(runs_root)
    load_files(experiment.suite_files)
    units: dict[str, Evaluation] = {}
    for name, options in experiment.suites.items():
        units |= evaluations(name, options)
    validation = {}
    if experiment.tuning is not None:
        validation = evaluations(experiment.tuning.choose.suite, _validation_options(experiment))
    if experiment.data.phases:
        asked = {unit: evaluation.options for unit, evaluation in validation.items()}
        tokenizer, data_sha256 = find_data(experiment.data, runs_root)
        expansion = expand(experiment, len(tokenizer), data_sha256, asked)
    elif units and all(evaluation.fresh for evaluation in units.values()):
        expansion = expand(experiment, None, "none")
    else:
        needing = (
            ", ".join(dict.fromkeys(suite_of(u) for u in units if not units[u].fresh)) or "an experiment without suites"
        )
        raise ValueError(f"data.phases: none, and {needing} needs trained models; say what they are trained on")

    for file in (*experiment.mixer_files, *experiment.suite_files):  # they have run by now, as the user asked
        trusted(file)

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
