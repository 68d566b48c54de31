"""The jobs of an experiment: prepare it, train a run, evaluate units of a run, choose values, collect the results.

A job that is told to save and leave (submitit's signal, before a time limit or by hand) does so and starts again. A job
that fails starts again too, until `slurm.state.settle` gives it up. Every job may start any number of times: it does
what is missing and resumes where the last attempt stopped. Packages that only some kinds of job need are imported by
them: a large sweep starts a process for each of its jobs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from harness.experiments.load import load_experiment
from harness.experiments.run_config import RunConfig
from harness.files import write_atomic
from harness.model.language_model import build_model
from harness.records.provenance import entry, provenance
from harness.records.units import suite_of
from harness.run_folder import RunFolder, Submission, unit_of
from harness.training.device import recipe_dtype, this_device
from harness.training.distributed import Sharding, World, join_world
from harness.training.train import train
from harness.training.trainer import TrainingInterrupted
from mixers.registry import require_file
from slurm.plan import RunPlan, Selection
from slurm.state import LEAVE_SIGNAL, LEFT, ended, exclusively, job_id, started, write_status
from slurm.trials import Unfinished, chosen_config, decide
from suites.registry import require_file as require_suite_file
from suites.registry import stored_config, suite
from suites.units import TRAIN, Evaluation, results

log = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between two writes of a unit's status."""
WATCH = 10.0
"""Seconds between two looks of the watchdog at a unit's status."""
SILENT_MINUTES = "MIXERBENCH_SILENT_MINUTES"
"""Environment variable with the minutes of silence after which a job ends itself; unset: never."""


class Leave(KeyboardInterrupt):
    """Raised when a process is told to leave: an interrupt, so that no handler takes it for a failure."""


