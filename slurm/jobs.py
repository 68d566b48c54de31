"""What a job does: train a run, evaluate one unit of it, prepare or collect an experiment; and how it ends early.

A job that is told to save and leave (submitit's signal, before a time limit or by hand) does so and is started again.
One that fails is started again too, until `slurm.state.settle` gives it up. Every job may be started any number of
times: it does what is missing and goes on where the last one stopped.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch
from submitit.helpers import Checkpointable, TorchDistributedEnvironment
from submitit.slurm.slurm import SlurmJobEnvironment

from harness.experiments.load import load_experiment
from harness.experiments.schema import RunConfig
from harness.files import write_atomic
from harness.model.language_model import build_model
from harness.records.provenance import provenance
from harness.run_folder import RunFolder
from harness.training.device import recipe_dtype, this_device
from harness.training.distributed import Sharding, World, world
from harness.training.train import train
from harness.training.trainer import TrainingInterrupted
from mixers.registry import require_file
from slurm.plan import RunPlan
from slurm.state import ended, exclusively, job_id, started, write_status
from suites import suite
from suites.evaluate import evaluate, keep
from suites.prefetch import prefetch
from suites.units import TRAIN, evaluated, evaluation_key, fresh

HEARTBEAT = 2.0  # seconds between two writes of a unit's status
LEFT = 75  # exit status of a process that saved and left: sysexits' "try again later"
LEAVE_SIGNAL = SlurmJobEnvironment._usr_sig()  # SIGUSR2, unless submitit's environment variable says otherwise


class Leave(BaseException):
    """Raised where a process was told to leave; no Exception, so that nothing on the way takes it for a failure."""


class Notice:
    """What signals have asked of this process: nothing, to have `left`, or to be `terminated`.

    at_once: raise Leave where the signal arrives, instead of waiting to be asked. Within the context, the handlers
    that submitit has set are replaced: those save inside the handler and on the first rank alone.
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
    """A unit of work in a folder, as submitit calls it. Submitit's own handler, which is in place until ours is,
    starts a Checkpointable again as it is."""

    folder: Path
    unit: str

    def __call__(self) -> None:
        """Do the work unless it is done. Raises what stops it; SystemExit(LEFT) when told to leave."""
        job = _environment()
        if job is not None and job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        # What Slurm starts again after losing a node may meet the process of before, which has not heard of it yet.
        patience = 300.0 if job_id() else 1.0
        hold = exclusively(self.folder, self.unit, patience)
        with world() as here, hold if here.first else contextlib.nullcontext():
            if here.on_first(self.done):
                return
            if here.first:
                started(self.folder, self.unit, "" if job is None else str(job.paths.stderr))
                write_status(self.folder, self.unit, "running", "starting")
            try:
                with Notice(at_once=self.unit != TRAIN) as notice:
                    self.work(notice)
            except (TrainingInterrupted, Leave):
                self._ended(here, notice.outcome or "left", notice.reason or "another process was told to leave")
                raise SystemExit(LEFT) from None
            except KeyboardInterrupt:
                self._ended(here, "terminated", "interrupted")
                raise
            except Exception as error:
                self._ended(here, "failed", " ".join(str(error).split()) or type(error).__name__)
                raise
            if here.first:
                write_status(self.folder, self.unit, "done")

    def _ended(self, here: World, outcome: Any, reason: str) -> None:
        if not here.first:  # the first process hears of every other's failure, and names it
            return
        # What cannot be written, on a full disk say, must not hide what has happened: that goes to the log.
        with contextlib.suppress(OSError):
            ended(self.folder, self.unit, outcome, reason)
            write_status(self.folder, self.unit, "stopped", reason)

    def done(self) -> bool:
        """Whether there is nothing left to do."""
        raise NotImplementedError

    def work(self, notice: Notice) -> None:
        raise NotImplementedError

    def beat(self) -> Callable[..., None]:
        """Keeps the status fresh, without writing more often than anyone looks: takes its detail and progress."""
        last = 0.0

        def write(detail: str, **progress: Any) -> None:
            nonlocal last
            if time.time() - last >= HEARTBEAT:
                last = time.time()
                write_status(self.folder, self.unit, "running", detail, **progress)

        return write


