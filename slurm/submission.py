"""Submit an experiment to Slurm through submitit: the graph of its jobs, and the resources of each.

Slurm does the scheduling: its dependencies, arrays and requeues decide what waits, runs and starts again.
"""

from __future__ import annotations

import fcntl
import math
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import submitit

from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment
from harness.run_folder import RunFolder, Submission, collection_of, submissions_folder, submitting_lock
from harness.training.cost import cost_of, measured_speeds
from harness.training.distributed import Sharding
from harness.training.estimate import estimate
from harness.training.trainer import pieces
from slurm.jobs import SILENT_MINUTES, ChooseJob, CollectJob, Job, PrepareJob, run_jobs
from slurm.plan import RunPlan, Selection, selections, trials, untrained
from slurm.probe import array_limit
from slurm.profile import Profile, Resources, sbatch_parameters
from slurm.queue import OF_OURS, Queue, ask, interruptible, without_options
from slurm.snapshot import environment, keep_files, open_submission, snapshot
from slurm.state import write_status
from suites.units import TRAIN

Stage = Literal["prepare", "train", "evaluate", "choose", "collect"]
"""Kinds of job in the graph. Those of `choose` and `collect` get the resources of the profile's stage `prepare`."""


@dataclass(frozen=True)
class Array:
    """A job array, or a single job if there is one task.

    after: its dependencies, as pairs of `afterok`, `aftercorr` or `afterany` and an array's name or a Slurm job id.
    """

    name: str
    stage: Stage
    tasks: list[Job]
    after: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Pending:
    """The units of a run that a submission has to do.

    after: Slurm's id of the job of another submission that trains the run; empty if there is none.
    """

    plan: RunPlan
    units: list[str]
    after: str = ""


@dataclass(frozen=True)
class Work:
    """The work of a submission.

    trials, runs: what is left of them. choices: those that are not made yet. held: Slurm's ids of other submissions'
    jobs that work on trials. left_out: a line for each missing unit that is left out, because another job or process
    works on it already, or because it has failed.
    """

    trials: list[Pending]
    runs: list[Pending]
    choices: list[Selection]
    held: list[str]
    left_out: list[str]


def work_left(plans: Sequence[RunPlan], queue: Queue) -> Work:
    """The work that is left of an experiment's runs and their trials."""
    undecided = [selection for selection in selections(plans) if selection.file.read() is None]
    tried = list({trial.folder: trial for selection in undecided for trial in selection.trials}.values())
    trials, held, out = to_do(tried, queue)
    runs, _, left_out = to_do(plans, queue)
    if not runs:  # nobody would use the choice
        return Work([], [], [], [], left_out)
    return Work(trials, runs, undecided, held, out + left_out)


def to_do(plans: Sequence[RunPlan], queue: Queue) -> tuple[list[Pending], list[str], list[str]]:
    """The units that are left to submit, the jobs that work on others, and a line for each that is left out.

    A unit is left out if another job or process works on it already, or if it has failed.
    """
    todo, held, left_out = [], [], []
    for plan in plans:
        units, after = [], ""
        for unit in plan.missing:
            status = RunFolder(plan.folder).read_status(plan.place(unit))
            holder = None if status is None else queue.holds(plan.folder, plan.place(unit), status)
            if TRAIN in units:
                units.append(unit)  # its earlier status, if any, belongs to other weights
            elif status is not None and status.state == "failed":
                left_out.append(f"{plan.config.run_id} {unit}: failed: {status.detail}")
                if unit == TRAIN:
                    break
            elif holder is not None and status is not None:
                state = "requeued" if status.state == "stopped" else status.state
                left_out.append(f"{plan.config.run_id} {unit}: {state} already, {holder}")
                held += [status.job] if status.job else []
                if unit == TRAIN:
                    after = status.job
            else:
                units.append(unit)
        if units:
            todo.append(Pending(plan, units, after))
    return todo, held, left_out


