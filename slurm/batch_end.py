"""Decide at the end of a batch script whether its unfinished job starts again.

The script calls `python -m slurm.batch_end ARRAY INDEX CODE TERMINATED` when its job did not finish. Exit status 0: the
script asks Slurm to requeue the job. Exit status 1: it does not. Needs no torch, since it runs once per failed job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from slurm.state import settle


def main(array: str, index: str, code: str, terminated: str) -> int:
    """Settle the unit that the job worked on; returns 0 if it is to start again, else 1.

    array: JSON file with [run folder, unit] of every task of the job array. index: the task's. code: the job's exit
    status. terminated: "1" if the job received SIGTERM.
    """
    folder, unit = json.loads(Path(array).read_text(encoding="utf-8"))[int(index)]
    return 0 if settle(Path(folder), unit, int(code), terminated == "1") else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
