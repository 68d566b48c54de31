"""Where the runs of an experiment stand: our own markers first, Slurm's queue and accounting as hints."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.queue import Queue, ask
from slurm.state import Status, events, node_name, read_status, silent_end, write_status
from suites.units import TRAIN, missing

# What a run is called when its units are in several states: the first of these that one of them is in.
ORDER = ("failed", "lost", "running", "requeued", "queued", "stopped", "waiting")


@dataclass(frozen=True)
class Row:
    """A run as `status` shows it.

    state: done; training or evaluating; queued; requeued; stopped; lost (its job is gone without a word); failed;
    waiting (nothing was submitted). unit: the one that the rest is about. finished of units: how far evaluation is.
    """

    run: str
    state: str
    unit: str
    step: int | None
    steps: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    finished: int
    units: int
    attempts: int
    reason: str
    node: str
    job: str

    def line(self) -> str:
        progress = f"{self.finished}/{self.units} evaluated"
        if self.step is not None and self.loss is not None:
            progress = f"step {self.step}/{self.steps}  loss {self.loss:.3f}"
        if self.tokens_per_second and self.seconds_left is not None:
            progress += f"  {self.tokens_per_second:,.0f} tok/s  {duration(self.seconds_left)} left"
        where = " ".join(filter(None, [self.job, self.node]))
        tries = f"{self.attempts}×" if self.attempts else ""
        return f"{self.run:44} {self.state:10} {progress:52} {tries:4} {where:16} {self.reason}".rstrip()


def duration(seconds: float) -> str:
    """Time in the two largest units that it fills."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Submitted:
    """A run as a submission has written it down."""

    experiment: str
    run: str
    folder: Path
    steps: int
    units: dict[str, dict[str, Any]]


def submissions(runs_root: Path, name: str) -> list[Path]:
    """The folders of an experiment's submissions, the oldest first."""
    found = []
    for path in (runs_root / "submissions").glob(f"{name}-*/plan.json"):
        head = json.loads(path.read_text())
        if head["experiment"] == name:
            found.append((head["time"], path.parent))
    return [folder for _, folder in sorted(found)]


def submitted(runs_root: Path, name: str) -> list[Submitted]:
    """All runs that submissions of an experiment have named, each as the last one did."""
    runs: dict[str, Submitted] = {}
    for folder in submissions(runs_root, name):
        for run in json.loads((folder / "plan.json").read_text())["runs"]:
            runs[run["run"]] = Submitted(name, run["run"], runs_root / run["run"], run["steps"], run["units"])
    return list(runs.values())


def overview(runs: Sequence[Submitted], queue: Queue) -> list[Row]:
    """A row for every run."""
    rows, lost = [], {}
    for run in runs:
        row = _row(run, queue)
        rows.append(row)
        if row.state == "lost" and row.job:
            lost[row.job] = len(rows) - 1
    for job, said in accounting(list(lost)).items():
        row = rows[lost[job]]
        rows[lost[job]] = Row(**vars(row) | {"reason": f"{said}; {row.reason}"})
    return rows


def _row(run: Submitted, queue: Queue) -> Row:
    left = missing(run.folder, run.units)
    found = {unit: _judged(run.folder, unit, queue) for unit in left}
    unit, status = min(found.items(), key=lambda item: ORDER.index(item[1][0]), default=(TRAIN, ("done", None)))
    state, known = status
    names = {"running": "training" if unit == TRAIN else "evaluating"}
    known = known or Status("done")
    evaluating = "" if unit == TRAIN or state == "done" else f"{unit}: "
    log = events(run.folder, unit)
    ends = [event["reason"] for event in log if event["event"] == "ended"]
    again = f"started again: {ends[-1]}" if state == "running" and ends else ""
    reason = "; ".join(filter(None, [known.detail, again]))
    return Row(
        run=run.run,
        state=names.get(state, state),
        unit=unit,
        step=known.step,
        steps=run.steps,
        loss=known.loss,
        tokens_per_second=known.tokens_per_second,
        seconds_left=known.seconds_left,
        finished=len(run.units) - sum(unit != TRAIN for unit in left),
        units=len(run.units),
        attempts=sum(event["event"] == "started" for event in log),
        reason=evaluating + reason if reason else "",
        node=known.node if state == "running" else "",
        job=known.job if state not in ("done", "waiting") else "",
    )