class Notice:
    """The request that signals have made of this process, as a context manager.

    outcome: None, `left` (save and leave) or `terminated`. reason: the request in words. at_once: raise Leave when the
    signal arrives; otherwise the process polls `outcome`. The context replaces submitit's own handlers, which save
    inside the handler and only on the first rank.
    """

    def __init__(self, at_once: bool):
        self.at_once, self.outcome, self.reason = at_once, None, ""

    def _hear(self, number: int, frame: Any) -> None:
        if self.outcome is None:  # a second signal changes nothing
            self.outcome = "terminated" if number == signal.SIGTERM else "left"
            self.reason = f"told to {'end' if number == signal.SIGTERM else 'leave'} by {signal.Signals(number).name}"
            if self.at_once:
                raise Leave

    def __enter__(self) -> Notice:
        self.before = {n: signal.signal(n, self._hear) for n in (LEAVE_SIGNAL, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Job(Checkpointable):
    """One unit of work in a folder, callable by submitit. unit: the name of its state, a place if it is an evaluation.

    As a Checkpointable it hears of a signal that arrives while submitit's own handler is still in place.
    """

    folder: Path
    unit: str

    def checkpoint(self) -> submitit.core.utils.DelayedSubmission:
        """Leave as after `Notice`. submitit would requeue the job itself, and its exit status would look like a
        failure."""
        raise SystemExit(LEFT)

    @property
    def parts(self) -> tuple[Job, ...]:
        """The jobs that it consists of: itself."""
        return (self,)

    def __call__(self) -> None:
        """Do the work unless it is done. Raises whatever stops it, and SystemExit(LEFT) when told to leave."""
        job = _environment()
        if job is not None and job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        # After a lost node, Slurm may restart the job while the old process still runs, cut off from the controller.
        patience = 300.0 if job_id() else 1.0
        hold = exclusively(self.folder, self.unit, patience)
        with join_world() as world, hold if world.first else contextlib.nullcontext():
            if world.on_first(self.done):
                if world.first:
                    write_status(self.folder, self.unit, "done")
                return
            if world.first:
                started(self.folder, self.unit, "" if job is None else str(job.paths.stderr))
                write_status(self.folder, self.unit, "running", "starting")
            try:
                watch = self._watched() if world.first else contextlib.nullcontext()
                with watch, Notice(at_once=self.unit != TRAIN) as notice:
                    self.work(notice)
            except (TrainingInterrupted, Leave) as left:
                reason = notice.reason or "another process was told to leave"
                if isinstance(left, TrainingInterrupted):
                    reason = f"stopped at step {left.step} of {left.total}: {reason}"
                self._ended(world, notice.outcome or "left", reason)
                raise SystemExit(LEFT) from None
            except KeyboardInterrupt:
                self._ended(world, "terminated", "interrupted")
                raise
            except BaseException as error:
                kind = type(error).__name__
                reason = " ".join(str(error).split()) or kind
                if isinstance(error, SystemExit):  # of a mixer or a suite: nothing of ours ends the process here
                    reason = f"code that it ran called sys.exit({error.code!r})"
                self._ended(world, "failed", reason, kind)
                if isinstance(error, SystemExit):
                    raise RuntimeError(f"{self.folder}: {self.unit}: {reason}") from error
                raise
            if world.first:
                write_status(self.folder, self.unit, "done")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End this process at once if its unit's status is older than SILENT_MINUTES says: it hangs.

        Prints where every thread stands. The process counts as failed and starts again.
        """
        over = threading.Event()

        def watch(minutes: float) -> None:
            while not over.wait(WATCH):
                status = RunFolder(self.folder).read_status(self.unit)
                if status is not None and time.time() - status.updated > 60 * minutes:
                    faulthandler.dump_traceback(sys.__stderr__)
                    reason = f"silent for {minutes:g} min; its log says where it stood"
                    with contextlib.suppress(OSError):
                        ended(self.folder, self.unit, "failed", reason, "Silent")
                    os._exit(1)  # an exception would wait for what hangs

        if minutes := os.environ.get(SILENT_MINUTES):
            threading.Thread(target=watch, args=(float(minutes),), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _ended(self, world: World, outcome: Any, reason: str, kind: str = "") -> None:
        if not world.first:  # the first process learns of every other one's failure and records it
            return
        # If the record cannot be written, for example on a full disk, the original error must still reach the log.
        with contextlib.suppress(OSError):
            ended(self.folder, self.unit, outcome, reason, kind)
            write_status(self.folder, self.unit, "stopped", reason)

    def has_failed(self) -> bool:
        """Whether an attempt has failed so far."""
        return any(e.get("outcome") == "failed" for e in RunFolder(self.folder).read_attempts(self.unit))

    def done(self) -> bool:
        """Whether there is nothing left to do."""
        raise NotImplementedError

    def work(self, notice: Notice) -> None:
        """Do what is left. notice: tells when to stop."""
        raise NotImplementedError

    def beat(self) -> Callable[..., None]:
        """A function of detail and progress that updates the status, at most once per HEARTBEAT."""
        last = 0.0

        def write(detail: str, **progress: Any) -> None:
            nonlocal last
            if time.time() - last >= HEARTBEAT:
                last = time.time()
                write_status(self.folder, self.unit, "running", detail, **progress)

        return write


@dataclass(frozen=True)
class TrainJob(Job):
    """Train a run to its end, on all processes of the job.

    command: the command line, for provenance. sharding: how several processes share the model.
    """

    config: RunConfig
    command: str
    sharding: Sharding = "ddp"

    def done(self) -> bool:
        return RunFolder(self.folder).read_summary() is not None

    def work(self, notice: Notice) -> None:
        beat = self.beat()

        def progress(metrics: dict[str, float]) -> None:
            left = metrics["total_tokens"] - metrics["tokens"]
            rate = metrics["tokens_per_second"]
            loss = metrics["loss"] if math.isfinite(metrics["loss"]) else None  # the step was skipped
            known = {"step": int(metrics["step"]), "steps": int(metrics["total_steps"]), "loss": loss}
            skipped = f"{metrics['skipped']:.0f} steps skipped as not finite" if metrics["skipped"] else ""
            beat(skipped, **known, tokens_per_second=rate, seconds_left=left / rate)

        train(
            chosen_config(self.config, self.folder),
            self.folder,
            progress,
            self.command,
            stop=lambda: notice.outcome is not None,
            sharding=self.sharding,
        )


@dataclass(frozen=True)
class EvaluateJob(Job):
    """Evaluate one unit of a trained run. label: the run's name in tables."""

    evaluation: Evaluation
    label: str
    command: str

    def done(self) -> bool:
        summary = RunFolder(self.folder).read_summary()
        if summary is None:
            raise ValueError(f"{self.folder}: the run is not trained to its end; submit or train it first")
        return results(self.folder, unit_of(self.unit), self.evaluation, summary.weights_sha256) is not None

    def work(self, notice: Notice) -> None:
        from suites.evaluate import evaluate

        evaluate(self.folder, unit_of(self.unit), self.evaluation, self.label, self.command, self.beat())


@dataclass(frozen=True)
class MeasureJob(Job):
    """Measure one unit of a suite on a fresh model of a run."""

    config: RunConfig
    evaluation: Evaluation
    command: str

    def done(self) -> bool:
        return results(self.folder, unit_of(self.unit), self.evaluation, None) is not None

    def work(self, notice: Notice) -> None:
        from suites.evaluate import keep

        require_suite_file(self.evaluation.suite_file)
        recipe, chosen = self.config.train, suite(suite_of(self.unit))
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        require_file(self.config.mixer_file)
        model = build_model(self.config.model, self.config.seed, recipe.init_gain).to(this_device())
        options = stored_config(chosen.name, self.evaluation.options)
        dtype = recipe_dtype(recipe, this_device())
        files = (self.config.mixer_file, self.evaluation.suite_file)
        birth = provenance(self.config.hash, this_device(), dtype, model.backend(dtype), self.command, files)
        fallbacks = model.fallbacks(dtype)
        for line in fallbacks:
            log.warning(line)
        RunFolder(self.folder).append_history(self.unit, entry(birth, 0, processes=1, fallbacks=fallbacks))
        measurements = chosen.stamped(options, chosen.measure(model, recipe, options, self.beat()))
        keep(self.folder, self.unit, measurements, birth, self.config, self.config.label, self.evaluation.key(None))


@dataclass(frozen=True)
class PackJob(Checkpointable):
    """Several evaluations of a run, one after another in one process. Each keeps its own state, attempts and records.

    parts: a job per evaluation.
    """

    parts: tuple[Job, ...]

    def checkpoint(self) -> submitit.core.utils.DelayedSubmission:
        """Leave as `Job.checkpoint` does."""
        raise SystemExit(LEFT)

    def __call__(self) -> None:
        """Do everything that is neither done nor given up; a failure keeps nothing else from being done.

        Raises RuntimeError at the end if an evaluation has failed, and SystemExit(LEFT) when told to leave.
        """
        failed = []
        with Notice(at_once=True):  # between two evaluations, each of which has its own
            try:
                for job in sorted(self.parts, key=Job.has_failed):  # what fails may spoil the process
                    status = RunFolder(job.folder).read_status(job.unit)
                    if status is not None and status.state == "failed":
                        failed.append(f"{unit_of(job.unit)}: {status.detail}")
                        continue
                    try:
                        job()
                    except (KeyboardInterrupt, SystemExit):
                        raise
                    except BaseException as error:  # a suite may raise anything
                        traceback.print_exc()
                        failed.append(f"{unit_of(job.unit)}: {error}")
                        if not device_works():
                            break  # the job starts again and does the others first
            except Leave:
                raise SystemExit(LEFT) from None
        if failed:
            raise RuntimeError("; ".join(failed))


def device_works() -> bool:
    """Whether this process can still use its device: after some errors of CUDA kernels, every later call fails too."""
    try:
        torch.zeros(1, device=this_device()).item()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True)
class PrepareJob(Job):
    """Freeze everything that the other jobs of a submission read: tokenizer, training data and the suites' data.

    folder: the submission's, with its experiment.yaml. trained: see suites.prefetch.prefetch.
    """

    trained: Path | None = None

    def done(self) -> bool:
        return Submission(self.folder).prepared.exists()

    def work(self, notice: Notice) -> None:
        from suites.prefetch import prefetch

        _, items = prefetch(load_experiment(Submission(self.folder).experiment), self.beat(), self.trained)
        if lacking := [str(item) for item in items if item.sha256 is None]:
            raise RuntimeError(
                f"{'; '.join(lacking)}: cannot be had here; run `python run.py prefetch` where there is internet"
            )
        write_atomic(Submission(self.folder).prepared, "\n".join(map(str, items)).encode())


@dataclass(frozen=True)
class ChooseJob(Job):
    """Choose the tuned values of a submission's runs from their trials.

    folder: the submission's.
    """

    selections: tuple[Selection, ...]

    def done(self) -> bool:
        return all(selection.file.read() is not None for selection in self.selections)

    def work(self, notice: Notice) -> None:
        beat, unfinished = self.beat(), []
        for number, selection in enumerate(self.selections, 1):
            beat(f"choice {number} of {len(self.selections)}")
            try:
                decide(selection)
            except Unfinished as error:
                unfinished.append(str(error))
        if unfinished:
            raise Unfinished(f"{'; '.join(unfinished)}; submit again to continue")


@dataclass(frozen=True)
class CollectJob(Job):
    """Collect the results that a submission's experiment has so far, and write its table."""

    out: Path
    runs_root: Path
    command: str

    def done(self) -> bool:
        return False

    def work(self, notice: Notice) -> None:
        from slurm.collect import collect_newest

        collect_newest(Submission(self.folder), self.runs_root, self.out, self.command)


def run_jobs(run: RunPlan, units: Sequence[str], command: str, sharding: Sharding = "ddp") -> list[Job]:
    """One job per unit of a run, in the order of the units."""

    def job(unit: str) -> Job:
        if unit == TRAIN:
            return TrainJob(run.folder, TRAIN, run.config, command, sharding)
        evaluation = run.units[unit]
        place = evaluation.place(unit)
        if evaluation.fresh:
            return MeasureJob(run.folder, place, run.config, evaluation, command)
        return EvaluateJob(run.folder, place, evaluation, run.config.label, command)

    return [job(unit) for unit in units]


def in_turn(jobs: Sequence[Job]) -> None:
    """Do several jobs in this process, one after another; the first that does not finish ends it."""
    for job in jobs:
        job()


def _environment() -> submitit.JobEnvironment | None:
    """Submitit's description of the job that this process is; None if it is none, even inside one of Slurm's."""
    return submitit.JobEnvironment() if "SUBMITIT_EXECUTOR" in os.environ else None
