"""A sweep under a limit on jobs in the queue, with jobs that are killed at random, and an account of what came of it.

    python -m tests.slurm.cluster.killed_sweep OUT              # 300 runs, 50 jobs, 5 % of them killed: an hour or more
    python -m tests.slurm.cluster.killed_sweep OUT --stand-ins  # the same with jobs that train nothing: minutes

Its cluster is minislurm.py's. It leaves account.json and log.txt in OUT, and fails if a record is lost or doubled.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from harness.data.corpus import documents
from harness.data.prepare import prepare
from harness.experiments.load import load_experiment
from harness.files import CHECKOUT, write_atomic, write_json
from harness.records.record import read_lines
from harness.run_folder import RunFolder, record_files, submissions
from slurm.bench import synthetic_summary
from slurm.plan import RunPlan, plan
from suites.units import TRAIN
from tests.slurm.cluster.client import TINY, Client
from tests.slurm.cluster.minislurm import MiniSlurm, running
from tests.slurm.experiments import experiment

STAND_IN = """
import json, os, shutil, sys, time
from pathlib import Path
name = os.environ["SLURM_JOB_NAME"].partition(":")[2].removesuffix("@mixerbench")
if name.startswith("release-") or "-m" in sys.argv[1:2] and sys.argv[2] != "submitit.core._submit":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
sys.path.insert(0, CHECKOUT)
from harness.run_folder import RunFolder, unit_of
from slurm.state import exclusively, started, write_status
submission, here = Path(sys.argv[-1]).parent, Path(__file__).parent
tasks = json.loads((submission / "arrays" / f"{name}.json").read_text())
folder, places = tasks[os.environ.get("SLURM_ARRAY_TASK_ID", "0")]
run = RunFolder(Path(folder))
if name == "prepare":
    (submission / "prepared").touch()
for place in places if name not in ("prepare", "collect") else ():
    with exclusively(run.path, place):
        if (run.summary if place == "train" else run.done(place)).exists():  # by an attempt of the same job
            continue
        assert place == "train" or run.summary.exists()
        started(run.path, place, "")
        write_status(run.path, place, "running")
        again = len(run.read_attempts(place)) > 1
        if f"{run.path.name} {place}" in (here / "victims").read_text().splitlines() and not again:
            time.sleep(600)
        with open(here / "journal", "a") as journal:
            journal.write(f"{run.path.name} {unit_of(place)}\\n")
        shutil.copytree(here / "results" / run.path.name / place, folder, dirs_exist_ok=True)
        write_status(run.path, place, "done")
