"""Running a plan on this machine through submitit: a bounded number of processes at a time, with live progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import submitit
import torch

from slurm.jobs import in_turn, run_jobs
from slurm.plan import RunPlan
from slurm.snapshot import environment
from slurm.state import at_work, read_status, settle
from suites.units import TRAIN, missing

POLL = 0.5  # seconds between two looks at the running jobs

Running = tuple[RunPlan, list[str], "submitit.Job[None]", int]


def run_plan(
    plans: Sequence[RunPlan],
    logs: Path,
    cluster: str,
    parallel: int,
    command: str,
    progress: Callable[[list[RunPlan]], None],
    code: Path | None = None,
) -> dict[str, str]:
    """Finish all runs of a plan; returns the reason of each that failed, by run id.

    cluster: `local` for processes of submitit's LocalExecutor, `parallel` of them at a time (it has no queue of its
    own), or `debug` for this process, one by one. A run that another process works on is waited for; what fails is
    tried again until `slurm.state.settle` gives it up. progress is called with the runs that are being worked on. When
    this process is interrupted the jobs are stopped; calling again continues them. code: a snapshot to run.
    """
    if code is not None:
        os.environ.update(environment(code))
    waiting, running = list(plans), []
    executors = [_executor(cluster, logs, slot) for slot in range(parallel)]
    try:
        while waiting or running:
            for work in list(waiting):
                if len(running) == parallel:
                    break
                units = _left(work)
                if not units:
                    waiting.remove(work)
                elif not at_work(work.folder, units[0]):
                    waiting.remove(work)
                    slot = min(set(range(parallel)) - {slot for *_, slot in running})
                    jobs = run_jobs(work, units, command)
                    running.append((work, units, executors[slot].submit(in_turn, jobs), slot))
            still: list[Running] = []
            for work, units, job, slot in running:
                if cluster != "debug" and not job.done():
                    still.append((work, units, job, slot))
                    continue
                if cluster == "debug":
                    job.exception()  # which is when submitit's debug jobs run
                unfinished = [unit for unit in _left(work) if unit in units]
                # Whether the job left a result says less than the run's folder does, and submitit would wait for it.
                if not unfinished or settle(work.folder, unfinished[0], None) or _failed(work):
                    waiting.append(work)
            running = still
            progress([work for work, *_ in running])
            if running or waiting:
                time.sleep(POLL if cluster != "debug" else 0)
    finally:
        _stop([job for _, _, job, _ in running])
    return _failures(plans)


def _left(work: RunPlan) -> list[str]:
    """What can still be done of a run: nothing behind a training that has failed."""
    failed = _failed(work)
    return [] if TRAIN in failed else [u for u in missing(work.folder, work.units) if u not in failed]


def _failed(work: RunPlan) -> dict[str, str]:
    """Why units that are missing were given up."""
    found = {unit: read_status(work.folder, unit) for unit in missing(work.folder, work.units)}
    return {unit: s.detail for unit, s in found.items() if s is not None and s.state == "failed"}


def _failures(plans: Sequence[RunPlan]) -> dict[str, str]:
    lines = {work.config.run_id: [f"{unit}: {why}" for unit, why in _failed(work).items()] for work in plans}
    return {run: "; ".join(reasons) for run, reasons in lines.items() if reasons}


def _stop(jobs: Sequence[submitit.Job[None]]) -> None:
    """Interrupt jobs and wait until they have ended: one that still ends would hold its run against the next submit.

    An interrupt that reaches Python inside a destructor or a callback is dropped there, so it is said again; but not
    while submitit's controller waits, for a second, to kill what did not hear the first: interrupted in that, it would
    leave the job behind.
    """
    for _ in range(6):
        for job in jobs:
            if not job.done():
                job.cancel()
        said = time.time()
        while time.time() < said + 5 and not all(job.done() for job in jobs):
            time.sleep(0.1)


def _executor(cluster: str, logs: Path, slot: int) -> submitit.Executor:
    """Where the runs of one of the parallel slots go: each slot has a GPU of its own as far as there are enough."""
    if cluster == "debug":
        return submitit.DebugExecutor(logs)
    executor = submitit.LocalExecutor(logs)
    # Jobs of a sweep can take days; submitit's limit for local jobs is there to be set.
    executor.update_parameters(timeout_min=60 * 24 * 30)
    if gpus := torch.cuda.device_count():
        # Without this submitit hides all GPUs from its local jobs.
        executor.update_parameters(gpus_per_node=1, visible_gpus=(slot % gpus,))
    return executor