def graph(
    experiment: Experiment,
    work: Work,
    folder: Path,
    runs_root: Path,
    command: str,
    limit: int,
    sharding: Sharding = "ddp",
) -> list[Array]:
    """The job arrays that do what is left, in the order in which they can be submitted.

    One array trains, and one per unit evaluates, each task after the training of its own run (aftercorr). Then a job
    collects. Before all that, trials are trained and evaluated likewise, and a job chooses from them: it waits for
    their end, whether they succeed or not, and the runs wait for its success. folder: the submission's. limit: the most
    tasks that an array may have.
    """
    trained = None if untrained(run.plan for run in (*work.trials, *work.runs)) else runs_root
    arrays = [Array("prepare", "prepare", [PrepareJob(folder, "prepare", trained)])]

    def add(name: str, stage: Stage, pending: Sequence[Pending], unit: str, after: list[tuple[str, str]]) -> None:
        tasks = [job for run in pending for job in run_jobs(run.plan, [unit], command, sharding)]
        if tasks:
            arrays.append(Array(name, stage, tasks, after))

    def add_runs(todo: Sequence[Pending], prefix: str, training: str, ready: list[tuple[str, str]]) -> None:
        train = [run for run in todo if TRAIN in run.units]
        trained = [run for run in todo if TRAIN not in run.units and not run.after]
        for part, start in enumerate(range(0, len(train), limit)):
            pending, name = train[start : start + limit], f"{training}-{part}"
            add(name, "train", pending, TRAIN, ready)
            for unit in pending[0].plan.units:
                add(f"{prefix}{unit}-{part}", "evaluate", pending, unit, [("aftercorr", name)])
        for unit, evaluation in trained[0].plan.units.items() if trained else ():
            pending = [run for run in trained if unit in run.units]
            name = unit if evaluation.fresh else f"{unit}-trained"
            for part, start in enumerate(range(0, len(pending), limit)):
                add(f"{prefix}{name}-{part}", "evaluate", pending[start : start + limit], unit, ready)
        for run in todo:
            if run.after:
                for unit in run.units:
                    name = f"{prefix}{unit}-{run.plan.config.run_id}"
                    add(name, "evaluate", [run], unit, [*ready, ("afterok", run.after)])

    prepared = [("afterok", "prepare")]
    add_runs(work.trials, "trials-", "trials", prepared)
    ready = prepared
    if work.choices:
        after = [("afterany", array.name) for array in arrays[1:]] + [("afterany", job) for job in work.held]
        arrays.append(Array("choose", "choose", [ChooseJob(folder, "choose", tuple(work.choices))], prepared + after))
        ready = [("afterok", "choose")]
    add_runs(work.runs, "", "train", ready)
    out = collection_of(runs_root, experiment.name).path
    last = [("afterany", array.name) for array in arrays]
    return [*arrays, Array("collect", "collect", [CollectJob(folder, "collect", out, runs_root, command)], last)]


