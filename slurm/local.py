"""Running a plan on this machine through submitit: a bounded number of processes at a time, with live progress."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import submitit
import torch

from slurm.jobs import describe, do, read_status
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
    executors = [_executor(cluster, logs, slot) for slot in range(parallel)]
    running: list[tuple[RunPlan, submitit.Job[None], int]] = []
    failures: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                work, busy = waiting.pop(0), {slot for _, _, slot in running}
                slot = min(set(range(parallel)) - busy)
                running.append((work, executors[slot].submit(do, work, command), slot))
            still = []
            for work, job, slot in running:
                if cluster != "debug" and not job.done():
                    still.append((work, job, slot))
                elif (error := job.exception()) is not None:
                    failures[work.config.run_id] = _reason(work, error, job)
            running = still
            progress([(work, describe(work.folder)) for work, _, _ in running])
            if running:
                time.sleep(POLL)
    finally:
        # A job that is still ending would hold its run against the next submit. An interrupt that reaches Python inside
        # a destructor or a callback is dropped there, so it is said again; but not while submitit's controller waits,
        # for a second, to kill what did not hear the first: interrupted in that, it would leave the job behind.
        for _ in range(6):
            for _, job, _ in running:
                if not job.done():
                    job.cancel()
            said = time.time()
            while time.time() < said + 5 and not all(job.done() for _, job, _ in running):
                time.sleep(0.1)
    return failures


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


def _reason(work: RunPlan, error: BaseException, job: submitit.Job[None]) -> str:
    status = read_status(work.folder)
    if status is not None and status.state == "failed":
        return status.detail
    # submitit hands over the job's traceback, among its own lines: the last "SomeError: message" at a line's start.
    raised = re.findall(r"^[\w.]+: (.+)$", str(error), re.MULTILINE) if "Traceback" in str(error) else []
    if raised:
        return raised[-1]
    return f"the process died; its log is {job.paths.stderr}"
