"""Run an experiment on this machine, through submitit or in this process, with live progress."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import submitit
import torch
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from harness.experiments.schema import Experiment
from harness.progress import SILENCE, every, working
from harness.run_folder import RunFolder, Submission, Summary
from harness.training.distributed import Sharding, join_world
from harness.training.train import train
from harness.training.trainer import TrainingInterrupted
from slurm.jobs import Job, in_turn, run_jobs
from slurm.plan import RunPlan, check, plan, trials
from slurm.queue import Queue
from slurm.snapshot import environment, open_submission, snapshot
from slurm.state import at_work, exclusively, settle
from slurm.status import duration, overview, planned
from slurm.trials import DIVERGED, Unfinished, chosen_config, decide, failure, settled
from suites.units import TRAIN, missing

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds between two looks at the running jobs."""
PRINT_INTERVAL = SILENCE
"""Seconds between two progress reports on an output that is not a terminal."""

Running = tuple[RunPlan, list[str], "submitit.Job[None] | None", int]
"""A run in progress: its units, its job (None in this process, where it has ended by now), and its slot."""


def run_experiment(
    experiment: Experiment, plans: Sequence[RunPlan], runs_root: Path, cluster: str, parallel: int, command: str
) -> dict[str, str]:
    """Finish all runs of an experiment on this machine, and first their trials, and print the progress.

    Returns why runs failed, by run id; a trial that diverged did not fail. cluster, parallel: see `run_plan`. SIGTERM,
    like ^C, raises KeyboardInterrupt, which stops the jobs.
    """
    # Both are set: a shell starts background processes with SIGINT ignored, which the jobs would inherit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    console, begin, last = Console(), time.time(), 0.0
    undecided = [r for r in plans if r.missing and r.selection is not None and r.selection.file.read() is None]
    plans = [*trials(undecided), *plans]
    total = sum(bool(run.missing) for run in plans)
    logs = Submission(open_submission(experiment, plans, runs_root, cluster)).logs
    code = snapshot(runs_root) if cluster == "local" else None
    shown = planned(experiment.name, plans)

    def text(active: list[RunPlan]) -> Text:  # a string would be read as markup
        left = sum(bool(_unfinished(run)) for run in plans)
        head = f"{total - left}/{total} runs finished, {time.time() - begin:.0f} s"
        at_work = {run.folder for run in active}
        rows = overview([run for run in shown if run.folder in at_work], Queue(None))
        return Text("\n".join([head, *(f"  {row.line()}" for row in rows)]))

    if console.is_terminal and cluster == "local":
        with Live("", console=console, refresh_per_second=2, auto_refresh=True) as live:
            return run_plan(plans, logs, cluster, parallel, command, lambda active: live.update(text(active)), code)

    def print_sometimes(active: list[RunPlan]) -> None:
        nonlocal last
        if time.time() - last >= PRINT_INTERVAL:
            last = time.time()
            print(text(active), flush=True)

    def at_work_here() -> None:
        print(text([run for run in plans if _begun(run)]), flush=True)

    # A job in this process does not return before it has ended.
    with every(PRINT_INTERVAL, at_work_here) if cluster == "debug" else nullcontext():
        failures = run_plan(plans, logs, cluster, parallel, command, print_sometimes, code)
    print(text([]))
    return failures