"""
"""An interpreter whose jobs keep their state as ours do and leave results that were made before, for speed; the jobs
that submit waves, and what decides at the end of a batch script, are the real ones."""

HOW = ("SIGKILL", "SIGUSR2", "requeue")
"""Ways in which jobs are killed, in turn: the process dies, it is told to leave, or an operator requeues the job."""

AT_ONCE = 3
"""Trainings at the same time, and evaluations, so that a small machine does them."""


@dataclass(frozen=True)
class Account:
    """What came of a sweep.

    tasks: its trainings and evaluations by job. most_queued: jobs in the queue at the same time. sbatch_calls: arrays
    and jobs that were submitted. killed: run, unit and way of each kill. starts: of its units, in all. lost: units
    without results. doubled: units with more than one. again: units that were started more than once, though no job of
    their run was killed.
    """

    runs: int
    tasks: int
    limit: int
    most_queued: int
    sbatch_calls: int
    waves: int
    killed: list[tuple[str, str, str]]
    starts: int
    lost: list[str]
    doubled: list[str]
    again: list[str]
    seconds: float


@contextlib.contextmanager
def limited(cluster: MiniSlurm, most: int) -> Iterator[None]:
    """Let accounting enforce MaxSubmitJobs for this user."""
    mine = ("modify", "user", cluster.run("id", "-un").strip(), "where", "account=lab", "set")
    cluster.run("sacctmgr", "-i", *mine, f"maxsubmitjobs={most}")
    try:
        yield
    finally:
        cluster.run("sacctmgr", "-i", *mine, "maxsubmitjobs=-1")


class Killer:
    """Kills a share of the units of some runs while they are at work, each once.

    victims: those that are left, by run and place, and how. killed: those that are not.
    """

    def __init__(self, cluster: MiniSlurm, runs: list[RunPlan], share: float):
        places = [(run, place) for run in runs for place in (TRAIN, *map(run.place, run.units))]
        chosen = random.Random(0).sample(places, round(share * len(places)))
        self.cluster, self.killed = cluster, []
        self.victims = {victim: HOW[number % len(HOW)] for number, victim in enumerate(map(_key, chosen))}
        self.folders = {_key(victim): RunFolder(victim[0].folder) for victim in chosen}

    def strike(self) -> None:
        """Kill those victims that are at work now."""
        for (run, place), how in list(self.victims.items()):
            status = self.folders[run, place].read_status(place)
            if status is None or status.state != "running":
                continue
            if how == "requeue":
                self.cluster.run("scontrol", "requeue", status.job)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(status.pid, getattr(signal, how))
            del self.victims[run, place]
            self.killed.append((run, place, how))


def stand_in(folder: Path) -> str:
    """Write the interpreter of STAND_IN to a folder; returns its command for a profile."""
    (folder / "light.py").write_text(STAND_IN.replace("CHECKOUT", repr(str(CHECKOUT))))
    return f"{sys.executable} {folder}/light.py"


def stand_in_results(folder: Path, runs: Sequence[RunPlan], killer: Killer) -> Path:
    """Make the results that the jobs of `stand_in` leave, and name the victims to them.

    Returns the file in which they note each result.
    """
    (folder / "victims").write_text("".join(f"{run} {place}\n" for run, place in killer.victims))
    for run in runs:
        results = folder / "results" / run.config.run_id
        RunFolder(results / TRAIN).write_summary(synthetic_summary(run), {})
        for unit, evaluation in run.units.items():
            kept, place = RunFolder(results / run.place(unit)), run.place(unit)
            write_atomic(kept.records(place), b"{}\n")
            kept.write_done(place, evaluation.key("0"))
    return folder / "journal"


def _key(victim: tuple[RunPlan, str]) -> tuple[str, str]:
    return victim[0].config.run_id, victim[1]


def sweep(
    client: Client, path: Path, killer: Killer, limit: int, seconds: float, journal: Path | None = None
) -> Account:
    """Submit an experiment under a limit, kill some of its units, and wait until nothing is in the queue.

    journal: file with a line of run and unit per result, from jobs that leave no records; None: the collected records.
    """
    runs, begin, most = plan(load_experiment(path), client.runs), time.monotonic(), 0
    before = _submitted(client.cluster)
    with limited(client.cluster, limit):
        print(client.submit(path), flush=True)
        seen: Counter[str] = Counter()
        while queued := client.cluster.squeue():
            most = max(most, len(queued))
            killer.strike()
            states = Counter(f"{row['name'].partition(':')[2].partition('@')[0]} {row['state']}" for row in queued)
            if states != seen:
                print(f"{time.monotonic() - begin:7.1f} s  {dict(sorted(states.items()))}", flush=True)
                seen = states
            assert time.monotonic() - begin < seconds, f"not over within {seconds} s: {dict(states)}"
            time.sleep(0.2)
    (submission,) = submissions(client.runs, "tiny")
    names = submission.read_jobs()
    # Accounting hears of a job some seconds later than the queue.
    client.cluster.wait(lambda: set(names.values()) <= _submitted(client.cluster), "the accounting of all jobs", 120)
    rows = _rows(client.runs) if journal is None else journal.read_text().splitlines()
    found = {" ".join(row.split()[:2]) for row in rows}
    if journal is None:
        collected = pd.read_parquet(client.runs / "collected" / "tiny" / "records.parquet")
        found &= set(collected["run"] + " " + collected["suite"])
        found |= {f"{run.config.run_id} {TRAIN}" for run in runs if RunFolder(run.folder).read_summary() is not None}
    expected = [f"{run.config.run_id} {unit}" for run in runs for unit in (TRAIN, *run.units)]
    harmed = {run for run, *_ in killer.killed}
    begun = {
        (run.config.run_id, place): _starts(run, place) for run in runs for place in (TRAIN, *map(run.place, run.units))
    }
    unfinished = {f"{r.config.run_id} {unit}" for r in plan(load_experiment(path), client.runs) for unit in r.missing}
    return Account(
        runs=len(runs),
        tasks=2 * len(runs),
        limit=limit,
        most_queued=most,
        sbatch_calls=len(_submitted(client.cluster) - before),
        waves=1 + sum(name.startswith("release-") for name in names),
        killed=killer.killed,
        starts=sum(begun.values()),
        lost=sorted({unit for unit in expected if unit not in found} | unfinished),
        doubled=[row for row, count in Counter(rows).items() if count > 1],
        again=[f"{run} {place}" for (run, place), count in begun.items() if count != 1 and run not in harmed],
        seconds=round(time.monotonic() - begin, 1),
    )


def _rows(runs_root: Path) -> list[str]:
    """Run, suite, task, metric and length of every record in a folder of runs, as they stand in its files."""
    names = ("run", "suite", "task", "metric", "length")
    return [" ".join(str(row[name]) for name in names) for path in record_files(runs_root) for row in read_lines(path)]


def _starts(run: RunPlan, place: str) -> int:
    return sum(event["event"] == "started" for event in RunFolder(run.folder).read_attempts(place))


def _submitted(cluster: MiniSlurm) -> set[str]:
    """Slurm's ids of everything that was submitted so far: one for each call of sbatch."""
    rows = cluster.run("sacct", "-n", "-X", "-P", "-a", "-S", "now-1day", "-o", "JobID").splitlines()
    return {row.partition("_")[0] for row in rows}


