"""What Slurm says: how its commands are called, and what it says of jobs, a hint beside our own markers that may be
missing, late or wrong."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from slurm.state import Status, at_work, node_name

NAME = "mixerbench"  # of all our jobs, so that the queue can be asked for them
PATIENCE = 60  # seconds for an answer that is needed; Slurm's clients themselves try for some ten
HINT_PATIENCE = 20  # seconds for one that can be done without
SILENCE = 120  # seconds without a heartbeat after which a process of another machine counts as gone


@dataclass(frozen=True)
class Queue:
    """The jobs in Slurm's queue: its state, node and reason by id. None where Slurm did not answer."""

    jobs: dict[str, tuple[str, str, str]] | None

    @classmethod
    def read(cls) -> Queue:
        """Ask squeue, if there is one; arrays are given by task."""
        out = ask("squeue", "--noheader", "--array", f"--name={NAME}", "--format=%i|%T|%N|%r", error=None)
        if out is None:
            return cls(None)
        rows = [line.split("|") for line in out.splitlines() if line.count("|") >= 3]
        return cls({job: (state, node, reason) for job, state, node, reason, *_ in rows})

    def holds(self, folder: Path, unit: str, status: Status) -> str | None:
        """Who is going to do or doing a unit of a run: a job or a process, in words; None if nobody is."""
        if status.state == "stopped":
            # Slurm starts again what it has ended itself: a job that is preempted or requeued, or whose node is lost.
            said, *_ = (self.jobs or {}).get(status.job, ("",))
            return f"job {status.job}" if said in ("PENDING", "CONFIGURING", "RUNNING") else None
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


def ask(*command: str, error: type[Exception] | None, script: str | None = None) -> str | None:
    """What one of Slurm's commands prints; script: its input.

    Where the command is missing, fails or does not answer: raises `error` with the reason in one line, or returns None
    where that is None.
    """
    remedy = "; try again when the cluster is up"
    patience = HINT_PATIENCE if error is None else PATIENCE
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=patience)
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
