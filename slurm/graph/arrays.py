"""The job arrays of a sweep, their tasks and dependencies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.run_folder import collection_of
from slurm.graph.work import Pending, Work
from slurm.jobs import ChooseJob, CollectJob, Job, PackJob, PrepareJob, run_jobs
from slurm.plan import untrained
from slurm.profile import Profile
from suites.units import TRAIN

Stage = Literal["prepare", "train", "evaluate", "choose", "release", "collect"]
"""Kinds of job in the graph. Those of `choose`, `release` and `collect` get the resources of the stage `prepare`."""

Task = Job | PackJob

PACKED = "evaluations"
"""Name of the arrays whose tasks do all evaluations of a run."""


@dataclass(frozen=True)
class Array:
    """A job array, or a single job if there is one task.

    tasks: by their index in the array. after: its dependencies, as pairs of `afterok`, `aftercorr` or `afterany` and an
    array's name or a Slurm job id.
    """

    name: str
    stage: Stage
    tasks: dict[int, Task]
    after: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Sweep:
    """The things that all arrays of a submission share.

    experiment: its name. folder: the submission's. command: the command line, for provenance. limit: the most tasks
    that an array may have. variables: of the environment of its jobs.
    """

    experiment: str
    folder: Path
    runs_root: Path
    command: str
    limit: int
    profile: Profile
    variables: Mapping[str, str]


def prepares(sweep: Sweep, work: Work) -> PrepareJob:
    """The job that prepares all of a sweep's work."""
    return PrepareJob(sweep.folder, "prepare", None if untrained(run.plan for run in work.pending) else sweep.runs_root)


def collects(sweep: Sweep) -> CollectJob:
    """The job that collects a sweep's results."""
    out = collection_of(sweep.runs_root, sweep.experiment).path
    return CollectJob(sweep.folder, "collect", out, sweep.runs_root, sweep.command)


def graph(
    work: Work, sweep: Sweep, first: PrepareJob | str, last: Job, wave: int = 0, after: Sequence[str] = ()
) -> list[Array]:
    """The job arrays that do the work of one wave, in the order in which they can be submitted.

    first: the job that everything waits for, or Slurm's id of one that is in the queue. last: the job that waits for
    everything. wave: its number, which the arrays' names end in. after: Slurm's ids of other jobs, for whose
    end `first` waits.

    One array trains, and one per unit evaluates, or one in all if evaluations are packed, each task after the training
    of its own run (aftercorr). Before all that, trials are trained and evaluated likewise, and a job chooses from them:
    it waits for their end, whether they succeed or not, and the runs wait for its success.
    """
    others = [("afterany", job) for job in after]
    arrays = [] if isinstance(first, str) else [Array("prepare", "prepare", {0: first}, others)]
    ready = [("afterok", first if isinstance(first, str) else "prepare")]
    tried = _runs(work.trials, "trials-", "trials", ready, sweep, wave)
    arrays += tried
    if work.choices:
        over = [("afterany", array.name) for array in tried] + [("afterany", job) for job in work.held]
        choose = ChooseJob(sweep.folder, "choose", tuple(work.choices))
        arrays.append(Array("choose", "choose", {0: choose}, ready + over))
        ready = [("afterok", "choose")]
    arrays += _runs(work.runs, "", "train", ready, sweep, wave)
    over = [("afterany", array.name) for array in arrays] or ready
    return [*arrays, Array(last.unit, "collect" if last.unit == "collect" else "release", {0: last}, over)]


def _runs(
    todo: Sequence[Pending], prefix: str, training: str, ready: list[tuple[str, str]], sweep: Sweep, wave: int
) -> list[Array]:
    """The arrays that train and evaluate runs, or trials. ready: what everything waits for."""

    def end(part: int) -> str:
        return f"{wave}.{part}" if part else str(wave)

    arrays: list[Array] = []
    train = [run for run in todo if TRAIN in run.units]
    for part, start in enumerate(range(0, len(train), sweep.limit)):
        pending, name = dict(enumerate(train[start : start + sweep.limit])), f"{training}-{end(part)}"
        tasks = {index: _task(run, [TRAIN], sweep) for index, run in pending.items()}
        arrays.append(Array(name, "train", tasks, ready))
        for kind, some in _evaluations(pending, sweep).items():
            arrays.append(Array(f"{prefix}{kind}-{end(part)}", "evaluate", some, [("aftercorr", name)]))
    trained = [run for run in todo if TRAIN not in run.units and not run.after]
    for kind, some in _evaluations(dict(enumerate(trained)), sweep).items():
        fresh = all(run.plan.units[unit].fresh for run in trained for unit in run.units if kind in (unit, PACKED))
        name, tasks = kind if fresh else f"{kind}-trained", list(some.values())
        for part, start in enumerate(range(0, len(tasks), sweep.limit)):
            some = dict(enumerate(tasks[start : start + sweep.limit]))
            arrays.append(Array(f"{prefix}{name}-{end(part)}", "evaluate", some, ready))
    # Others train these. A task with the index of the training that it waits for is in step with it.
    shared: dict[str, dict[int, Pending]] = defaultdict(dict)
    for run in todo:
        if run.after:
            job, _, index = run.after.partition("_")
            shared[job][int(index or 0)] = run
    for job, waiting in shared.items():
        pending = dict(sorted(waiting.items()))
        for kind, some in _evaluations(pending, sweep).items():
            only = next(iter(some))
            after = ("aftercorr", job) if len(some) > 1 else ("afterok", pending[only].after)
            arrays.append(Array(f"{prefix}{kind}-after-{job}-{wave}", "evaluate", some, [*ready, after]))
    return arrays


def _evaluations(pending: Mapping[int, Pending], sweep: Sweep) -> dict[str, dict[int, Task]]:
    """The tasks that evaluate runs, by the name of their array; each has the index of its run."""
    order = dict.fromkeys(unit for run in pending.values() for unit in run.plan.units)
    found: dict[str, dict[int, Task]] = {kind: {} for kind in ([PACKED] if sweep.profile.evaluate.pack else order)}
    for index, run in pending.items():
        for units in run.bundles(sweep.profile.evaluate.pack):
            if units != [TRAIN]:
                found[PACKED if sweep.profile.evaluate.pack else units[0]][index] = _task(run, units, sweep)
    return {kind: tasks for kind, tasks in found.items() if tasks}


def _task(run: Pending, units: list[str], sweep: Sweep) -> Task:
    jobs = run_jobs(run.plan, units, sweep.command, sweep.profile.sharding)
    return jobs[0] if len(jobs) == 1 else PackJob(tuple(jobs))