def run_here(
    experiment: Experiment, runs_root: Path | str = "runs", cluster: str = "debug", parallel: int = 1
) -> dict[str, str]:
    """Finish what an experiment lacks on this machine, from Python; returns why runs failed, by run id.

    cluster, parallel: see `run_plan`. Signals are handled afterwards as before. Raises ValueError as `plan` and `check`
    do.
    """
    root = Path(runs_root).resolve()
    plans = plan(experiment, root)
    if not any(run.missing for run in plans):
        return {}
    check(experiment, plans, root)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run_experiment(experiment, plans, root, cluster, parallel, "python")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_plan(
    plans: Sequence[RunPlan],
    logs: Path,
    cluster: str,
    parallel: int,
    command: str,
    progress: Callable[[list[RunPlan]], None],
    code: Path | None = None,
) -> dict[str, str]:
    """Finish all runs of a plan; returns why runs failed, by run id. A tuned run starts once its values are chosen.

    cluster: `local` starts processes through submitit's LocalExecutor, `parallel` of them at a time, since it has no
    queue of its own; `debug` does one run after another in this process. progress: called with the runs in progress.
    code: the snapshot that the jobs import.

    Waits for runs that another process works on. A unit that fails is tried again until `slurm.state.settle` gives it
    up. An interrupt stops the jobs; another call resumes them.
    """
    before = dict(os.environ)
    if code is not None:
        os.environ.update(environment(code))  # submitit's local jobs take this process's variables
    waiting, running = list(plans), []
    over: set[Path] = set()
    executors = [] if cluster == "debug" else [_executor(logs, slot) for slot in range(parallel)]
    try:
        while waiting or running:
            begun = False
            for run in list(waiting):
                if len(running) == parallel:
                    break
                units = _left(run)
                if not units:
                    waiting.remove(run)
                elif not _chosen(run, over):
                    if over.issuperset(_trials(run)):  # and some have failed
                        waiting.remove(run)
                elif not at_work(run.folder, run.place(units[0])):
                    waiting.remove(run)
                    slot = min(set(range(parallel)) - {slot for *_, slot in running})
                    jobs = run_jobs(run, units, command)
                    job = executors[slot].submit(in_turn, jobs) if executors else here(jobs)
                    running.append((run, units, job, slot))
                    begun = True
            still: list[Running] = []
            for run, units, job, slot in running:
                if job is not None and not job.done():
                    still.append((run, units, job, slot))
                    continue
                unfinished = [unit for unit in _left(run) if unit in units]
                # Ask the run's folder, not the job: submitit would wait for the result of a job that was killed.
                if not unfinished or settle(run.folder, run.place(unfinished[0]), None) or _failed(run):
                    waiting.append(run)
            running = still
            progress([run for run, *_ in running])
            if running or (waiting and not begun):  # a debug job has ended by now
                time.sleep(POLL)
    finally:
        _stop([job for _, _, job, _ in running if job is not None])
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    return _failures(plans)


def _trials(run: RunPlan) -> list[Path]:
    """Folders of the trials that choose a run's values."""
    return [] if run.selection is None else [trial.folder for trial in run.selection.trials]


def _chosen(run: RunPlan, over: set[Path]) -> bool:
    """Whether a run's values are chosen, or it has none to choose. Chooses them if its trials are done.

    over: folders of trials that are known to have finished or failed; more are added.
    """
    if run.selection is None or run.selection.file.read() is not None:
        return True
    over |= {trial.folder for trial in run.selection.trials if trial.folder not in over and settled(trial)}
    if not over.issuperset(_trials(run)):
        return False
    try:
        decide(run.selection)
    except Unfinished:
        return False
    return True


def _left(run: RunPlan) -> list[str]:
    """The units of a run that are left to do, of those that its plan asks for: none if its training has failed."""
    failed = _failed(run)
    return [] if TRAIN in failed else [unit for unit in _unfinished(run) if unit not in failed]


def _unfinished(run: RunPlan) -> list[str]:
    return [unit for unit in missing(run.folder, run.units) if unit in run.missing]


def _begun(run: RunPlan) -> bool:
    """Whether a run has a unit at work now."""
    statuses = (RunFolder(run.folder).read_status(run.place(unit)) for unit in _unfinished(run))
    return any(status is not None and status.state == "running" for status in statuses)


def _failed(run: RunPlan) -> dict[str, str]:
    """The reasons why missing units were given up, by unit."""
    found = {unit: RunFolder(run.folder).read_status(run.place(unit)) for unit in _unfinished(run)}
    return {unit: s.detail for unit, s in found.items() if s is not None and s.state == "failed"}


