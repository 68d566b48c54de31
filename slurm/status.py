"""The state of every run of an experiment, its logs, and how to cancel it.

Our own markers decide; Slurm's queue and accounting are hints. This module imports no torch unless it must read an
experiment.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.code import changed_since, code_text
from harness.experiments.names import experiment_name
from harness.run_folder import RunFolder, Status, started_runs, submissions, unit_of
from slurm.queue import Queue, ask, waits
from slurm.state import node_name, silent_end, write_status
from suites.units import TRAIN, Evaluation, SuiteFile, missing, place

if TYPE_CHECKING:
    from slurm.plan import RunPlan

ORDER = ("failed", "lost", "silent", "running", "requeued", "queued", "stopped", "waiting")
"""States by precedence: a run has the first of these that one of its unfinished units has."""
QUIET = ("done", "queued", "waiting")
"""States whose runs are shown together where there are many: there is nothing to see of each."""
FOLD = 24
"""Rows above which runs in a state of QUIET are shown together."""


@dataclass(frozen=True)
class Row:
    """A run as `status` shows it.

    state: done, training, evaluating, silent (at work without a sign of life), queued, requeued, stopped, lost (its job
    vanished without a word), failed or waiting (not submitted). unit: the unit that the other fields describe. loss:
    nats per token. finished: number of finished evaluations, out of `units`. attempts: how often the unit was started.
    trial: whether the run tries values for others. label: its name in tables.
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
    trial: bool = False
    label: str = ""
    mixer: str = ""
    seed: int | None = None

    def line(self) -> str:
        """The row as one line of text."""
        progress = f"{self.finished}/{self.units} evaluated"
        if self.step is not None and self.loss is not None:
            progress = f"step {self.step}/{self.steps}  loss {self.loss:.3f}"
        if self.tokens_per_second and self.seconds_left is not None:
            progress += f"  {self.tokens_per_second:,.0f} tok/s  {duration(self.seconds_left)} left"
        where = " ".join(filter(None, [self.job, self.node]))
        tries = f"{self.attempts}×" if self.attempts else ""
        name = f"{self.run} (trial)" if self.trial else self.run
        return f"{name:44} {self.label:20} {self.state:10} {progress:52} {tries:4} {where:16} {self.reason}".rstrip()


def duration(seconds: float) -> str:
    """Format a duration in its two largest units, such as `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Submitted:
    """A run of a submission, as recorded in its plan.

    silent_minutes: silence after which it counts as silent; None: never.
    """

    experiment: str
    run: str
    folder: Path
    steps: int
    units: dict[str, Evaluation]
    trial: bool = False
    silent_minutes: float | None = None
    label: str = ""
    mixer: str = ""
    seed: int | None = None

    def place(self, unit: str) -> str:
        """The name under which the run's folder keeps the state of a unit."""
        return place(unit, self.units)


def submitted(runs_root: Path, name: str) -> list[Submitted]:
    """All runs in the submissions of an experiment, each as the latest submission recorded it."""
    runs: dict[str, Submitted] = {}
    for submission in submissions(runs_root, name):
        plan = submission.read_plan()
        fresh, files = plan.get("fresh", []), plan.get("suite_files", {})
        files = {unit: SuiteFile(**file) for unit, file in files.items()}
        for run in plan["runs"]:
            units = {u: Evaluation(options, u in fresh, files.get(u)) for u, options in run["units"].items()}
            trial = run.get("trial", False)
            folder, silent = runs_root / run["run"], plan.get("silent_minutes")
            model = {key: run[key] for key in ("label", "mixer", "seed") if key in run}
            runs[run["run"]] = Submitted(name, run["run"], folder, run["steps"], units, trial, silent, **model)
    return list(runs.values())


def planned(name: str, plans: Sequence[RunPlan]) -> list[Submitted]:
    """The runs of a plan, and before them their trials, in the form that a submission would record."""
    from slurm.plan import trials

    every = {run.folder: run for run in (*trials(plans), *plans)}.values()
    return [
        Submitted(
            name,
            run.config.run_id,
            run.folder,
            run.config.data.steps,
            run.units,
            run.trial,
            label=run.config.label,
            mixer=run.config.mixer,
            seed=run.config.seed,
        )
        for run in every
    ]


def runs_of(runs_root: Path, experiment: str, scale: str | None) -> tuple[str, list[Submitted]]:
    """The name of an experiment and its submitted runs, or its planned runs if it was never submitted.

    Raises ValueError if there is no such experiment. For a submitted experiment its name is enough, without validating
    the rest of its file, which takes torch.
    """
    if runs := submitted(runs_root, experiment_name(experiment, scale)):
        return runs[0].experiment, runs
    from harness.experiments.load import load_experiment
    from slurm.plan import plan

    loaded = load_experiment(experiment, scale=scale)
    return loaded.name, submitted(runs_root, loaded.name) or planned(loaded.name, plan(loaded, runs_root))


