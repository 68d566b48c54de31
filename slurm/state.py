"""The progress of each run: markers in its folder that jobs write and everything else reads.

    <run>/state/<unit>.json    the Status of a unit: `train`, a suite, or SUITE@LENGTH
    <run>/state/<unit>.jsonl   its attempts, one event per line: started, ended, settled, retry
    <run>/state/<unit>.lock    held by the process that works on it

This module imports no torch: the end of a batch script and the status of thousands of runs must be quick.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from harness.run_folder import RunFolder, State, Status, unit_of
from suites.units import TRAIN

MOST_FAILURES = 10
"""Failed attempts after which a unit is given up, however different the failures are."""
LEAVE_SIGNAL = signal.SIGUSR2
"""The signal to save and leave, which Slurm sends before a time limit."""
LEFT = 75
"""Exit status of a process that saved and left: EX_TEMPFAIL of sysexits.h, "try again later"."""


def job_id() -> str:
    """This process's Slurm job id as users write it (`7`, or `7_0` for an array task).

    Empty if the process is not itself a job of ours, even if it was started inside one.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return ""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")


def node_name() -> str:
    """The name of this node: Slurm's, or else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def write_status(folder: Path, unit: str, state: State, detail: str = "", **progress: Any) -> None:
    """Replace a unit's status by one from this process at this moment. progress: further fields of Status."""
    known = {"job": job_id(), "node": node_name(), "pid": os.getpid(), "updated": time.time()}
    RunFolder(folder).write_status(unit, Status(state, detail, **(known | progress)))


class Busy(RuntimeError):
    """Raised if another process works on the same unit of a run."""


