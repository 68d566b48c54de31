"""Tokenising a data set in jobs of Slurm: an array that divides the parts among itself, and a job behind it that does
what is left and puts them together. A job that is killed or runs out of time costs the parts that it was at."""

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
from harness.files import write_atomic
from slurm.probe import array_limit, problems
from slurm.profile import Profile, load_profile, sbatch_parameters
from slurm.queue import NAME, Queue, ask
from slurm.snapshot import environment, snapshot
from slurm.submission import enqueue, submitting

SAY_EVERY = 60  # seconds between two lines of a job's log
MOST_TIMEOUTS = 100  # of a job that submitit queues again at its time limit; what is done by then is never lost


@dataclass(frozen=True)
class PartsJob(Checkpointable):
    """Do parts of a planned output with so many processes, or all that is left of it. Submitit starts it again, as it
    is, when its time is over."""

    out: Path
    processes: int
    last: bool

    def __call__(self) -> None:
        said = 0.0

        def say(line: str) -> None:
            nonlocal said
            if time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                print(line, flush=True)

        if self.last:
            finish(self.out, self.processes, say)
        elif work_folder(self.out).exists():
            do_parts(Preparation(work_folder(self.out)), self.processes, say)
        elif not (self.out / INDEX).exists():
            raise RuntimeError(f"{self.out}: neither there nor planned any more; give the same command again")


def submit(out: Path, profile: Profile, jobs: int, runs_root: Path) -> list[str]:
    """Put what is left of a planned output into Slurm's queue, unless jobs for it are there already. Returns lines that
    say how far it is and what does the rest.

    jobs: of the array, each with the resources of the profile's `prepare`. Raises ValueError for a number of jobs that
    cannot be, and RuntimeError with what sbatch says when it refuses; nothing stays in the queue then.
    """
    if not 1 <= jobs <= (limit := array_limit()):
        raise ValueError(f"--jobs: {jobs} is no number of jobs for this cluster; give 1 to {limit}")
    with submitting(runs_root):
        try:
            preparation = Preparation(work_folder(out))
        except FileNotFoundError:
            return [f"{out}: put together by jobs of before; the same command shows it"]
        preparation.refresh()
        read, tokens = preparation.counts()
        done = f"{len(preparation.results)} of {len(preparation.parts)} parts"
        lines = [f"{out}: {done}, {read:,} documents, {tokens:,} tokens"]
        if there := _queued(preparation):
            return [*lines, f"in the queue: {', '.join(there)}; the same command says how far they are"]
        code = snapshot(runs_root)
        folder = runs_root / "preparations" / f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        ids: list[str] = []
        missing = 0 if preparation.complete() else len(preparation.parts) - len(preparation.results)
        try:
            if missing:
                array = [PartsJob(out, profile.prepare.cpus_per_task, last=False)] * min(jobs, missing)
                ids.append(_put(array, None, profile, folder, code))
            last = PartsJob(out, profile.prepare.cpus_per_task, last=True)
            ids.append(_put([last], f"afterany:{ids[0]}" if ids else None, profile, folder, code))
            write_atomic(preparation.folder / JOBS, json.dumps(ids).encode())
        except BaseException:
            if ids:
                ask("scancel", *ids, error=None)
            raise
    if missing:
        lines.append(f"{min(jobs, missing)} jobs tokenise: {ids[0]}")
    return [*lines, f"the last one puts together: {ids[-1]}", f"logs: {folder}; the same command says how far they are"]


def _queued(preparation: Preparation) -> list[str]:
    """The jobs of the last submission that are still in the queue."""
    try:
        ids = json.loads((preparation.folder / JOBS).read_bytes())
    except FileNotFoundError:
        return []
    if (known := Queue.read().jobs) is None:
        raise RuntimeError("squeue: no answer, so what is queued is not known; try again when the cluster is up")
    return sorted(job for job in known if job.partition("_")[0] in ids)


def _put(jobs: Sequence[PartsJob], dependency: str | None, profile: Profile, folder: Path, code: Path) -> str:
    """Submit an array; Slurm's id of it."""
    asked = profile.prepare.model_copy(update={"nodes": 1, "tasks_per_node": 1})
    parameters = sbatch_parameters(profile, asked, NAME, dependency)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment(code).items()]
    python = profile.python or shlex.quote(sys.executable)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS, python=python)
    executor.update_parameters(
        **parameters | {"comment": folder.name, "setup": [*exports, *parameters.get("setup", [])]}
    )
    return enqueue(executor, jobs, folder.name)


def preparing_profile(cluster: str | None, jobs: int) -> Profile | None:
    """The checked profile of the cluster that is to prepare data; None for this machine. Raises ValueError naming the
    option at fault."""
    if jobs < 1 or (cluster is None and jobs != 1):
        raise ValueError(f"--jobs: {jobs} jobs cannot be; give at least 1, with --cluster PROFILE")
    if cluster is None:
        return None
    if cluster in ("local", "debug"):
        raise ValueError(f"--cluster: {cluster} is this machine, whose CPUs `--processes` takes; leave it out")
    profile = load_profile(cluster)
    if wrong := problems(profile):
        raise ValueError("; ".join(wrong))
    return profile
