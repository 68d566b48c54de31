"""A sweep under a limit on jobs in the queue, with jobs that are killed at random, and an account of what came of it.

    python -m tests.slurm.cluster.killed_sweep OUT    # 300 runs, 50 jobs, 5 % of them killed: an hour on two cores

Its cluster is minislurm.py's. It leaves account.json and log.txt in OUT, and fails if a record is lost or doubled.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from harness.data.corpus import documents
from harness.data.prepare import prepare
from harness.experiments.load import load_experiment
from harness.files import CHECKOUT, write_json
from harness.records.record import read_lines
from harness.run_folder import RunFolder, record_files, submissions
from slurm.plan import RunPlan, plan
from suites.units import TRAIN
from tests.slurm.cluster.client import TINY, Client
from tests.slurm.cluster.minislurm import MiniSlurm, running
from tests.slurm.experiments import experiment

HOW = ("SIGKILL", "SIGUSR2", "requeue")
"""Ways in which jobs are killed, in turn: the process dies, it is told to leave, or an operator requeues the job."""


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
    (submission,) = submissions(client.runs, "tiny")
    names = submission.read_jobs()
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


def main(out: Path, runs: int = 300, limit: int = 50, share: float = 0.05, at_once: int = 3) -> None:
    """Run the large sweep on a cluster of its own, with real jobs, and write its account."""
    out.mkdir(parents=True)
    code = os.popen(f"git -C {CHECKOUT} describe --always --dirty").read().strip()
    with running() as cluster, tempfile.TemporaryDirectory() as folder:
        texts = [document.text for document, _ in zip(documents("train", ["austen"]), range(12), strict=False)]
        source = Path(folder) / "prose.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = prepare(source, "embedded", Path(folder) / "shards").folder
        profile = {"evaluate": TINY | {"pack": True}, "concurrency": at_once}
        client = Client(cluster, Path(folder), **profile)
        suites = {"recall": {"pairs": [2], "samples": 4}, "language": {"tasks": ["heldout"], "limit": 2}}
        path = experiment(Path(folder), data, mixers=["attention"], seeds=list(range(runs)), suites=suites)
        with open(out / "log.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            killer = Killer(cluster, plan(load_experiment(path), client.runs), share)
            found = sweep(client, path, killer, limit, seconds=4 * 3600)
        version = cluster.run("slurmctld", "-V").strip()
    write_json(out / "account.json", asdict(found) | {"slurm": version, "code": code, "cores": os.cpu_count()})
    print(json.dumps(asdict(found), indent=1))
    if found.lost or found.doubled or found.again or found.most_queued > limit:
        sys.exit("error: records were lost or doubled, or work was done twice, or the limit was passed; see above")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
