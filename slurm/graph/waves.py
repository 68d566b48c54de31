"""Waves: a sweep that is larger than a site's limits on jobs in the queue, in parts that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slurm.graph.work import Pending, Work
from suites.units import TRAIN

BESIDES = 2
"""Jobs in the queue besides those of a wave: the one before it (that prepares, or submits it) and the one after it."""


def split(work: Work, most: int | None, pack: bool) -> tuple[Work, Work]:
    """The next wave of at most `most` jobs, and the work after it. most: at least 1; None: no limit.

    All trials come before the choice, and that before all runs. Runs are kept whole as long as a wave holds one:
    what is left of a split one waits for its training as it would have in one wave.
    """
    trials, later, most = _take(work.trials, most, pack)
    if later or (work.choices and most == 0):
        return Work(trials, [], [], [], work.left_out), replace(work, trials=later, left_out=[])
    if work.choices and most is not None:
        most -= 1
    runs, later, _ = _take(work.runs, most, pack, split_first=not trials and not work.choices)
    return replace(work, trials=trials, runs=runs), Work([], later, [], [], [])


def waves(work: Work, most: int | None, pack: bool) -> list[Work]:
    """All waves of a sweep, each of at most `most` jobs."""
    found = []
    while not found or work.pending or work.choices:
        wave, work = split(work, most, pack)
        found.append(wave)
    return found


def _take(
    todo: Sequence[Pending], most: int | None, pack: bool, split_first: bool = True
) -> tuple[list[Pending], list[Pending], int | None]:
    """The runs of the next wave, the others, and the jobs that the wave may still have."""
    taken: list[Pending] = []
    for number, run in enumerate(todo):
        jobs = run.bundles(pack)
        if most is not None and len(jobs) > most:
            fits = most if TRAIN not in run.units or (split_first and not taken) else 0
            parts = [[unit for units in some for unit in units] for some in (jobs[:fits], jobs[fits:])]
            now, later = ([replace(run, units=part)] if part else [] for part in parts)
            return [*taken, *now], [*later, *todo[number + 1 :]], 0
        taken.append(run)
        most = None if most is None else most - len(jobs)
    return taken, [], most
