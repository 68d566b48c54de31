"""A submission before it is made: its jobs, what they cost, how long they take, and what Slurm has to hold."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path

from harness.experiments.schema import Experiment
from harness.run_folder import submissions_folder
from harness.training.cost import cost_of, disk_of, measured_speeds
from harness.training.estimate import estimate
from slurm.graph.arrays import Array, Sweep, collects, graph, prepares
from slurm.graph.limits import Later
from slurm.graph.waves import BESIDES, waves
from slurm.graph.work import Pending, Work, work_left
from slurm.plan import RunPlan, trials
from slurm.probe import array_limit
from slurm.profile import Profile
from slurm.queue import Queue
from slurm.submission import ReleaseJob, most_jobs, require_shares, resources_of
from suites.units import TRAIN

Hours = dict[tuple[str, str, str], float]
"""The hours that training one run takes, by label, layout and preset. Runs whose hours nobody can tell are left out."""


def describe(
    experiment: Experiment, plans: Sequence[RunPlan], profile: Profile, runs_root: Path, after: Sequence[str] = ()
) -> str:
    """Describe what `submit` would do: the graph of jobs, their resources, and the cost of training.

    after: see `submit`. Touches nothing. Raises ValueError as `submit` does.
    """
    require_shares(plans, profile)
    work = work_left(plans, Queue.read())
    found = _waves(work, profile)
    sweep = Sweep(experiment.name, submissions_folder(runs_root), runs_root, "", _array_limit(), profile, {})
    graphs = _graphs(found, work, sweep, after)
    finished = sum(not plan.missing for plan in plans)
    lines = [f"{experiment.name}: {len(plans)} runs, {finished} of them done"]
    if tried := trials(plans):
        lines.append(f"{len(tried)} trials, {len(tried) - len(work.trials)} of them over or at work")
    lines += [f"left out: {line}" for line in work.left_out]
    if graphs:
        lines += _table(graphs[0], profile)
        if len(graphs) > 1:
            lines.append(f"then {len(graphs) - 1} more waves, each submitted by the last job of the one before")
        counts = [sum(len(array.tasks) for array in arrays) + (number > 0) for number, arrays in enumerate(graphs)]
        calls = sum(map(len, graphs))
        lines.append(f"{calls} calls of sbatch, at most {max(counts)} jobs in the queue at the same time")
    trained = [run.plan.config for run in work.pending if TRAIN in run.units]
    processes = profile.train.nodes * profile.train.tasks
    speeds = measured_speeds(runs_root)
    lines.append(
        cost_of(trained, profile.tflops, profile.utilisation, speeds, profile.device, processes, profile.sharding)
    )
    if trained:
        lines.append(disk_of(trained))
    hours: Hours = {}
    for run in trained:
        cost = estimate(run, profile.tflops or 1.0, profile.utilisation, speeds, profile.device, processes)
        if cost.measured or profile.tflops is not None:
            model = (run.label, run.layout, run.preset)
            hours[model] = max(hours.get(model, 0.0), cost.device_hours / processes)
    return "\n".join([*lines, *_restarts(hours, profile), *_wall_clock(hours, found, profile)])


def _array_limit() -> int:
    try:
        return array_limit()
    except ValueError:  # a dry run needs no cluster
        return 1001  # Slurm's default


def _waves(work: Work, profile: Profile) -> list[Work]:
    """The waves of a submission; none if it has nothing to do."""
    if not work.runs:
        return []
    try:
        most = most_jobs(profile)
    except Later:  # a dry run needs no queue
        most = None if profile.max_jobs is None else profile.max_jobs - BESIDES
    return waves(work, most, profile.evaluate.pack)


def _graphs(found: Sequence[Work], work: Work, sweep: Sweep, after: Sequence[str]) -> list[list[Array]]:
    """The arrays of each wave."""
    graphs = []
    for number, wave in enumerate(found):
        released = ReleaseJob(sweep.folder, f"release-{number + 1}", sweep, wave, number + 1)
        last = collects(sweep) if wave is found[-1] else released
        graphs.append(graph(wave, sweep, "release" if number else prepares(sweep, work), last, number, after))
    return graphs


def _table(arrays: Sequence[Array], profile: Profile) -> list[str]:
    """One line per array, with the resources of each of its tasks."""
    lines = [f"{'array':24} {'tasks':>6} {'at once':>8} {'nodes × GPUs':>13} {'CPUs':>5} {'limit':>10}  after"]
    for array in arrays:
        resources = resources_of(profile, array)
        at_once = min(len(array.tasks), profile.concurrency or len(array.tasks))
        after = ", ".join(f"{kind}:{name}" for kind, name in array.after[:3]) + (", …" if len(array.after) > 3 else "")
        shape = f"{resources.nodes} × {resources.gpus_per_node}"
        cpus = resources.cpus_per_task * resources.tasks
        limit = f"{resources.minutes // 60}:{resources.minutes % 60:02} h"
        lines.append(f"{array.name:24} {len(array.tasks):6} {at_once:8} {shape:>13} {cpus:5} {limit:>10}  {after}")
    return lines


def _restarts(hours: Hours, profile: Profile) -> list[str]:
    """One line per model: the hours that training one run takes, and how often its time limit ends its job."""
    usable = profile.train.minutes / 60 - profile.signal_delay_s / 3600
    lines = []
    for (label, layout, preset), each in hours.items():
        restarts = math.ceil(each / usable) - 1
        again = f"started again {restarts} times" if restarts else "done in one job"
        lines.append(
            f"one run of {label}, {layout}, {preset}: {each:,.1f} h, {again} of {profile.train.minutes} minutes"
        )
    return lines


def _wall_clock(hours: Hours, found: Sequence[Work], profile: Profile) -> list[str]:
    """A line with the hours that all training takes if its jobs never wait for nodes; none if they are not known.

    A wave begins when the one before is over, and its runs when its trials are.
    """
    total, most = 0.0, 0
    for todo in (part for wave in found for part in (wave.trials, wave.runs)):
        times = [hours.get(_model(run)) for run in todo if TRAIN in run.units]
        if None in times:
            return []
        known = [each for each in times if each is not None]
        at_once = min(len(known), profile.concurrency or len(known))
        total, most = total + makespan(known, at_once), max(most, at_once)
    if not most:
        return []
    return [
        f"training takes {total:,.1f} h of wall-clock time with {most} runs at the same time, if no job has to wait"
    ]


def _model(run: Pending) -> tuple[str, str, str]:
    return run.plan.config.label, run.plan.config.layout, run.plan.config.preset


def makespan(times: Sequence[float], at_once: int) -> float:
    """The time until jobs of these lengths are over that start in this order, `at_once` of them at the same time."""
    ends: list[float] = []
    for each in times:
        heapq.heappush(ends, each + (heapq.heappop(ends) if len(ends) == at_once else 0.0))
    return max(ends, default=0.0)