def main(out: Path, real: bool = True, runs: int = 300, limit: int = 50, share: float = 0.05) -> None:
    """Run the large sweep on a cluster of its own and write its account. real: whether its jobs train and evaluate."""
    out.mkdir(parents=True)
    code = os.popen(f"git -C {CHECKOUT} describe --always --dirty").read().strip()
    with running() as cluster, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [document.text for document, _ in zip(documents("train", ["austen"]), range(12), strict=False)]
        (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = prepare(folder / "prose.jsonl", "embedded", folder / "shards").folder
        profile = {"evaluate": TINY | {"pack": True}, "concurrency": AT_ONCE}
        client = Client(cluster, folder, **profile | ({} if real else {"python": stand_in(folder)}))
        suites = {"recall": {"pairs": [2], "samples": 4}, "language": {"tasks": ["heldout"], "limit": 2}}
        path = experiment(folder, data, mixers=["attention"], seeds=list(range(runs)), suites=suites)
        with open(out / "log.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            plans = plan(load_experiment(path), client.runs)
            killer = Killer(cluster, plans, share)
            journal = None if real else stand_in_results(folder, plans, killer)
            found = sweep(client, path, killer, limit, 4 * 3600, journal)
        if real:
            shutil.copy(client.runs / "collected" / "tiny" / "table.md", out)
        version = cluster.run("slurmctld", "-V").strip()
    about = {"jobs": "real" if real else "stand-ins that train nothing", "slurm": version, "code": code}
    write_json(out / "account.json", about | asdict(found))
    print(json.dumps(about | asdict(found), indent=1))
    if found.lost or found.doubled or found.again or found.most_queued > limit:
        sys.exit("error: records were lost or doubled, or work was done twice, or the limit was passed; see above")


if __name__ == "__main__":
    main(Path(sys.argv[1]), real="--stand-ins" not in sys.argv[2:])