@dataclass(frozen=True)
class TrainJob(Job):
    """Train a run to its end, on all processes that its job has. command: for the record's provenance. sharding: what
    each of several processes holds."""

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
            loss = metrics["loss"] if math.isfinite(metrics["loss"]) else None  # of a step that was skipped
            known = {"step": int(metrics["step"]), "steps": int(metrics["total_steps"]), "loss": loss}
            beat("", **known, tokens_per_second=rate, seconds_left=left / rate)

        train(
            self.config,
            self.folder,
            progress,
            self.command,
            stop=lambda: notice.outcome is not None,
            sharding=self.sharding,
        )


@dataclass(frozen=True)
class EvaluateJob(Job):
    """Evaluate one unit of a trained run. options: validated ones of its suite. label: the run's row in tables."""

    options: dict[str, Any]
    label: str
    command: str

    def done(self) -> bool:
        summary = RunFolder(self.folder).read_summary()
        if summary is None:
            raise ValueError(f"{self.folder}: the run is not trained to its end; submit or train it first")
        return evaluated(self.folder, self.unit) == evaluation_key(self.options, summary.weights_sha256)

    def work(self, notice: Notice) -> None:
        evaluate(self.folder, self.unit, self.options, self.label, self.command, self.beat())


@dataclass(frozen=True)
class MeasureJob(Job):
    """Measure one unit of a suite on a fresh model of a run. options: validated ones of its suite."""

    config: RunConfig
    options: dict[str, Any]
    command: str

    def done(self) -> bool:
        return evaluated(self.folder, self.unit) == evaluation_key(self.options, None)

    def work(self, notice: Notice) -> None:
        recipe, module = self.config.train, suite(self.unit.partition("@")[0])
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        require_file(self.config.mixer_file)
        model = build_model(self.config.model, self.config.seed).to(this_device())
        found = module.measure(model, recipe, module.Config(**self.options), self.beat())
        dtype = recipe_dtype(recipe, this_device())
        birth = provenance(self.config.hash, this_device(), dtype, model.backend(dtype), self.command)
        keep(self.folder, self.unit, found, birth, self.config, self.config.label, evaluation_key(self.options, None))


@dataclass(frozen=True)
class PrepareJob(Job):
    """Freeze what the other jobs of a submission read. folder: the submission's, with its experiment.yaml."""

    def done(self) -> bool:
        return (self.folder / "prepared").exists()

    def work(self, notice: Notice) -> None:
        _, items = prefetch(load_experiment(self.folder / "experiment.yaml"), self.beat())
        if lacking := [str(item) for item in items if item.sha256 is None]:
            raise RuntimeError(
                f"{'; '.join(lacking)}: cannot be had here; run `python run.py prefetch` where there is internet"
            )
        write_atomic(self.folder / "prepared", "\n".join(map(str, items)).encode())


@dataclass(frozen=True)
class CollectJob(Job):
    """Collect what a submission's experiment has produced so far, and make its table."""

    out: Path
    runs_root: Path
    command: str

    def done(self) -> bool:
        return False

    def work(self, notice: Notice) -> None:
        from slurm.collect import collect_and_tabulate

        collect_and_tabulate(load_experiment(self.folder / "experiment.yaml"), self.runs_root, self.out, self.command)


def run_jobs(work: RunPlan, units: Sequence[str], command: str, sharding: Sharding = "ddp") -> list[Job]:
    """The jobs that do these units of a run."""

    def job(unit: str) -> Job:
        if unit == TRAIN:
            return TrainJob(work.folder, TRAIN, work.config, command, sharding)
        if fresh(unit):
            return MeasureJob(work.folder, unit, work.config, work.units[unit], command)
        return EvaluateJob(work.folder, unit, work.units[unit], work.config.label, command)

    return [job(unit) for unit in units]


def in_turn(jobs: Sequence[Job]) -> None:
    """Do several jobs in this process; the first that does not finish ends it."""
    for job in jobs:
        job()


def _environment() -> submitit.JobEnvironment | None:
    """What submitit knows of the job that this process is, if it is one."""
    try:
        return submitit.JobEnvironment()
    except RuntimeError:
        return None
