"""Decide at the end of a batch script whether its unfinished job starts again.

The script calls `python -m slurm.batch_end ARRAY INDEX CODE TERMINATED` when its job did not finish. Exit status 0: the
script asks Slurm to requeue the job. Exit status 1: it does not. Needs no torch, since it runs once per failed job.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from slurm.queue import ask
from slurm.state import settle

PATIENCE = 10.0
"""Seconds to wait until Slurm's accounting knows how a job's step ended."""


def main(array: str, index: str, code: str, terminated: str) -> int:
    """Settle the unit that the job worked on; returns 0 if it is to start again, else 1.

    array: JSON file with [run folder, unit] of every task of the job array. index: the task's. code: the job's exit
    status. terminated: "1" if the job received SIGTERM.
    """
    folder, unit = json.loads(Path(array).read_text(encoding="utf-8"))[int(index)]
    starved = int(code) == 128 + signal.SIGKILL and out_of_memory(os.environ.get("SLURM_JOB_ID", ""))
    return 0 if settle(Path(folder), unit, int(code), terminated == "1", starved) else 1


def out_of_memory(job: str) -> bool:
    """Whether Slurm's accounting says that a step of a job was killed for its memory; False without accounting."""
    deadline = time.monotonic() + PATIENCE
    while job and (said := ask("sacct", "-n", "-P", "-o", "JobID,State", "-j", job, error=None)) is not None:
        rows = [line.split("|", 1) for line in said.splitlines() if "|" in line]
        steps = {name.rpartition(".")[2]: state for name, state in rows}
        if "OUT_OF_MEMORY" in steps.values():
            return True
        if steps.get("0", "RUNNING") != "RUNNING" or time.monotonic() > deadline:  # it lags by a second or two
            return False
        time.sleep(1)
    return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
