"""Where the work on a run stands: markers in its folder that jobs write and everything else reads.

    <run>/state/<unit>.json    the Status of a unit: `train`, or what `suites.units` makes of a suite
    <run>/state/<unit>.jsonl   its attempts, an event a line: started, ended, settled, retry
    <run>/state/<unit>.lock    held by the process that works on it

Nothing here needs torch: the end of a batch script and the status of thousands of runs must be quick.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from harness.run_folder import RunFolder, State, Status
from suites.units import TRAIN

# Attempts that end in a failure before a unit is given up, however different the failures are.
MOST_FAILURES = 10


def job_id() -> str:
    """Slurm's id of the job that this process is, as its users write it; empty for a process that is none, even where
    it was started inside of one."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return ""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def write_status(folder: Path, unit: str, state: State, detail: str = "", **progress: Any) -> None:
    """Replace a unit's status by one of this process and this moment."""
    known = {"job": job_id(), "node": node_name(), "pid": os.getpid(), "updated": time.time()}
    RunFolder(folder).write_status(unit, Status(state, detail, **(known | progress)))


def read_status(folder: Path, unit: str) -> Status | None:
    """The last status of a unit; None before its first."""
    return RunFolder(folder).read_status(unit)


class Busy(RuntimeError):
    """Another process works on a unit of a run."""


@contextmanager
def exclusively(folder: Path, unit: str, patience: float = 1.0) -> Iterator[None]:
    """Hold a unit of a run; Busy when another process works on it for longer than `patience` seconds. Some is
    always needed: who asks `at_work` holds the lock for a moment."""
    path = RunFolder(folder).lock(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy(
                        f"{folder}: another process is working on {unit} of this run; wait for it or stop it"
                    ) from None
                time.sleep(0.05)
        yield


def at_work(folder: Path, unit: str) -> bool:
    """Whether a process, of this machine at least, holds a unit of a run."""
    try:
        with open(RunFolder(folder).lock(unit)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def events(folder: Path, unit: str) -> list[dict[str, Any]]:
    """The attempts of a unit; a line that a dying machine cut off is left out."""
    return RunFolder(folder).read_attempts(unit)


def _append(folder: Path, unit: str, **event: Any) -> None:
    RunFolder(folder).append_attempt(unit, event | {"time": time.time()})


def started(folder: Path, unit: str, log: str) -> None:
    """Note that an attempt begins, and how the one before ended if nothing else has: its batch script, too, went with
    its node. Slurm has started the job again, so that is no failure of the unit's. log: the file of what it prints."""
    before = events(folder, unit)[-1:]
    if before and before[0]["event"] == "started":
        ended(folder, unit, "lost", silent_end(before[0]["node"]))
    _append(folder, unit, event="started", job=job_id(), node=node_name(), pid=os.getpid(), log=log)


def ended(folder: Path, unit: str, outcome: Literal["failed", "left", "terminated", "lost"], reason: str) -> None:
    """Note how an attempt ends that does not finish. left: it was told to save and leave, and goes on in its next
    start. terminated: it was told to end. lost: nobody was left to say how."""
    _append(folder, unit, event="ended", outcome=outcome, reason=reason, reached=_reached(folder, unit))


def silent_end(node: str) -> str:
    """How an attempt ended that had no time to say so, in words."""
    return f"ended without a word on {node}"


def forgive(folder: Path, unit: str) -> None:
    """Forget a unit's failures, so that it is tried anew."""
    _append(folder, unit, event="retry")
    RunFolder(folder).status(unit).unlink(missing_ok=True)


def settle(folder: Path, unit: str, code: int | None, terminated: bool = False) -> bool:
    """What becomes of a unit whose process has ended without finishing it: True if it is to be started again.

    code: its exit status, as a shell gives it, where it is known. terminated: whether its job was told to end. Writes
    the status. A unit is given up when it fails twice in the same way without having come further in between, or
    MOST_FAILURES times.
    """
    try:
        with exclusively(folder, unit):  # elsewhere its next attempt may be about to begin
            return _settled(folder, unit, code, terminated)
    except Busy:  # another process works on it: this one was turned away, and has no say
        return False


def _settled(folder: Path, unit: str, code: int | None, terminated: bool) -> bool:
    log = events(folder, unit)
    if not log or log[-1]["event"] != "ended":
        how = "its process died" if code is None else f"ended with exit code {code}"
        if code is not None and code > 128:
            how = f"killed by {signal.Signals(code - 128).name}"
        begun = bool(log) and log[-1]["event"] == "started"
        reason = how if begun else f"{how} before it began; see the job's log"
        ended(folder, unit, "terminated" if terminated else "failed", reason)
        log = events(folder, unit)
    last = log[-1]
    _append(folder, unit, event="settled")
    if last["outcome"] != "failed":
        goes_on = last["outcome"] == "left"
        write_status(folder, unit, "requeued" if goes_on else "stopped", last["reason"])
        return goes_on
    forgiven = max((i for i, event in enumerate(log) if event["event"] == "retry"), default=-1)
    failures = [event for event in log[forgiven + 1 :] if event.get("outcome") == "failed"]
    again = [f for f in failures[:-1] if _signature(f) == _signature(last) and f["reached"] == last["reached"]]
    if again or len(failures) >= MOST_FAILURES:
        why = "twice in the same way" if again else f"{len(failures)} times"
        write_status(folder, unit, "failed", f"{last['reason']} (failed {why}; `retry` tries again)")
        return False
    write_status(folder, unit, "requeued", last["reason"])
    return True


def _signature(failure: dict[str, Any]) -> str:
    """A failure's kind: its reason without the numbers, which name steps, addresses and times."""
    return re.sub(r"\d+", "#", failure["reason"])


def _reached(folder: Path, unit: str) -> str:
    """How far a unit has come, such that it changes with everything that a next attempt need not do again."""
    if unit == TRAIN:
        try:
            return max(json.loads(RunFolder(folder).checkpoint_index.read_bytes()), default="")
        except (OSError, ValueError):
            return ""
    return str(sum(path.stat().st_size for path in RunFolder(folder).all_answers(unit)))