@dataclass(frozen=True)
class Filter:
    """The rows of `status` that are asked for; None leaves a field open.

    Raises ValueError for a state that there is none of.
    """

    state: str | None = None
    mixer: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        known = ("done", "training", "evaluating", *(state for state in ORDER if state != "running"))
        if self.state not in (None, *known):
            raise ValueError(f"--state: {self.state!r} is no state of a run; give one of: {', '.join(known)}")

    @property
    def open(self) -> bool:
        """Whether nothing is asked for."""
        return self == Filter()

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that are asked for."""
        asked = {key: value for key, value in vars(self).items() if value is not None}
        return [row for row in rows if all(getattr(row, key) == value for key, value in asked.items())]


def report(runs_root: Path, name: str, runs: Sequence[Submitted], asked: Filter | None = None) -> str:
    """The state of an experiment as text: a headline, troubles of its last submission, and one line per run.

    Many runs of which there is nothing to see share a line, unless some are asked for.
    """
    asked = asked or Filter()
    rows = overview(runs, Queue.read())
    reported = [row for row in rows if not row.trial]
    head = f"{name}: {sum(row.state == 'done' for row in reported)} of {len(reported)} runs done"
    counts = Counter(row.state for row in reported if row.state != "done")
    head += "".join(f", {count} {state}" for state, count in counts.most_common())
    if tried := [row for row in rows if row.trial]:
        diverged = sum(row.state == "failed" for row in tried)
        over = sum(row.state == "done" for row in tried) + diverged
        head += f", {over} of {len(tried)} trials over" + (f", {diverged} of them failed" if diverged else "")
    lines = [row.line() for row in asked.rows(rows)] if not asked.open or len(rows) <= FOLD else folded(rows)
    return "\n".join([head, *troubles(runs_root, name), *other_code(runs), *lines])


def folded(rows: Sequence[Row]) -> list[str]:
    """One line per run of which there is something to see, and one for each state of the others."""
    lines = [row.line() for row in rows if row.state not in QUIET]
    for state in QUIET:
        labels = Counter(row.label or row.mixer or row.run for row in rows if row.state == state)
        if labels:
            named = ", ".join(f"{label} × {count}" for label, count in labels.items())
            lines.append(f"{labels.total()} {state}: {named} (--state {state} lists them)")
    return lines


def other_code(runs: Sequence[Submitted | RunPlan]) -> list[str]:
    """Results of these runs that other code than this process's made, one line for each code.

    A result stays what it is when the code changes; it is measured again only on request. A history of several starts
    counts with the last. Results that do not tell their code are left out. Files that define mixers and suites are
    compared for plans, which know them.
    """

    def files(run: Submitted | RunPlan, unit: str) -> str | None:
        if isinstance(run, Submitted):
            return None
        from harness.records.provenance import files_now

        suite_file = None if unit == TRAIN else run.units[unit].suite_file
        return files_now((run.config.mixer_file, suite_file))

    made: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        folder, left = RunFolder(run.folder), set(missing(run.folder, run.units))
        for unit in (TRAIN, *run.units):
            entries = folder.read_history(run.place(unit))[-1:]
            if not entries and unit == TRAIN and TRAIN not in left:
                entries = [folder.read_training_provenance()] if folder.summary.is_file() else []
            if unit not in left and entries and (changed := changed_since(entries[0], files(run, unit))):
                made.setdefault((code_text(entries[0]), ", ".join(changed)), []).append(unit)
    return [
        f"made by other code: {', '.join(f'{unit} of {n}' for unit, n in Counter(units).items())} runs by {code}; "
        f"since then changed: {changed}"
        for (code, changed), units in made.items()
    ]


def overview(runs: Sequence[Submitted], queue: Queue) -> list[Row]:
    """One row per run. Accounting adds what became of lost jobs."""
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
    found = {unit: _heard(_judged(run.folder, run.place(unit), queue), run.silent_minutes) for unit in left}
    unit, status = min(found.items(), key=lambda item: ORDER.index(item[1][0]), default=(TRAIN, ("done", None)))
    state, known = status
    names = {"running": "training" if unit == TRAIN else "evaluating"}
    known = known or Status("done")
    evaluating = "" if unit == TRAIN or state == "done" else f"{unit}: "
    log = RunFolder(run.folder).read_attempts(run.place(unit))
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
        node=known.node if state in ("running", "silent") else "",
        job=known.job if state not in ("done", "waiting") else "",
        trial=run.trial,
        label=run.label,
        mixer=run.mixer,
        seed=run.seed,
    )


def _heard(judged: tuple[str, Status | None], minutes: float | None) -> tuple[str, Status | None]:
    """The same, or `silent` instead of `running` if the last sign of life is older than `minutes`."""
    state, status = judged
    if state != "running" or status is None or minutes is None or time.time() - status.updated <= 60 * minutes:
        return judged
    said = f"no sign of life for {duration(time.time() - status.updated)}"
    detail = "; ".join(filter(None, [said, status.detail]))
    return "silent", Status(**vars(status) | {"detail": detail, "seconds_left": None})


def _judged(folder: Path, unit: str, queue: Queue) -> tuple[str, Status | None]:
    """The state of a unit, one of ORDER, and its status completed by the queue."""
    status = RunFolder(folder).read_status(unit)
    if status is None:
        return "waiting", None
    if status.state == "done":  # its result has gone since, or belongs to other options
        return "waiting", None
    if status.state == "failed":
        return "failed", status
    if queue.holds(folder, unit, status) is None:
        if status.state == "stopped":
            return "stopped", status
        gone = f"was {status.state}" + (f" ({status.detail})" if status.detail else "")
        detail = f"{gone}, but nothing works on it; submit again to continue"
        return "lost", Status(**vars(status) | {"detail": detail})
    queue_state, _, reason = (queue.jobs or {}).get(status.job, ("", "", ""))
    if queue_state == "PENDING" or status.state == "stopped":
        last_words = silent_end(status.node) if status.state == "running" else status.detail
        detail = "; ".join(filter(None, [waits(reason), last_words]))
        return "queued" if status.state == "queued" else "requeued", Status(**vars(status) | {"detail": detail})
    return status.state, status


def accounting(jobs: list[str]) -> dict[str, str]:
    """The state of each job in Slurm's accounting, in words; empty without accounting."""
    states: dict[str, str] = {}
    for start in range(0, len(jobs), 500):
        part = ",".join(jobs[start : start + 500])
        out = ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", part, error=None)
        for line in (out or "").splitlines():
            job, _, state = line.partition("|")
            if job in jobs:
                remedy = "; raise mem_gb of its stage in the profile" if state == "OUT_OF_MEMORY" else ""
                states[job] = f"Slurm says {state}{remedy}"
    return states


