"""Tokenise a data set in Slurm jobs.

The tasks of a job array share the parts among themselves; a last job does what is left and assembles the output. A job
that is killed or runs out of time loses only the parts it was working on.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable

from harness.data.prepare import finish, work_folder
from harness.data.shards import INDEX
from harness.data.tokenise import JOBS, Preparation
from harness.data.workers import do_parts
from harness.files import read_json, write_atomic
from slurm.probe import array_limit, problems
from slurm.profile import Profile, load_profile, sbatch_parameters
from slurm.queue import OF_OURS, Queue, interruptible
from slurm.snapshot import environment, snapshot
from slurm.submission import enqueue, submitting, withdraw

LOG_INTERVAL = 60
"""Seconds between two progress lines in a job's log."""
MOST_TIMEOUTS = 100
"""Times that submitit requeues a job at its time limit. Finished parts are never lost."""


@dataclass(frozen=True)
class PartsJob(Checkpointable):
    """A job that tokenises parts of a planned output. Submitit restarts it unchanged after its time limit.

    processes: CPUs to use. last: finish the output instead, with whatever parts are left.
    """

    out: Path
    processes: int
    last: bool

    def __call__(self) -> None:
        """Do the job's share. Raises RuntimeError if the output is neither planned nor there."""
        last_line = 0.0

        def say(line: str) -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= LOG_INTERVAL:
                last_line = time.monotonic()
                print(line, flush=True)

        if self.last:
            finish(self.out, self.processes, say)
        elif work_folder(self.out).exists():
            do_parts(Preparation(work_folder(self.out)), self.processes, say)
        elif not (self.out / INDEX).exists():
            raise RuntimeError(f"{self.out}: neither there nor planned any more; give the same command again")


def submit(out: Path, profile: Profile, jobs: int, runs_root: Path) -> list[str]:
    """Submit the jobs that finish a planned output, unless they are in the queue already.

    jobs: tasks of the array, each with the resources of the profile's stage `prepare`. Returns lines that report the
    progress so far and name the jobs. Raises ValueError for an impossible number of jobs, and RuntimeError with
    sbatch's message if it refuses; then nothing stays in the queue.
    """
    if not 1 <= jobs <= (limit := array_limit()):
        raise ValueError(f"--jobs: {jobs} is no number of jobs for this cluster; give 1 to {limit}")
    with submitting(runs_root), interruptible():
        try:
            preparation = Preparation(work_folder(out))
        except FileNotFoundError:
            return [f"{out}: finished by earlier jobs; the same command shows it"]
        preparation.refresh()
        read, tokens = preparation.counts()
        done = f"{len(preparation.results)} of {len(preparation.parts)} parts"
        lines = [f"{out}: {done}, {read:,} documents, {tokens:,} tokens"]
        if queued := _queued(preparation):
            return [*lines, f"in the queue: {', '.join(queued)}; the same command says how far they are"]
        code = snapshot(runs_root)
        folder = runs_root / "preparations" / f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        ids: list[str] = []
        missing = 0 if preparation.complete() else len(preparation.parts) - len(preparation.results)
        try:
            if missing:
                array = [PartsJob(out, profile.prepare.cpus_per_task, last=False)] * min(jobs, missing)
                ids.append(_put(array, None, profile, folder, code, out.name))
            last = PartsJob(out, profile.prepare.cpus_per_task, last=True)
            ids.append(_put([last], f"afterany:{ids[0]}" if ids else None, profile, folder, code, out.name))
            write_atomic(preparation.folder / JOBS, json.dumps(ids).encode())
        except BaseException:
            withdraw(folder.name, ids)
            raise
    if missing:
        lines.append(f"{min(jobs, missing)} jobs tokenise: {ids[0]}")
    return [*lines, f"the last one puts together: {ids[-1]}", f"logs: {folder}; the same command says how far they are"]


def _queued(preparation: Preparation) -> list[str]:
    """Ids of the last submission's jobs that are still in the queue, sorted."""
    try:
        ids = read_json(preparation.folder / JOBS, "see `squeue` for its jobs, then delete it")
    except FileNotFoundError:
        return []
    if (known := Queue.read().jobs) is None:
        raise RuntimeError("squeue: no answer, so the queue is unknown; try again when the cluster is up")
    return sorted(job for job in known if job.partition("_")[0] in ids)


def _put(jobs: Sequence[PartsJob], dependency: str | None, profile: Profile, folder: Path, code: Path, out: str) -> str:
    """Submit an array and return its Slurm id."""
    resources = profile.prepare.model_copy(update={"nodes": 1, "tasks_per_node": 1})
    parameters = sbatch_parameters(profile, resources, f"{out}:tokenise{OF_OURS}", dependency)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment(code).items()]
    python = profile.python or shlex.quote(sys.executable)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS, python=python)
    executor.update_parameters(
        **parameters | {"comment": folder.name, "setup": [*exports, *parameters.get("setup", [])]}
    )
    return enqueue(executor, jobs, folder.name)[0].job_id.partition("_")[0]


def preparing_profile(cluster: str | None, jobs: int, overrides: Sequence[str] = ()) -> Profile | None:
    """The profile of the cluster that prepares the data, checked against the cluster; None for this machine.

    overrides: see `load_profile`.

    Raises ValueError naming the option at fault, or everything that the cluster would refuse.
    """
    if jobs < 1 or (cluster is None and jobs != 1):
        raise ValueError(f"--jobs: {jobs} jobs cannot be; give at least 1, with --cluster PROFILE")
    if cluster is None:
        if overrides:
            raise ValueError("--set-profile: this machine has no profile; give --cluster PROFILE")
        return None
    if cluster in ("local", "debug"):
        raise ValueError(f"--cluster: {cluster} is this machine; leave it out, and limit the CPUs with --processes")
    profile = load_profile(cluster, overrides)
    if refused := problems(profile):
        raise ValueError("; ".join(refused))
    return profile
