"""The end of a batch script whose job did not finish: `python -m slurm.batch_end ARRAY INDEX CODE TERMINATED`.

Exits with 0 if the job is to be started again, which the script then asks of Slurm, and with 1 if not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from slurm.state import settle


def main(array: str, index: str, code: str, terminated: str) -> int:
    """array: the JSON file with [folder, unit] of every task of a job array."""
    folder, unit = json.loads(Path(array).read_text())[int(index)]
    return 0 if settle(Path(folder), unit, int(code), terminated == "1") else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
