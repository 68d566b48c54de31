"""The end of a batch script: it decides about a restart without importing torch."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from slurm import batch_end
from slurm.state import started
from suites.units import TRAIN

KILLED = 128 + signal.SIGKILL


def test_the_end_of_a_batch_script_asks_without_torch(tmp_path: Path) -> None:
    started(tmp_path, TRAIN, "log")
    listed = tmp_path / "train-0.json"
    listed.write_text(json.dumps([["elsewhere", TRAIN], [str(tmp_path), TRAIN]]))
    code = "import sys, slurm.batch_end; print(slurm.batch_end.main(*sys.argv[1:]), 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(listed), "1", str(KILLED), "0"], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["0", "False"]
    started(tmp_path, TRAIN, "log")
    assert batch_end.main(str(listed), "1", str(KILLED), "0") == 1
