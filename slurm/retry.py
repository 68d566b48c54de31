"""Work that is done again on request: what has failed, or a suite that is to be measured anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.records.units import suite_of
from harness.run_folder import RunFolder
from slurm.plan import RunPlan, trials
from slurm.queue import Queue
from slurm.state import at_work, failed_units, forgive
from slurm.trials import settled
from suites.units import TRAIN

Work = dict[Path, list[str]]
"""Units by the folder of their run."""


def failed_work(plans: Sequence[RunPlan], run: str | None) -> Work:
    """The units that have failed, of all runs and trials or of one run, by its id.

    A failed training takes the run's evaluations along, which waited for it. Raises ValueError for an unknown run.
    """
    work: Work = {}
    for each in _chosen(plans, run):
        failed = failed_units(each.folder, {unit: each.place(unit) for unit in each.missing})
        if failed:
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
    for each in _chosen(plans, run):
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
        raise ValueError(f"--suite: at work on {', '.join(busy)}; wait for it, or cancel it first")
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
            if any(t.folder in work for t in tried) and all(t.folder in work or settled(t) for t in tried):
                selection = replace(run.selection, trials=tuple(map(narrowed, tried)))
                kept[run.folder] = replace(run, selection=selection)
        elif run.folder in work:
            kept[run.folder] = narrowed(run)
    along = {trial.folder for trial in trials(kept.values())}
    return [*(narrowed(t) for t in trials(plans) if t.folder in work and t.folder not in along), *kept.values()]


def _chosen(plans: Sequence[RunPlan], run: str | None) -> list[RunPlan]:
    every = list({each.folder: each for each in (*trials(plans), *plans)}.values())
    chosen = [each for each in every if run in (None, each.config.run_id)]
    if not chosen:
        ids = ", ".join(each.config.run_id for each in every)
        raise ValueError(f"--run: {run!r} is not of this experiment; its runs: {ids}")
    return chosen
