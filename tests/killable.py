"""Commands in processes that can be killed, forked from one that has imported everything: each starts at once."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Imported here for the fork server, whose children then have them.
import harness.lm.export  # noqa: F401
import harness.tables.collection  # noqa: F401
import slurm.collect  # noqa: F401
import slurm.local  # noqa: F401
import suites.recall  # noqa: F401
from run import app

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.killable"])


def run(arguments: list[str], log: Path, kill_after: float | None = None) -> tuple[int, float]:
    """Run a command to its end, or kill it after some seconds. Returns its exit code and the seconds that it took; the
    code of a killed one is -9. log: receives its output."""
    process = context.Process(target=_command, args=(arguments, str(log)))
    started = time.perf_counter()
    process.start()
    process.join(kill_after)
    process.kill()  # nothing happens to a process that has ended
    process.join()
    assert process.exitcode is not None
    return process.exitcode, time.perf_counter() - started


def _command(arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        app(arguments)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
