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

from harness.run_folder import RunFolder
from slurm.queue import ask
from slurm.state import settle, unsettled

PATIENCE = 10.0
"""Seconds to wait until Slurm's accounting knows how a job's step ended."""


def main(array: str, index: str, code: str, terminated: str) -> int:
    """Settle the units that the job worked on; returns 0 if it is to start again, else 1.

    array: JSON file with [run folder, units] of every task of the job array, by index. index: the task's. code: the
    job's exit status. terminated: "1" if the job received SIGTERM.

    Of several units, those answer for the end that have begun and not finished, or all if none has begun.
    """
    folder, units = json.loads(Path(array).read_text(encoding="utf-8"))[index]
    run, told = RunFolder(Path(folder)), terminated == "1"
    statuses = {unit: run.read_status(unit) for unit in units}
    starved = int(code) == 128 + signal.SIGKILL and out_of_memory(os.environ.get("SLURM_JOB_ID", ""))
    left = [unit for unit, status in statuses.items() if status is None or status.state not in ("done", "failed")]
    begun = [unit for unit in left if unsettled(run.path, unit)]
    answering = left if told or not begun else begun
    again = [settle(run.path, unit, int(code), told, starved) for unit in answering]
    return 0 if any(again) or len(left) > len(answering) else 1


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
