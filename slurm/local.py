"""Running a plan on this machine through submitit: a bounded number of processes at a time, with live progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import submitit

from slurm.jobs import do, read_status
from slurm.plan import RunPlan

POLL = 0.5  # seconds between two looks at the running jobs


def run_plan(
    plans: list[RunPlan],
    logs: Path,
    cluster: str,
    parallel: int,
    command: str,
    progress: Callable[[list[tuple[RunPlan, str]]], None],
) -> dict[str, str]:
    """Finish all runs of a plan; returns the reason of each that failed, by run id.

    cluster: `local` for processes of submitit's LocalExecutor, `parallel` of them at a time (it has no queue of its
    own), or `debug` for this process, one by one. progress is called with every run and what it is doing. When this
    process is interrupted the jobs are stopped; calling again continues them.
    """
    waiting = [p for p in plans if p.missing]
    executor: submitit.Executor
    if cluster == "debug":
        executor = submitit.DebugExecutor(logs)
    else:
        executor = submitit.LocalExecutor(logs)
        # Jobs of a sweep can take days; submitit's limit for local jobs is there to be set.
        executor.update_parameters(timeout_min=60 * 24 * 30)
    running: list[tuple[RunPlan, submitit.Job[None]]] = []
    failures: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                work = waiting.pop(0)
                running.append((work, executor.submit(do, work, command)))
            still = []
            for work, job in running:
                if cluster != "debug" and not job.done():
                    still.append((work, job))
                elif (error := job.exception()) is not None:
                    failures[work.config.run_id] = _reason(work, error, job)
            running = still
            progress([(work, describe(work)) for work, _ in running])
            if running:
                time.sleep(POLL)
    finally:
        for _, job in running:
            job.cancel()
    return failures


def describe(work: RunPlan) -> str:
    """What a run is doing, in one line."""
    status = read_status(work.folder)
    return "starting" if status is None else f"{status.state}: {status.detail}"


def _reason(work: RunPlan, error: BaseException, job: submitit.Job[None]) -> str:
    status = read_status(work.folder)
    if status is not None and status.state == "failed":
        return status.detail
    return f"{type(error).__name__}: the process died; its log is {job.paths.stderr}"