@contextmanager
def submitting(runs_root: Path) -> Iterator[None]:
    """Hold the lock under which a submission decides what to do and records it; other submissions wait."""
    runs_root.mkdir(parents=True, exist_ok=True)
    with open(submitting_lock(runs_root), "w", encoding="utf-8") as lock:
        with suppress(PermissionError):  # it is somebody else's
            submitting_lock(runs_root).chmod(0o666)  # colleagues submit to the same folder of runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def submit(
    experiment: Experiment, plans: Sequence[RunPlan], profile: Profile, runs_root: Path, command: str
) -> tuple[dict[str, str], list[str]]:
    """Put everything that an experiment lacks into Slurm's queue, completely or not at all.

    Returns Slurm's id of each array by name, and the lines about what is left out. Raises ValueError if the
    processes of a training job cannot share its rows, and RuntimeError with sbatch's message if it refuses.
    """
    _require_shares(plans, profile)
    with submitting(runs_root), interruptible():
        work = work_left(plans, Queue.read())
        if not work.runs:
            return {}, work.left_out
        pending = [*work.trials, *work.runs]
        experiment, kept = keep_files(experiment, [run.plan for run in pending], runs_root)
        pending = [replace(run, plan=plan) for run, plan in zip(pending, kept, strict=True)]
        work = replace(work, trials=pending[: len(work.trials)], runs=pending[len(work.trials) :])
        limit, code = array_limit(), snapshot(runs_root)
        folder = open_submission(experiment, [*trials(plans), *plans], runs_root, "slurm", profile.silent_minutes)
        arrays = graph(experiment, work, folder, runs_root, command, limit, profile.sharding)
        ids: dict[str, str] = {}
        try:
            for array in arrays:
                ids[array.name] = _put(array, ids, profile, folder, code, experiment.name)
                Submission(folder).write_jobs(ids)
            for array in arrays:
                for index, job in enumerate(array.tasks):
                    task = f"_{index}" if len(array.tasks) > 1 else ""
                    write_status(job.folder, job.unit, "queued", f"as {array.name}", job=ids[array.name] + task, pid=0)
            # All arrays wait for this one, which is on hold: nothing starts before everything is recorded.
            ask("scontrol", "release", ids["prepare"], error=RuntimeError)
        except BaseException:
            withdraw(f"{folder.name} ", ids.values())
            shutil.rmtree(folder)
            raise
    return ids, work.left_out


def withdraw(comment: str, ids: Iterable[str]) -> None:
    """Cancel the jobs of a submission that is not complete: those with these ids, and those whose comment begins so.

    sbatch may have been interrupted after Slurm took its job and before it could say the job's id.
    """
    listed = ask("squeue", "--noheader", "--me", "--format=%A|%k", error=None) or ""
    rows = [line.partition("|") for line in listed.splitlines()]
    known = dict.fromkeys([*ids, *(job for job, _, said in rows if said.startswith(comment))])
    if known:
        ask("scancel", *known, error=None)


def _put(array: Array, ids: dict[str, str], profile: Profile, folder: Path, code: Path, experiment: str) -> str:
    """Submit one array and return its Slurm id."""
    listed = Submission(folder).write_array(array.name, [(job.folder, job.unit) for job in array.tasks])
    # Slurm does not treat a single task as an array, so it has no corresponding task to wait for.
    kinds = {"aftercorr": "aftercorr" if len(array.tasks) > 1 else "afterok"}
    after = [f"{kinds.get(kind, kind)}:{ids.get(name, name)}" for kind, name in array.after]
    name = f"{experiment}:{array.name}{OF_OURS}"
    parameters = sbatch_parameters(profile, _resources(profile, array), name, ",".join(after) or None)
    extra = {"kill-on-invalid-dep": "yes"} | ({"hold": True} if array.stage == "prepare" else {})
    python = profile.python or shlex.quote(sys.executable)
    variables = environment(code)
    if array.stage != "prepare":
        variables["HF_HUB_OFFLINE"] = "1"  # `prepare` has frozen everything they read
    if profile.restart_silent and array.stage in ("train", "evaluate"):
        variables[SILENT_MINUTES] = str(profile.silent_minutes)
    # A signal to the job also reaches the batch shell. With a trap, the shell waits for its step and settles the end.
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
    executor = submitit.SlurmExecutor(Submission(folder).logs, python=python)
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
    """Submit tasks as one array and return its Slurm id. Raises RuntimeError with sbatch's message if it refuses."""
    try:
        with without_options(), executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        remedy = ""
        if "MaxSubmit" in said or "job submit limit" in said:
            remedy = "; where a limit on jobs is the reason, submit a part of them with --limit or --only"
        raise RuntimeError(f"sbatch refused {name}: {said}{remedy}") from None
    return jobs[0].job_id.partition("_")[0]