def troubles(runs_root: Path, name: str) -> list[str]:
    """Why the last submission could not prepare, choose, go on or collect, one line each: no run's state tells it."""
    found = []
    for submission in submissions(runs_root, name)[-1:]:
        folder = submission.path
        released = [name for name in submission.read_jobs() if name.startswith("release-")]
        for unit in ("prepare", "choose", *released, "collect"):
            status = RunFolder(folder).read_status(unit)
            waits = status is not None and status.state == "running" and status.detail.startswith("waits: ")
            if status is not None and (waits or status.state in ("failed", "stopped")):
                found.append(f"{unit} of {folder.name} {status.state}: {status.detail}")
    return found


def logs(runs_root: Path, run: str, unit: str | None, lines: int) -> str:
    """The last `lines` lines of the log of the last attempt at a run, or at one unit of it.

    Raises ValueError if nothing was attempted or the attempt has no log.
    """
    if run not in (known := started_runs(runs_root)):
        raise ValueError(f"run: no {run!r} has started in {runs_root}; known: {', '.join(known) or 'none'}")
    folder = RunFolder(runs_root / run)
    units = [place for place in folder.attempted() if unit in (None, place, unit_of(place))]
    begun = [(e["time"], u, e["log"]) for u in units for e in folder.read_attempts(u) if e["event"] == "started"]
    if not begun:
        raise ValueError(f"run: {run!r} has not started {unit or 'anything'} yet; see `status`")
    _, unit, log = max(begun)
    if not log:
        raise ValueError(f"run: {run!r} was not run by a job, which would have a log; its process printed to its shell")
    parts = []
    for path in (Path(log), Path(log.removesuffix(".err") + ".out")):
        if path.is_file():
            tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"==> {unit_of(unit)}: {path}", *tail]))
    return "\n".join(parts)


def cancel(runs_root: Path, name: str) -> list[str]:
    """Stop all jobs and processes of an experiment's submissions; returns the name of each that was stopped.

    Raises RuntimeError if scancel fails.
    """
    stopped = []
    queue = Queue.read()
    for submission in submissions(runs_root, name):
        head = submission.read_plan()
        if head["cluster"] == "local":
            if head["host"] == node_name() and _is_submit(head["pid"]):
                os.kill(head["pid"], signal.SIGTERM)
                stopped.append(f"process {head['pid']}")
            continue
        ids = list(submission.read_jobs().values())
        alive = [i for i in ids if queue.jobs is None or any(j.partition("_")[0] == i for j in queue.jobs)]
        if alive:
            ask("scancel", *alive, error=RuntimeError)
            stopped += [f"job {i}" for i in alive]
    for run in submitted(runs_root, name):
        for unit in missing(run.folder, run.units):
            status = RunFolder(run.folder).read_status(run.place(unit))
            if status is not None and status.state in ("queued", "requeued"):
                write_status(run.folder, run.place(unit), "stopped", "cancelled", job=status.job, pid=0)
    return stopped


def _is_submit(pid: int) -> bool:
    """Whether a process is one of our submits, and not another one that has reused its id."""
    try:
        return b"submit" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
