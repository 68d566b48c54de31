"""The site's limits on the jobs that a user may have in the queue, and the room that they leave."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from slurm.probe import parse_config, parse_partitions
from slurm.profile import Profile, Stage
from slurm.queue import ask

STATES = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
"""States of the jobs that count."""


class Later(RuntimeError):
    """Raised if Slurm does not take jobs that it may take later: for lack of room, or because it does not answer."""


@dataclass(frozen=True)
class Limit:
    """A limit on the user's jobs in the queue. Each task of an array counts as a job.

    name: of the limit, for messages. account, qos, partition: whose jobs count; None: all.
    """

    name: str
    most: int
    account: str | None = None
    qos: str | None = None
    partition: str | None = None

    def counts(self, account: str, qos: str, partitions: str) -> bool:
        """Whether a job counts. partitions: of the job, separated by commas."""
        own = self.partition is None or self.partition in partitions.split(",")
        return own and self.account in (None, account) and self.qos in (None, qos)


def limits(profile: Profile) -> list[Limit]:
    """The limits for jobs with this profile: `max_jobs`, and those that the accounting of the cluster at hand enforces.

    Limits of a whole account are not among them: how much of them others use changes all the time.
    """
    found = [] if profile.max_jobs is None else [Limit("max_jobs of the profile", profile.max_jobs)]
    config = parse_config(ask("scontrol", "show", "config", error=None) or "")
    enforced = config.get("AccountingStorageEnforce", "").split(",")
    if not config.get("AccountingStorageType", "").endswith("slurmdbd") or not {"limits", "safe"} & set(enforced):
        return found
    user = pwd.getpwuid(os.getuid()).pw_name  # not $USER: Slurm goes by the user id
    account = profile.account
    if account is None:
        account = (ask("sacctmgr", "-n", "-P", "show", "user", user, "format=defaultaccount", error=None) or "").strip()
    columns = "format=account,defaultqos,maxsubmitjobs,grpsubmitjobs"
    where = (f"user={user}", f"account={account}", f"cluster={config.get('ClusterName', '')}")
    default = "normal"  # the QOS of every association that names no other
    for row in _table("show", "assoc", *where, columns):
        default = row[1] or default
        for name, most in zip(("MaxSubmitJobs", "GrpSubmitJobs"), row[2:], strict=True):
            if most.isdigit():
                found.append(Limit(f"{name} of account {account}", int(most), account=account))
    named = {resources.qos or profile.qos or default for resources in (getattr(profile, s) for s in get_args(Stage))}
    by_qos = {
        name: int(most) for name, most in _table("show", "qos", "format=name,maxsubmitjobsperuser") if most.isdigit()
    }
    found += [Limit(f"MaxSubmitJobsPerUser of QOS {q}", by_qos[q], qos=q) for q in sorted(named & by_qos.keys())]
    partitions = parse_partitions(ask("scontrol", "-a", "show", "partition", "-o", error=None) or "")
    for name in sorted(_partitions(profile, partitions)):
        if (qos := partitions[name].get("QoS")) in by_qos:
            found.append(Limit(f"MaxSubmitJobsPerUser of partition {name}", by_qos[qos], partition=name))
    return found


def _partitions(profile: Profile, known: dict[str, dict[str, str]]) -> set[str]:
    """The partitions to which jobs of any stage may go."""
    default = ",".join(name for name, row in known.items() if row.get("Default") == "YES")
    stages = [getattr(profile, stage).partition or profile.partition or default for stage in get_args(Stage)]
    return {name for names in stages for name in names.split(",") if name in known}


def _table(*query: str) -> list[list[str]]:
    """The rows of a query of sacctmgr; empty where it does not answer."""
    said = ask("sacctmgr", "-n", "-P", *query, error=None) or ""
    return [line.split("|") for line in said.splitlines() if line]


def room(found: Sequence[Limit]) -> tuple[int, str] | None:
    """The jobs that may still be submitted, and the tightest limit with the jobs that it counts, in words.

    None without limits. Raises Later if Slurm does not answer.
    """
    if not found:
        return None
    said = ask("squeue", "--noheader", "--array", "--me", f"--states={STATES}", "--format=%a|%q|%P", error=Later)
    jobs = [line.split("|") for line in (said or "").splitlines() if line.count("|") == 2]
    left = []
    for limit in found:
        count = sum(limit.counts(*job) for job in jobs)
        left.append((limit.most - count, f"{limit.name}: {limit.most} jobs, of which {count} are in the queue"))
    return min(left)
