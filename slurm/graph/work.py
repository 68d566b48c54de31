"""The work of a submission: the units that are left to do, and those that are left to others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.run_folder import RunFolder
from slurm.plan import RunPlan, Selection, selections
from slurm.queue import Queue
from suites.units import TRAIN, missing

LATER = "in a later wave"
"""Detail of the status of units that a job in the queue is going to submit."""


@dataclass(frozen=True)
class Pending:
    """The units of a run that a submission has to do.

    after: Slurm's id of the job of another submission that trains the run; empty if there is none.
    """

    plan: RunPlan
    units: list[str]
    after: str = ""

    def bundles(self, pack: bool) -> list[list[str]]:
        """The units by job. pack: whether one job does all evaluations of the run."""
        evaluations = [unit for unit in self.units if unit != TRAIN]
        train = [[TRAIN]] if TRAIN in self.units else []
        return [*train, *([evaluations] if pack and evaluations else [[unit] for unit in evaluations])]


@dataclass(frozen=True)
class Work:
    """The work of a submission.

    trials, runs: what is left of them. choices: those that are not made yet. held: Slurm's ids of other submissions'
    jobs that work on trials. left_out: a line for each missing unit that is left out, because another job or process
    works on it already, or because it has failed.
    """

    trials: list[Pending]
    runs: list[Pending]
    choices: list[Selection]
    held: list[str]
    left_out: list[str]

    @property
    def pending(self) -> list[Pending]:
        """The trials and runs, in the order in which they are done."""
        return [*self.trials, *self.runs]

    def moved(self, plans: Iterable[RunPlan]) -> Work:
        """The same work with other plans for `pending`, one for each."""
        pending = [replace(run, plan=plan) for run, plan in zip(self.pending, plans, strict=True)]
        return replace(self, trials=pending[: len(self.trials)], runs=pending[len(self.trials) :])


def work_left(plans: Sequence[RunPlan], queue: Queue) -> Work:
    """The work that is left of an experiment's runs and their trials."""
    undecided = [selection for selection in selections(plans) if selection.file.read() is None]
    tried = list({trial.folder: trial for selection in undecided for trial in selection.trials}.values())
    trials, held, out = to_do(tried, queue)
    runs, _, left_out = to_do(plans, queue)
    if not runs:  # nobody would use the choice
        return Work([], [], [], [], left_out)
    return Work(trials, runs, undecided, held, out + left_out)


def still_left(work: Work, queue: Queue) -> Work:
    """The part of work planned earlier that is still left. Lines say why the rest is left out.

    It was submitted by nobody yet, but for trainings: evaluations whose run is not trained, though it should be by now,
    are left out, and so are runs whose values should have been chosen.
    """
    lines: list[str] = []

    def left(todo: Sequence[Pending]) -> list[Pending]:
        found = []
        for run in todo:
            lacking = missing(run.plan.folder, run.plan.units)
            after = run.after if run.after in (queue.jobs or {}) else ""
            stuck = TRAIN in lacking and TRAIN not in run.units and not after
            units = [u for u in run.units if u in lacking and not (stuck and not run.plan.units[u].fresh)]
            if stuck and units != run.units:
                lines.append(f"{run.plan.config.run_id}: its training did not finish")
            pending, _, out = to_do([replace(run.plan, missing=units)], queue)
            lines.extend(out)
            found += [replace(each, after=each.after or after) for each in pending]
        return found

    runs = []
    choices = [selection for selection in work.choices if selection.file.read() is None]
    for run in left(work.runs):
        selection = run.plan.selection
        if selection is not None and not work.choices and TRAIN in run.units and selection.file.read() is None:
            lines.append(f"{run.plan.config.run_id}: its values were not chosen")
        else:
            runs.append(run)
    if not runs:
        return Work([], [], [], [], lines)
    held = [job for job in work.held if job in (queue.jobs or {})]
    return Work(left(work.trials), runs, choices, held, lines)


def to_do(plans: Sequence[RunPlan], queue: Queue) -> tuple[list[Pending], list[str], list[str]]:
    """The units that are left to submit, the jobs that work on others, and a line for each that is left out.

    A unit is left out if another job or process works on it already, or if it has failed, and an evaluation if another
    sweep submits the training of its run later: no job can wait for one that is not in the queue.
    """
    todo, held, left_out = [], [], []
    for plan in plans:
        units, after, submitter = [], "", ""
        for unit in plan.missing:
            status = RunFolder(plan.folder).read_status(plan.place(unit))
            holder = None if status is None else queue.holds(plan.folder, plan.place(unit), status)
            if TRAIN in units:
                units.append(unit)  # its earlier status, if any, belongs to other weights
            elif status is not None and status.state == "failed":
                left_out.append(f"{plan.config.run_id} {unit}: failed: {status.detail}")
                if unit == TRAIN:
                    break
            elif holder is not None and status is not None:
                state = "requeued" if status.state == "stopped" else status.state
                left_out.append(f"{plan.config.run_id} {unit}: {state} already, {holder}")
                held += [status.job] if status.job else []
                if unit == TRAIN and status.detail == LATER:
                    submitter = status.job
                elif unit == TRAIN:
                    after = status.job
            elif submitter and not plan.units[unit].fresh:
                why = f"job {submitter} submits its training {LATER}; submit again once it is in the queue"
                left_out.append(f"{plan.config.run_id} {unit}: {why}")
            else:
                units.append(unit)
        if units:
            todo.append(Pending(plan, units, after))
    return todo, held, left_out
