"""Handing an experiment to Slurm through submitit: the graph of its jobs, and what each of them asks for.

Slurm is the engine: what waits for what, how much runs at a time and what starts again are its own dependencies,
arrays and requeues.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit

from harness.experiments.schema import Experiment
from harness.files import write_atomic
from harness.training.distributed import Sharding
from harness.training.trainer import pieces
from slurm.cost import _speeds, cost_of
from slurm.jobs import CollectJob, Job, PrepareJob, run_jobs
from slurm.plan import RunPlan
from slurm.probe import array_limit
from slurm.profile import Profile, Resources, sbatch_parameters
from slurm.queue import NAME, Queue, ask
from slurm.snapshot import environment, keep_mixer_files, open_submission, snapshot
from slurm.state import read_status, write_status
from suites.units import TRAIN, fresh

Stage = Literal["prepare", "train", "evaluate", "collect"]


@dataclass(frozen=True)
class Array:
    """A job array, or a single job where there is one task.

    after: what it waits for: (`afterok`, `aftercorr` or `afterany`; the name of an array, or Slurm's id of a job).
    """

    name: str
    stage: Stage
    tasks: list[Job]
    after: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Pending:
    """What is to be done of a run. after: Slurm's id of a job elsewhere that trains it, where one does."""

    plan: RunPlan
    units: list[str]
    after: str = ""


def to_do(plans: Sequence[RunPlan], queue: Queue) -> tuple[list[Pending], list[str]]:
    """What is left to submit, and a line for every unit that is missing but not submitted: somebody does it already,
    or it has failed."""
    todo, left_out = [], []
    for plan in plans:
        units, after = [], ""
        for unit in plan.missing:
            status = read_status(plan.folder, unit)
            holder = None if status is None else queue.holds(plan.folder, unit, status)
            if TRAIN in units:
                units.append(unit)  # whatever became of it before, it was of other weights
            elif status is not None and status.state == "failed":
                left_out.append(f"{plan.config.run_id} {unit}: failed: {status.detail}")
                if unit == TRAIN:
                    break
            elif holder is not None and status is not None:
                state = "requeued" if status.state == "stopped" else status.state
                left_out.append(f"{plan.config.run_id} {unit}: {state} already, {holder}")
                if unit == TRAIN:
                    after = status.job
            else:
                units.append(unit)
        if units:
            todo.append(Pending(plan, units, after))
    return todo, left_out


def graph(
    experiment: Experiment,
    todo: Sequence[Pending],
    folder: Path,
    runs_root: Path,
    command: str,
    limit: int,
    sharding: Sharding = "ddp",
) -> list[Array]:
    """The arrays that do what is left, in the order in which they can be submitted. limit: tasks an array may have.

    One array trains, and one for every unit evaluates what it has trained, task by task (aftercorr).
    """
    arrays = [Array("prepare", "prepare", [PrepareJob(folder, "prepare")])]
    ready = [("afterok", "prepare")]

    def add(name: str, stage: Stage, works: Sequence[Pending], unit: str, after: list[tuple[str, str]]) -> None:
        tasks = [job for work in works for job in run_jobs(work.plan, [unit], command, sharding)]
        if tasks:
            arrays.append(Array(name, stage, tasks, after))

    train = [work for work in todo if TRAIN in work.units]
    trained = [work for work in todo if TRAIN not in work.units and not work.after]
    for part, start in enumerate(range(0, len(train), limit)):
        works, name = train[start : start + limit], f"train-{part}"
        add(name, "train", works, TRAIN, ready)
        for unit in works[0].plan.units:
            add(f"{unit}-{part}", "evaluate", works, unit, [("aftercorr", name)])
    for unit in [] if not trained else trained[0].plan.units:
        works, name = [work for work in trained if unit in work.units], unit if fresh(unit) else f"{unit}-trained"
        for part, start in enumerate(range(0, len(works), limit)):
            add(f"{name}-{part}", "evaluate", works[start : start + limit], unit, ready)
    for work in todo:
        if work.after:
            for unit in work.units:
                add(f"{unit}-{work.plan.config.run_id}", "evaluate", [work], unit, [*ready, ("afterok", work.after)])
    out = runs_root / "collected" / experiment.name
    last = [("afterany", array.name) for array in arrays]
    return [*arrays, Array("collect", "collect", [CollectJob(folder, "collect", out, runs_root, command)], last)]


@contextmanager
def submitting(runs_root: Path) -> Iterator[None]:
    """Held while a submission looks at what there is to do and says that it does it; another one waits."""
    runs_root.mkdir(parents=True, exist_ok=True)
    with open(runs_root / "submitting.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def submit(
    experiment: Experiment, plans: Sequence[RunPlan], profile: Profile, runs_root: Path, command: str
) -> tuple[dict[str, str], list[str]]:
    """Put everything that is left of an experiment into Slurm's queue: whole, or not at all.

    Returns Slurm's id of every array by its name, and the lines of `to_do` for what is left out. Raises ValueError when
    the processes of a training job cannot share its rows, and RuntimeError with what sbatch says when it refuses.
    """
    for plan in plans:
        pieces(plan.config.data, plan.config.train, profile.train.nodes * profile.train.tasks)
    with submitting(runs_root):
        todo, left_out = to_do(plans, Queue.read())
        if not todo:
            return {}, left_out
        experiment, kept = keep_mixer_files(experiment, [work.plan for work in todo], runs_root)
        todo = [Pending(plan, work.units, work.after) for plan, work in zip(kept, todo, strict=True)]
        limit, code = array_limit(), snapshot(runs_root)
        folder = open_submission(experiment, plans, runs_root, "slurm")
        arrays = graph(experiment, todo, folder, runs_root, command, limit, profile.sharding)
        ids: dict[str, str] = {}
        try:
            for array in arrays:
                ids[array.name] = _put(array, ids, profile, folder, code)
                write_atomic(folder / "jobs.json", json.dumps(ids).encode())
            for array in arrays:
                for index, job in enumerate(array.tasks):
                    task = f"_{index}" if len(array.tasks) > 1 else ""
                    write_status(job.folder, job.unit, "queued", f"as {array.name}", job=ids[array.name] + task, pid=0)
            # Everything waits for this one: nothing has started while it was being written down.
            ask("scontrol", "release", ids["prepare"], error=RuntimeError)
        except BaseException:
            if ids:
                ask("scancel", *ids.values(), error=None)
            shutil.rmtree(folder)
            raise
    return ids, left_out


def _put(array: Array, ids: dict[str, str], profile: Profile, folder: Path, code: Path) -> str:
    """Submit one array; Slurm's id of it."""
    listed = folder / "arrays" / f"{array.name}.json"
    write_atomic(listed, json.dumps([[str(job.folder), job.unit] for job in array.tasks]).encode())
    # One task is no array for Slurm, and has no corresponding one.
    kinds = {"aftercorr": "aftercorr" if len(array.tasks) > 1 else "afterok"}
    after = [f"{kinds.get(kind, kind)}:{ids.get(name, name)}" for kind, name in array.after]
    parameters = sbatch_parameters(profile, _resources(profile, array), NAME, ",".join(after) or None)
    extra = {"kill-on-invalid-dep": "yes"} | ({"hold": True} if array.stage == "prepare" else {})
    python = profile.python or shlex.quote(sys.executable)
    variables = environment(code)
    if array.stage in ("train", "evaluate", "collect"):
        variables["HF_HUB_OFFLINE"] = "1"  # what they read was frozen before they start
    # A signal to the job reaches the batch shell as well: with a trap it waits for its step and settles the end.
    setup = ["trap 'terminated=1' TERM", *(f"export {k}={shlex.quote(v)}" for k, v in variables.items())]
    step = [] if not profile.srun_args else ["srun", "--nodes=1", "--ntasks=1", *profile.srun_args]
    settle = [*map(shlex.quote, step), python, "-m", "slurm.batch_end", shlex.quote(str(listed))]
    teardown = [
        "code=$?",
        f'if [ $code -ne 0 ] && {" ".join(settle)} "${{SLURM_ARRAY_TASK_ID:-0}}" $code ${{terminated:-0}}; then',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        "fi",
        "exit $code",
    ]
    executor = submitit.SlurmExecutor(folder / "logs", python=python)
    executor.update_parameters(
        **parameters
        | {
            "comment": f"{folder.name} {array.name}",
            "setup": [*setup, *parameters.get("setup", [])],
            "teardown": teardown,
            "srun_args": ["--kill-on-bad-exit=1", *parameters.get("srun_args", [])],
            "additional_parameters": parameters.get("additional_parameters", {}) | extra,
        }
    )
    return enqueue(executor, array.tasks, array.name)


def enqueue(executor: submitit.SlurmExecutor, tasks: Sequence[Any], name: str) -> str:
    """Submit tasks as one array; Slurm's id of it. Raises RuntimeError with what sbatch says when it refuses."""
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise RuntimeError(f"sbatch refused {name}: {' '.join(str(error).split())}") from None
    return jobs[0].job_id.partition("_")[0]


def describe(experiment: Experiment, plans: Sequence[RunPlan], profile: Profile, runs_root: Path) -> str:
    """What `submit` would do, in words: the graph of its jobs, what each asks for, and what training costs. Touches
    nothing."""
    todo, left_out = to_do(plans, Queue.read())
    try:
        limit = array_limit()
    except ValueError:  # planning needs no cluster
        limit = 1001  # Slurm's own default
    arrays = graph(experiment, todo, runs_root / "submissions", runs_root, "", limit) if todo else []
    finished = sum(not plan.missing for plan in plans)
    lines = [f"{experiment.name}: {len(plans)} runs, {finished} of them done", *(f"left out: {x}" for x in left_out)]
    if arrays:
        lines.append(f"{'array':24} {'tasks':>6} {'at once':>8} {'nodes × GPUs':>13} {'CPUs':>5} {'limit':>10}  after")
    for array in arrays:
        asked = _resources(profile, array)
        at_once = min(len(array.tasks), profile.concurrency or len(array.tasks))
        after = ", ".join(f"{kind}:{name}" for kind, name in array.after[:3]) + (", …" if len(array.after) > 3 else "")
        shape = f"{asked.nodes} × {asked.gpus_per_node}"
        cpus = asked.cpus_per_task * asked.tasks
        limit = f"{asked.minutes // 60}:{asked.minutes % 60:02} h"
        lines.append(f"{array.name:24} {len(array.tasks):6} {at_once:8} {shape:>13} {cpus:5} {limit:>10}  {after}")
    trained = [work.plan.config for work in todo if TRAIN in work.units]
    processes = profile.train.nodes * profile.train.tasks
    speeds = _speeds(runs_root)
    cost = cost_of(trained, profile.tflops, profile.utilisation, speeds, profile.device, processes, profile.sharding)
    return "\n".join([*lines, cost])


def _resources(profile: Profile, array: Array) -> Resources:
    """What a task of an array asks for. Training alone is shared out among processes; collecting is work for the kind
    of node that prepares."""
    if array.stage == "train":
        return profile.train
    asked = profile.evaluate if array.stage == "evaluate" else profile.prepare
    return asked.model_copy(update={"nodes": 1, "tasks_per_node": 1})
