"""What Slurm says of jobs: a hint beside our own markers, which may be missing, late or wrong."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from slurm.state import Status, at_work, node_name

NAME = "mixerbench"  # of all our jobs, so that the queue can be asked for them
PATIENCE = 20  # seconds until an answer of Slurm's is given up
SILENCE = 120  # seconds without a heartbeat after which a process of another machine counts as gone


@dataclass(frozen=True)
class Queue:
    """The jobs in Slurm's queue: its state, node and reason by id. None where Slurm did not answer."""

    jobs: dict[str, tuple[str, str, str]] | None

    @classmethod
    def read(cls) -> Queue:
        """Ask squeue, if there is one; arrays are given by task."""
        command = ["squeue", "--noheader", "--array", f"--name={NAME}", "--format=%i|%T|%N|%r"]
        out = ask(command)
        if out is None:
            return cls(None)
        rows = [line.split("|") for line in out.splitlines() if line.count("|") >= 3]
        return cls({job: (state, node, reason) for job, state, node, reason, *_ in rows})

    def holds(self, folder: Path, unit: str, status: Status) -> str | None:
        """Who is going to do or doing a unit of a run: a job or a process, in words; None if nobody is."""
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


def ask(command: list[str]) -> str | None:
    """The output of one of Slurm's commands, or None where it is missing, fails or does not answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
