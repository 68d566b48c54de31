"""Calls to Slurm's commands, and the state of its queue.

The queue is only a hint next to our own markers (slurm.state): its answer may be missing, late or wrong.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.run_folder import Status
from slurm.state import at_work, node_name

OF_OURS = "@mixerbench"
"""End of the names of all our jobs, by which we find them in the queue."""
PATIENCE = 60
"""Seconds to wait for an answer that is needed; Slurm's own clients retry for about ten."""
HINT_PATIENCE = 20
"""Seconds to wait for an answer that is optional."""
SILENCE = 120
"""Seconds without a heartbeat after which a process on another machine counts as gone."""
OPTIONS = ("SLURM", "SUBMITIT_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "PMI")
"""Prefixes of variables that Slurm's commands and submitit read as options. A job sets many for its children."""
KEPT = ("SLURM_CONF", "SLURM_JWT")
"""Variables that say which cluster to ask, and as whom."""


WAITS = {
    "Resources": "for free nodes",
    "Priority": "for jobs with a higher priority",
    "Dependency": "for other jobs to end",
    "JobArrayTaskLimit": "for other tasks of its array, of which `concurrency` run at the same time",
    "BeginTime": "for its time to start, which a requeue puts off",
    "JobHeldUser": "on hold; `scontrol release` lets it go",
    "JobHeldAdmin": "on hold, by an administrator",
    "Licenses": "for licenses",
    "Reservation": "for its reservation to begin",
    "ReqNodeNotAvail": "for nodes that are down, drained or reserved",
    "PartitionDown": "for its partition, which is down",
    "PartitionInactive": "for its partition, which is inactive",
    "PartitionTimeLimit": "for nothing that comes: its time limit is above the partition's",
    "PartitionNodeLimit": "for nothing that comes: it wants more nodes than the partition gives",
    "DependencyNeverSatisfied": "for nothing that comes: the job that it waits for has failed",
}
"""The reasons that Slurm gives for jobs that wait, in words."""


def waits(reason: str) -> str:
    """Why a job waits, in words with Slurm's own name for it; empty if Slurm gives no reason."""
    if reason in ("", "None"):
        return ""
    name = re.match(r"\w*", reason)[0]  # some go on with nodes
    words = WAITS.get(name)
    for prefix, owner in (("QOS", "the QOS"), ("Assoc", "the account"), ("MaxJobs", "the account")):
        if words is None and name.startswith(prefix):
            words = f"for a limit of {owner}"
    return f"waits {words} ({reason})" if words else f"waits: {reason}"


def is_option(variable: str) -> bool:
    """Whether an environment variable would change how a job is submitted, or pass for one that Slurm sets in a job."""
    return variable.startswith(OPTIONS) and variable not in KEPT


@contextmanager
def without_options() -> Iterator[None]:
    """Hide the variables of `is_option` from what this process starts.

    sbatch prefers them to the options of a batch script, and a job would inherit those of the job that submits it: its
    memory per CPU, its array index, its rank.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if is_option(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the end of the session (SIGHUP) and SIGTERM interrupt this process as ^C does, so that it can undo its work.

    The first of them counts; after it, all are ignored to the end of the context.
    """
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)

    def interrupt(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Queue:
    """The jobs in Slurm's queue.

    jobs: state, node and reason by job id (`7`, or `7_0` for an array task); None if Slurm did not answer.
    """

    jobs: dict[str, tuple[str, str, str]] | None

    @classmethod
    def read(cls) -> Queue:
        """The queue as squeue reports it, one entry per array task."""
        out = ask("squeue", "--noheader", "--array", "--format=%i|%T|%N|%r|%j", error=None)
        if out is None:
            return cls(None)
        rows = [line.split("|") for line in out.splitlines() if line.count("|") >= 4 and line.endswith(OF_OURS)]
        return cls({job: (state, node, reason) for job, state, node, reason, *_ in rows})

    def holds(self, folder: Path, unit: str, status: Status) -> str | None:
        """The job or process that works on a unit of a run or is going to, in words; None if there is none."""
        if status.state == "stopped":
            # Slurm restarts what it ended itself: jobs that were preempted or requeued, or whose node was lost.
            queue_state, *_ = (self.jobs or {}).get(status.job, ("",))
            return f"job {status.job}" if queue_state in ("PENDING", "CONFIGURING", "RUNNING") else None
        if status.state not in ("queued", "running", "requeued"):
            return None
        if status.job and self.jobs is not None:
            return f"job {status.job}" if status.job in self.jobs else None
        if status.job and status.state != "running":
            return f"job {status.job}"
        if at_work(folder, unit):
            return f"process {status.pid} on {status.node}"
        silent = time.time() - status.updated
        gone = status.state != "running" or status.node == node_name() or silent > SILENCE
        return None if gone else f"process {status.pid} on {status.node}"


def job_ids(text: str) -> list[str]:
    """Slurm's ids of jobs, separated by commas, of which each is in the queue or has just left it.

    Raises ValueError for anything else, and RuntimeError if Slurm does not answer.
    """
    ids = text.split(",")
    for job in ids:
        if not re.fullmatch(r"\d+(_\d+)?", job):
            raise ValueError(f"--after: {job!r} is no id of a job; give ids as squeue shows them, separated by commas")
        try:
            ask("squeue", "--noheader", "--format=%i", f"--jobs={job}", error=RuntimeError)
        except RuntimeError as error:
            if "Invalid job id" not in str(error):
                raise
            raise ValueError(f"--after: Slurm knows no job {job} any more; leave it out if it has ended") from None
    return ids


def ask(*command: str, error: type[Exception] | None, script: str | None = None) -> str | None:
    """Run one of Slurm's commands, without the variables of `is_option`, and return its stdout. script: its stdin.

    If the command is missing, fails or does not answer in time, raises `error` with the reason in one line, or returns
    None if `error` is None.
    """
    remedy = "; try again when the cluster is up"
    patience = HINT_PATIENCE if error is None else PATIENCE
    try:
        options = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
        with without_options():
            done = subprocess.run(command, input=script, timeout=patience, **options)
    except subprocess.TimeoutExpired:
        fault = f"{' '.join(command)}: no answer within {patience} s{remedy}"
    except (FileNotFoundError, PermissionError):
        fault = f"PATH: {command[0]} not found; submit from a login node of the cluster"
    else:
        if done.returncode == 0:
            return done.stdout
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
        fault = f"{' '.join(command)}: {reason}{remedy if 'Unable to contact' in reason else ''}"
    if error is not None:
        raise error(fault)
    return None