def _failures(plans: Sequence[RunPlan]) -> dict[str, str]:
    """The reasons why runs failed, by run id. A trial that diverged has not failed: it has the worst score."""
    lines = {}
    for run in plans:
        reasons = [f"{unit}: {why}" for unit, why in _failed(run).items()]
        if reasons and run.trial and (failure(run) or ("",))[0] == DIVERGED:
            continue
        if not reasons and _left(run) and run.selection is not None and run.selection.file.read() is None:
            reasons = ["its values are not chosen, since trials failed"]
        if reasons:
            lines[run.config.run_id] = "; ".join(reasons)
    return lines


def _stop(jobs: Sequence[submitit.Job[None]]) -> None:
    """Interrupt jobs and wait until they have ended; a job that is still ending would block the next submit.

    Python drops an interrupt that arrives inside a destructor or a callback, so it is sent up to six times. Not more
    often than every five seconds: submitit's controller waits one second before it kills what did not react, and
    would leave the job behind if it were interrupted in that.
    """
    for _ in range(6):
        for job in jobs:
            if not job.done():
                job.cancel()
        sent = time.time()
        while time.time() < sent + 5 and not all(job.done() for job in jobs):
            time.sleep(0.1)


def here(jobs: Sequence[Job]) -> None:
    """Do several jobs in this process. A failure is in the run's folder; a request to leave raises KeyboardInterrupt.

    submitit's DebugExecutor would open a debugger, and do an interrupted job anew.
    """
    try:
        in_turn(jobs)
    except SystemExit:
        raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        raise
    except BaseException:  # a mixer or a suite may raise anything
        log.debug("a job failed", exc_info=True)


def unit_here(run: RunPlan, unit: str, command: str) -> None:
    """Do one unit of a run in this process; training shows its progress. Raises whatever stops it."""
    if unit == TRAIN:
        train_here(run, "ddp", None)
    else:
        in_turn(run_jobs(run, [unit], command))


def _executor(logs: Path, slot: int) -> submitit.Executor:
    """The executor of one of the parallel slots. Each slot has its own GPU if there are enough."""
    executor = submitit.LocalExecutor(logs)
    # Jobs of a sweep can take days; submitit's default limit is minutes.
    executor.update_parameters(timeout_min=60 * 24 * 30)
    if gpus := torch.cuda.device_count():
        # By default submitit hides all GPUs from local jobs.
        executor.update_parameters(gpus_per_node=1, visible_gpus=(slot % gpus,))
    return executor


def train_here(run: RunPlan, sharding: Sharding, profile: Path | None) -> Summary | None:
    """Train a run in this process, or in those that torchrun started, with a progress bar; without a terminal, with a
    line every PRINT_INTERVAL seconds.

    sharding, profile: see `harness.training.train.train`. Returns the summary on the first process, None on the others.
    On the first SIGINT or SIGTERM, saves and raises KeyboardInterrupt; on the second, does not save. Raises Busy if
    another process trains the run.
    """
    console, name = Console(), run.config.run_id
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    ]
    with (
        join_world() as world,
        ExitStack() as locks,
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not world.first) as bar,
        nullcontext(str) if console.is_terminal or not world.first else working(f"{name}: starting") as at,
        stop_requests() as stop,
    ):
        with world.together():
            if world.first:
                locks.enter_context(exclusively(run.folder, TRAIN))
        task = bar.add_task(name, total=run.config.data.steps)

        def show(metrics: dict[str, float]) -> None:
            rate = f"{metrics['tokens_per_second']:,.0f} tok/s"
            line = f"{name}  loss {metrics['loss']:.3f}  {rate}"
            bar.update(task, completed=metrics["step"], description=line)
            seconds = bar.tasks[0].time_remaining
            left = "" if seconds is None else f", {duration(seconds)} left"
            at(f"{line}, step {metrics['step']:.0f} of {run.config.data.steps}{left}")

        try:
            config = chosen_config(run.config, run.folder)
            summary = train(config, run.folder, show, stop=stop, sharding=sharding, profile=profile)
        except TrainingInterrupted:
            raise KeyboardInterrupt from None
    return summary if world.first else None


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM has arrived. The second signal has its usual effect."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