def describe(experiment: Experiment, plans: Sequence[RunPlan], profile: Profile, runs_root: Path) -> str:
    """Describe what `submit` would do: the graph of jobs, their resources, and the cost of training.

    Touches nothing. Raises ValueError as `submit` does.
    """
    _require_shares(plans, profile)
    work = work_left(plans, Queue.read())
    try:
        limit = array_limit()
    except ValueError:  # a dry run needs no cluster
        limit = 1001  # Slurm's default
    arrays = graph(experiment, work, submissions_folder(runs_root), runs_root, "", limit) if work.runs else []
    finished = sum(not plan.missing for plan in plans)
    lines = [f"{experiment.name}: {len(plans)} runs, {finished} of them done"]
    if tried := trials(plans):
        lines.append(f"{len(tried)} trials, {len(tried) - len(work.trials)} of them over or at work")
    lines += [f"left out: {line}" for line in work.left_out]
    if arrays:
        lines.append(f"{'array':24} {'tasks':>6} {'at once':>8} {'nodes × GPUs':>13} {'CPUs':>5} {'limit':>10}  after")
    for array in arrays:
        resources = _resources(profile, array)
        at_once = min(len(array.tasks), profile.concurrency or len(array.tasks))
        after = ", ".join(f"{kind}:{name}" for kind, name in array.after[:3]) + (", …" if len(array.after) > 3 else "")
        shape = f"{resources.nodes} × {resources.gpus_per_node}"
        cpus = resources.cpus_per_task * resources.tasks
        limit = f"{resources.minutes // 60}:{resources.minutes % 60:02} h"
        lines.append(f"{array.name:24} {len(array.tasks):6} {at_once:8} {shape:>13} {cpus:5} {limit:>10}  {after}")
    trained = [run.plan.config for run in (*work.trials, *work.runs) if TRAIN in run.units]
    processes = profile.train.nodes * profile.train.tasks
    speeds = measured_speeds(runs_root)
    cost = cost_of(trained, profile.tflops, profile.utilisation, speeds, profile.device, processes, profile.sharding)
    return "\n".join([*lines, cost, *_durations(trained, profile, speeds)])


def _durations(runs: Sequence[RunConfig], profile: Profile, speeds: pd.DataFrame) -> list[str]:
    """One line per model: the hours that training one run takes, and how often its time limit ends its job.

    Empty without runs, and where neither a measured speed nor the GPU's peak is known.
    """
    processes = profile.train.nodes * profile.train.tasks
    hours: dict[tuple[str, str, str], float] = {}
    for run in runs:
        found = estimate(run, profile.tflops or 1.0, profile.utilisation, speeds, profile.device, processes)
        if found.measured or profile.tflops is not None:
            key = (run.label, run.layout, run.preset)
            hours[key] = max(hours.get(key, 0.0), found.device_hours / processes)
    usable = profile.train.minutes / 60 - profile.signal_delay_s / 3600
    lines = []
    for (label, layout, preset), each in hours.items():
        restarts = math.ceil(each / usable) - 1
        again = f"started again {restarts} times" if restarts else "done in one job"
        lines.append(
            f"one run of {label}, {layout}, {preset}: {each:,.1f} h, {again} of {profile.train.minutes} minutes"
        )
    return lines


def _require_shares(plans: Sequence[RunPlan], profile: Profile) -> None:
    """Raise ValueError if the processes of a training job cannot share the rows of a run."""
    for plan in plans:
        pieces(plan.config.data, plan.config.train, profile.train.nodes * profile.train.tasks)


def _resources(profile: Profile, array: Array) -> Resources:
    """The resources of one task of an array.

    Only training uses several processes. Collecting runs on the kind of node that prepares.
    """
    if array.stage == "train":
        return profile.train
    resources = profile.evaluate if array.stage == "evaluate" else profile.prepare
    return resources.model_copy(update={"nodes": 1, "tasks_per_node": 1})