def _judged(folder: Path, unit: str, queue: Queue) -> tuple[str, Status | None]:
    """The state of a unit, in words of ORDER, and its status with what the queue adds."""
    status = read_status(folder, unit)
    if status is None:
        return "waiting", None
    if status.state == "done":  # but its result is not there, or is that of other options
        return "waiting", None
    if status.state == "failed":
        return "failed", status
    if queue.holds(folder, unit, status) is None:
        if status.state == "stopped":
            return "stopped", status
        gone = f"was {status.state}" + (f" ({status.detail})" if status.detail else "")
        detail = f"{gone}, but nothing works on it; submit again to continue"
        return "lost", Status(**vars(status) | {"detail": detail})
    said, _, reason = (queue.jobs or {}).get(status.job, ("", "", ""))
    if said == "PENDING" or status.state == "stopped":
        own = silent_end(status.node) if status.state == "running" else status.detail
        detail = "; ".join(part for part in (reason, own) if part not in ("None", ""))
        return "queued" if status.state == "queued" else "requeued", Status(**vars(status) | {"detail": detail})
    return status.state, status


def accounting(jobs: list[str]) -> dict[str, str]:
    """What Slurm's accounting says became of jobs; nothing where there is none."""
    found: dict[str, str] = {}
    for start in range(0, len(jobs), 500):
        part = ",".join(jobs[start : start + 500])
        out = ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", part, error=None)
        for line in (out or "").splitlines():
            job, _, state = line.partition("|")
            if job in jobs:
                found[job] = f"Slurm says {state}"
    return found


def troubles(runs_root: Path, name: str) -> list[str]:
    """What has kept the last submission from preparing or collecting, a line each: its runs cannot say so."""
    found = []
    for folder in submissions(runs_root, name)[-1:]:
        for unit in ("prepare", "collect"):
            status = read_status(folder, unit)
            if status is not None and status.state in ("failed", "stopped"):
                found.append(f"{unit} of {folder.name} {status.state}: {status.detail}")
    return found


def logs(runs_root: Path, run: str, unit: str | None, lines: int) -> str:
    """The end of what the last attempt at a run, or at one unit of it, has printed. Raises ValueError where there is
    none."""
    folder = runs_root / run
    if not (folder / "state").is_dir():
        known = sorted(path.parent.name for path in runs_root.glob("*/state"))
        raise ValueError(f"run: no {run!r} has started in {runs_root}; known: {', '.join(known) or 'none'}")
    units = [unit] if unit else sorted(path.stem for path in (folder / "state").glob("*.jsonl"))
    begun = [(e["time"], u, e["log"]) for u in units for e in events(folder, u) if e["event"] == "started"]
    if not begun:
        raise ValueError(f"run: {run!r} has not started {unit or 'anything'} yet; see `status`")
    _, unit, log = max(begun)
    if not log:
        raise ValueError(f"run: {run!r} was not run by a job, which would have a log; its process printed to its shell")
    parts = []
    for path in (Path(log), Path(log.removesuffix(".err") + ".out")):
        if path.is_file():
            tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"==> {unit}: {path}", *tail]))
    return "\n".join(parts)


def cancel(runs_root: Path, name: str) -> list[str]:
    """Stop everything that submissions of an experiment still do; a line for each that was stopped.

    Raises RuntimeError where jobs are Slurm's and scancel fails.
    """
    stopped = []
    queue = Queue.read()
    for folder in submissions(runs_root, name):
        head = json.loads((folder / "plan.json").read_text())
        if head["cluster"] == "local":
            if head["host"] == node_name() and _is_submit(head["pid"]):
                os.kill(head["pid"], signal.SIGTERM)
                stopped.append(f"process {head['pid']}")
            continue
        jobs = folder / "jobs.json"
        ids = list(json.loads(jobs.read_text()).values()) if jobs.exists() else []
        alive = [i for i in ids if queue.jobs is None or any(j.partition("_")[0] == i for j in queue.jobs)]
        if alive:
            ask("scancel", *alive, error=RuntimeError)
            stopped += [f"job {i}" for i in alive]
    for run in submitted(runs_root, name):
        for unit in missing(run.folder, run.units):
            status = read_status(run.folder, unit)
            if status is not None and status.state in ("queued", "requeued"):
                write_status(run.folder, unit, "stopped", "cancelled", job=status.job, pid=0)
    return stopped


def _is_submit(pid: int) -> bool:
    """Whether a process is a submit of ours, and not another that has its number now."""
    try:
        return b"submit" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
