"""Submit an experiment to Slurm through submitit: its job graph becomes batch scripts with the profile's resources.

Slurm does the scheduling: its dependencies, arrays and requeues decide what waits, runs and starts again.
"""

from __future__ import annotations

import fcntl
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from harness.experiments.schema import Experiment
from harness.run_folder import Submission, submitting_lock
from harness.training.trainer import pieces
from slurm.graph.arrays import Array, Sweep, collects, graph, prepares
from slurm.graph.limits import Later, limits, room
from slurm.graph.waves import BESIDES, split
from slurm.graph.work import LATER, Work, still_left, work_left
from slurm.jobs import SILENT_MINUTES, Job, Notice, PrepareJob
from slurm.plan import RunPlan, trials
from slurm.probe import array_limit
from slurm.profile import Profile, Resources, sbatch_parameters
from slurm.queue import OF_OURS, Queue, ask, interruptible, without_options
from slurm.snapshot import environment, keep_files, open_submission, snapshot
from slurm.state import job_id, write_status

WAIT = 60.0
"""Seconds until a job looks again whether the queue has room for the next wave."""


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
    experiment: Experiment,
    plans: Sequence[RunPlan],
    profile: Profile,
    runs_root: Path,
    command: str,
    after: Sequence[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Put everything that an experiment lacks into Slurm's queue, completely or not at all.

    Of a sweep that is larger than the site's limits, its first wave, and a job that submits the next. after: Slurm's
    ids of jobs before whose end nothing of it starts.

    Returns Slurm's id of each array by name, and the lines about what is left out. Raises ValueError if the
    processes of a training job cannot share its rows or the queue has no room, and RuntimeError with sbatch's message
    if it refuses.
    """
    require_shares(plans, profile)
    with submitting(runs_root), interruptible():
        work = work_left(plans, Queue.read())
        if not work.runs:
            return {}, work.left_out
        most = most_jobs(profile)
        experiment, kept = keep_files(experiment, [run.plan for run in work.pending], runs_root)
        work, limit, code = work.moved(kept), array_limit(), snapshot(runs_root)
        folder = open_submission(experiment, [*trials(plans), *plans], runs_root, "slurm", profile.silent_minutes)
        sweep = Sweep(experiment.name, folder, runs_root, command, limit, profile, environment(code))
        try:
            now, later = split(work, most, profile.evaluate.pack)
            ids = _submit_wave(sweep, now, later, prepares(sweep, work), after=after)
        except BaseException:
            shutil.rmtree(folder)
            raise
    return ids, work.left_out


def most_jobs(profile: Profile) -> int | None:
    """The most jobs of a wave on the cluster at hand; None without a limit. Raises ValueError if there is no room."""
    free = room(limits(profile))
    if free is None:
        return None
    if free[0] <= BESIDES:
        raise ValueError(f"{free[1]}, and a sweep needs {BESIDES + 1} more; wait for some of them, or cancel them")
    return free[0] - BESIDES


@dataclass(frozen=True)
class ReleaseJob(Job):
    """Submit the next wave of a sweep once the one before is over.

    folder: the submission's. rest: the work that is not submitted yet. wave: number of the next one.
    """

    sweep: Sweep
    rest: Work
    wave: int

    def done(self) -> bool:
        return not {"collect", f"release-{self.wave + 1}"}.isdisjoint(Submission(self.folder).read_jobs())

    def work(self, notice: Notice) -> None:
        if not Submission(self.folder).prepared.exists():
            raise RuntimeError("prepare did not finish, and nothing can be done without it; submit again")
        while True:
            try:
                with submitting(self.sweep.runs_root), interruptible():
                    return self._submit()
            except Later as error:
                write_status(self.folder, self.unit, "running", f"waits: {error}")
            time.sleep(WAIT)

    def _submit(self) -> None:
        """Submit the next wave, completely or not at all. Raises Later if it has to wait."""
        withdraw(f"{self.folder.name}/{self.wave} ", ())  # of an attempt that could not undo its work
        queue = Queue.read()
        if queue.jobs is None:
            raise Later("squeue: no answer")
        # Until now this job held everything that is left.
        work = still_left(self.rest, Queue({job: said for job, said in queue.jobs.items() if job != job_id()}))
        for line in work.left_out:
            print(f"left out: {line}", flush=True)
        free = room(limits(self.sweep.profile))
        if free is not None and free[0] < BESIDES:
            raise Later(free[1])
        now, later = split(work, None if free is None else free[0] - BESIDES + 1, self.sweep.profile.evaluate.pack)
        _submit_wave(self.sweep, now, later, job_id(), self.wave)


def _submit_wave(
    sweep: Sweep, now: Work, later: Work, first: PrepareJob | str, wave: int = 0, after: Sequence[str] = ()
) -> dict[str, str]:
    """Put a wave into Slurm's queue and record it, completely or not at all; returns Slurm's id of each array by name.

    Nothing of it starts before `first` has ended, which itself waits for the jobs `after`. Raises RuntimeError with
    sbatch's message if it refuses; Later if it may accept the same at another time.
    """
    submission, ids = Submission(sweep.folder), {}
    last = collects(sweep)
    if later.pending or later.choices:
        last = ReleaseJob(sweep.folder, f"release-{wave + 1}", sweep, later, wave + 1)
    arrays = graph(now, sweep, first, last, wave, after)
    before = submission.read_jobs()
    try:
        for array in arrays:
            ids[array.name] = _put(array, arrays, ids, sweep, wave)
            if wave == 0:
                submission.write_jobs(ids)
        for array in arrays:
            for index, task in array.tasks.items():
                job = ids[array.name] + (f"_{index}" if len(array.tasks) > 1 else "")
                for part in task.parts:
                    write_status(part.folder, part.unit, "queued", f"as {array.name}", job=job, pid=0)
        for run in later.pending:
            for unit in run.units:
                place = run.plan.place(unit)
                write_status(run.plan.folder, place, "queued", LATER, job=ids[last.unit], pid=0)
        if wave == 0:  # all arrays wait for this one, which is on hold: nothing starts before everything is recorded
            ask("scontrol", "release", ids["prepare"], error=RuntimeError)
        else:
            submission.write_jobs(before | ids)
    except BaseException:
        withdraw(f"{sweep.folder.name}/{wave} ", ids.values())
        raise
    return ids


def withdraw(comment: str, ids: Iterable[str]) -> None:
    """Cancel the jobs of a submission that is not complete: those with these ids, and those whose comment begins so.

    sbatch may have been interrupted after Slurm took its job and before it could say the job's id.
    """
    listed = ask("squeue", "--noheader", "--me", "--format=%A|%k", error=None) or ""
    rows = [line.partition("|") for line in listed.splitlines()]
    known = dict.fromkeys([*ids, *(job for job, _, said in rows if said.startswith(comment))])
    if known:
        ask("scancel", *known, error=None)


def _dependency(array: Array, arrays: Sequence[Array], ids: Mapping[str, str]) -> str:
    """The dependencies of an array as sbatch takes them."""
    several = {other.name for other in arrays if len(other.tasks) > 1}
    after = []
    for kind, name in array.after:
        job = ids.get(name, name)
        if kind == "aftercorr" and len(array.tasks) == 1:  # a single task is no array, and has no corresponding task
            kind, job = "afterok", job + (f"_{min(array.tasks)}" if name in several else "")
        after.append(f"{kind}:{job}")
    return ",".join(after)


def _put(array: Array, arrays: Sequence[Array], ids: Mapping[str, str], sweep: Sweep, wave: int) -> str:
    """Submit one of the arrays of a wave and return its Slurm id. ids: those of the arrays before it."""
    profile, folder = sweep.profile, sweep.folder
    single = len(array.tasks) == 1
    works = {
        0 if single else index: (task.parts[0].folder, [job.unit for job in task.parts])
        for index, task in array.tasks.items()
    }
    listed = Submission(folder).write_array(array.name, works)
    name = f"{sweep.experiment}:{array.name}{OF_OURS}"
    parameters = sbatch_parameters(profile, resources_of(profile, array), name, _dependency(array, arrays, ids) or None)
    extra = {"kill-on-invalid-dep": "yes"} | ({"hold": True} if array.stage == "prepare" else {})
    sparse = not single and list(array.tasks) != list(range(len(array.tasks)))
    if sparse:
        at_once = f"%{profile.concurrency}" if profile.concurrency else ""
        extra["array"] = ",".join(map(str, array.tasks)) + at_once
    python = profile.python or shlex.quote(sys.executable)
    variables = dict(sweep.variables)
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
            "comment": f"{folder.name}/{wave} {array.name}",
            "setup": [*setup, *parameters.get("setup", [])],
            "teardown": teardown,
            "srun_args": ["--kill-on-bad-exit=1", *parameters.get("srun_args", [])],
            "additional_parameters": parameters.get("additional_parameters", {}) | extra,
        }
    )
    jobs = enqueue(executor, list(array.tasks.values()), array.name)
    if sparse:  # submitit has numbered the tasks from 0; the last moves first, out of the way of those before it
        for index, job in reversed(list(zip(array.tasks, jobs, strict=True))):
            paths = submitit.core.utils.JobPaths(executor.folder, f"{job.job_id.partition('_')[0]}_{index}")
            job.paths.submitted_pickle.rename(paths.submitted_pickle)
    return jobs[0].job_id.partition("_")[0]


def enqueue(executor: submitit.SlurmExecutor, tasks: Sequence[Any], name: str) -> list[submitit.Job[Any]]:
    """Submit tasks as one array. Raises RuntimeError with sbatch's message if it refuses."""
    try:
        with without_options(), executor.batch():
            return [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        full = "MaxSubmit" in said or "job submit limit" in said
        remedy = "; set max_jobs in the profile to the jobs that you may have in the queue" if full else ""
        again = full or any(reason in said for reason in ("Unable to contact", "timed out", "temporarily unable"))
        raise (Later if again else RuntimeError)(f"sbatch refused {name}: {said}{remedy}") from None


def require_shares(plans: Sequence[RunPlan], profile: Profile) -> None:
    """Raise ValueError if the processes of a training job cannot share the rows of a run."""
    for plan in plans:
        pieces(plan.config.data, plan.config.train, profile.train.nodes * profile.train.tasks)


def resources_of(profile: Profile, array: Array) -> Resources:
    """The resources of one task of an array.

    Only training uses several processes. Collecting runs on the kind of node that prepares.
    """
    if array.stage == "train":
        return profile.train
    resources = profile.evaluate if array.stage == "evaluate" else profile.prepare
    return resources.model_copy(update={"nodes": 1, "tasks_per_node": 1})