@contextmanager
def exclusively(folder: Path, unit: str, patience: float = 1.0) -> Iterator[None]:
    """Hold a unit of a run; raises Busy if another process still works on it after `patience` seconds.

    Keep patience above zero: `at_work` takes the lock for a moment.
    """
    path = RunFolder(folder).lock(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as lock:
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
    """Whether a process holds a unit of a run. Sees other machines only if the file system shares its locks."""
    try:
        with open(RunFolder(folder).lock(unit), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _append(folder: Path, unit: str, **event: Any) -> None:
    RunFolder(folder).append_attempt(unit, event | {"time": time.time()})


def started(folder: Path, unit: str, log: str) -> None:
    """Record that an attempt begins. log: path of the file it prints to.

    If nothing recorded the end of the previous attempt, its node went down together with its batch script. It is
    recorded as lost, which is not a failure of the unit: Slurm has restarted the job.
    """
    before = RunFolder(folder).read_attempts(unit)[-1:]
    if before and before[0]["event"] == "started":
        ended(folder, unit, "lost", silent_end(before[0]["node"]))
    _append(folder, unit, event="started", job=job_id(), node=node_name(), pid=os.getpid(), log=log)


def ended(
    folder: Path, unit: str, outcome: Literal["failed", "left", "terminated", "lost"], reason: str, kind: str = ""
) -> None:
    """Record the end of an attempt that did not finish its unit.

    outcome: `left`: it was told to save and leave, and its job starts again. `terminated`: it was told to end. `lost`:
    nobody was left to record the end. `failed`: anything else. kind: class of the error, if one was raised.
    """
    _append(folder, unit, event="ended", outcome=outcome, reason=reason, kind=kind, reached=_reached(folder, unit))


def silent_end(node: str) -> str:
    """The reason recorded for an attempt that could not record its own end."""
    return f"ended without a word on {node}"


def forgive(folder: Path, unit: str) -> None:
    """Forget a unit's failures, so that it is tried again."""
    _append(folder, unit, event="retry")
    RunFolder(folder).status(unit).unlink(missing_ok=True)


def failed_units(folder: Path, places: Mapping[str, str]) -> list[str]:
    """Those units of a run that were given up. places: where the run's folder keeps each unit."""
    statuses = {unit: RunFolder(folder).read_status(place) for unit, place in places.items()}
    return [unit for unit, status in statuses.items() if status is not None and status.state == "failed"]


def unsettled(folder: Path, unit: str) -> bool:
    """Whether a unit's last attempt has not been settled: it is at work, or its process has ended without finishing."""
    return any(event["event"] in ("started", "ended") for event in RunFolder(folder).read_attempts(unit)[-1:])


def settle(folder: Path, unit: str, code: int | None, terminated: bool = False, out_of_memory: bool = False) -> bool:
    """Decide whether a unit starts again whose process ended without finishing it, and write its status.

    Returns True if it is to start again. A unit is given up after two failures of the same kind without progress in
    between, after MOST_FAILURES failures, or when it was told to leave as often without progress in between. code: exit
    status in the shell's convention, None if unknown. terminated: whether its job was told to end. out_of_memory:
    whether its job was killed for its memory.
    """
    try:
        with exclusively(folder, unit):  # its next attempt may be about to begin on another node
            return _settled(folder, unit, code, terminated, out_of_memory)
    except Busy:  # the process was turned away because another one works on the unit, which decides
        return False


def _settled(folder: Path, unit: str, code: int | None, terminated: bool, out_of_memory: bool) -> bool:
    log = RunFolder(folder).read_attempts(unit)
    if not log or log[-1]["event"] != "ended":
        told = code in (LEFT, 128 + LEAVE_SIGNAL)
        how = f"told to leave by {LEAVE_SIGNAL.name}" if told else _death(code)
        if out_of_memory:
            how = f"{how}: out of memory; raise {_stage(unit)}.mem_gb in the profile"
        elif not log or log[-1]["event"] != "started":
            how += " before it began" if told else " before it began; see the job's log"
        ended(folder, unit, "terminated" if terminated else "left" if told else "failed", how)
        log = RunFolder(folder).read_attempts(unit)
    last = log[-1]
    _append(folder, unit, event="settled")
    if last["outcome"] not in ("failed", "left"):
        write_status(folder, unit, "stopped", last["reason"])
        return False
    forgiven = max((i for i, event in enumerate(log) if event["event"] == "retry"), default=-1)
    alike = [event for event in log[forgiven + 1 :] if event.get("outcome") == last["outcome"]]
    stuck = [event for event in alike if event["reached"] == last["reached"]]
    given_up = ""
    if last["outcome"] == "left":
        if len(stuck) >= MOST_FAILURES:
            given_up = f"{len(stuck)} times without progress in between; raise {_stage(unit)}.minutes in the profile"
    elif any(_signature(event) == _signature(last) for event in stuck[:-1]):
        given_up = "failed twice in the same way"
    elif len(alike) >= MOST_FAILURES:
        given_up = f"failed {len(alike)} times"
    if given_up:
        write_status(folder, unit, "failed", f"{last['reason']} ({given_up}; `retry` tries again)")
        return False
    write_status(folder, unit, "requeued", last["reason"])
    return True


def _death(code: int | None) -> str:
    """How a process ended that left no word, in words."""
    if code is None:
        return "its process died"
    with suppress(ValueError):  # programs also exit with codes above 128 that are no signal's
        return f"killed by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


def _stage(unit: str) -> str:
    """The stage of a profile that gives a unit its resources."""
    name = unit_of(unit)
    if name == TRAIN:
        return name
    return "prepare" if name in ("prepare", "choose", "collect") or name.startswith("release-") else "evaluate"


def _signature(failure: dict[str, Any]) -> str:
    """A failure's kind: its reason without the numbers, which are steps, addresses and times."""
    return re.sub(r"\d+", "#", failure["reason"])


def _reached(folder: Path, unit: str) -> str:
    """The progress that the next attempt need not repeat: the last checkpoint, or the size of the saved answers."""
    if unit == TRAIN:
        try:
            return max(json.loads(RunFolder(folder).checkpoint_index.read_bytes()), default="")
        except (OSError, ValueError, TypeError):
            return ""
    return str(sum(path.stat().st_size for path in RunFolder(folder).all_answers(unit)))
