"""Check a profile against the cluster at hand: everything that Slurm would refuse, found before submitting."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import submitit

from slurm.profile import Profile, Resources, Stage, sbatch_parameters
from slurm.queue import ask

NODE_FORMAT = "%R|%N|%c|%m|%G|%f"


@dataclass(frozen=True)
class Node:
    """A node of one partition, as `sinfo` lists it. memory_mb: MiB available to jobs."""

    partition: str
    name: str
    cpus: int
    memory_mb: int
    gpus: int
    features: frozenset[str]


def parse_nodes(text: str) -> list[Node]:
    """Parse the output of `sinfo -h -a -N -o NODE_FORMAT`.

    GPUs are summed over their types: `gpu:a100:4(S:0),gpu:v100:2` counts as six.
    """
    nodes = []
    for line in text.splitlines():
        partition, name, cpus, memory, gres, features = line.split("|")
        gpus = sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))
        # sinfo writes "96+" for "96 or more" where it merges nodes.
        sizes = int(cpus.rstrip("+")), int(memory.rstrip("+"))
        nodes.append(Node(partition, name, *sizes, gpus, frozenset(features.split(","))))
    return nodes


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Parse the output of `scontrol show partition -o`: the fields of each partition, by its name."""
    rows = (dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in text.splitlines() if line)
    return {row["PartitionName"]: row for row in rows}


def parse_config(text: str) -> dict[str, str]:
    """Parse the output of `scontrol show config`: the printed values, by key."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_minutes(text: str) -> float:
    """Convert a time limit from Slurm's form, [days-]hours:minutes:seconds, to minutes; no limit is infinite."""
    if text in ("UNLIMITED", "INFINITE", "infinite", "NONE"):
        return float("inf")
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = ([0, 0, 0] + [int(part) for part in clock.split(":")])[-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def array_limit() -> int:
    """The most tasks that an array may have on the cluster at hand. Raises ValueError if the cluster is silent."""
    return int(parse_config(ask("scontrol", "show", "config", error=ValueError))["MaxArraySize"])


def problems(profile: Profile) -> list[str]:
    """Everything in a profile that the cluster at hand would refuse: one line each, with field, value and remedy.

    If a stage names several partitions, its jobs must fit their nodes taken together. Starts nothing.
    """
    lines = list(_unusable_paths(profile))
    missing = [name for name in ("sbatch", "srun", "scontrol", "sinfo", "scancel") if shutil.which(name) is None]
    if missing:
        return [*lines, f"PATH: {', '.join(missing)} not found; submit from a login node of the cluster"]
    try:
        config = parse_config(ask("scontrol", "show", "config", error=ValueError))
        partitions = parse_partitions(ask("scontrol", "-a", "show", "partition", "-o", error=ValueError))
        nodes = parse_nodes(ask("sinfo", "-h", "-a", "-N", "-o", NODE_FORMAT, error=ValueError))
        refused_names = _accounting_problems(profile, config)
    except ValueError as error:
        return [*lines, str(error)]
    lines += refused_names
    if re.match(r"0\b", config["KillWait"]):
        lines.append("KillWait: 0 s on this cluster, so a cancelled job cannot save; ask the administrator for more")
    for stage in get_args(Stage):
        refused = list(stage_problems(profile, stage, partitions, nodes))
        # sbatch would repeat what is known already, less clearly.
        lines += refused if refused or refused_names else _refusal(profile, stage)
    return list(dict.fromkeys(lines))  # a fault in a field that all stages share shows up in each of them


def delays(profile: Profile) -> list[str]:
    """The partitions of a profile that take jobs and start none for now: one line each, with the field and a remedy."""
    partitions = parse_partitions(ask("scontrol", "-a", "show", "partition", "-o", error=None) or "")
    default = ",".join(name for name, row in partitions.items() if row.get("Default") == "YES")
    lines = []
    for stage in get_args(Stage):
        field, named = _resolved(profile, stage, "partition")
        for name in (named or default).split(","):
            if partitions.get(name, {}).get("State") == "DOWN":
                lines.append(f"{field}: {name!r} is DOWN: it takes jobs and starts none; wait, or name another one")
    return list(dict.fromkeys(lines))


def stage_problems(
    profile: Profile, stage: Stage, partitions: dict[str, dict[str, str]], nodes: list[Node]
) -> Iterator[str]:
    """The resources of a stage's jobs that no partition open to them has, one line each."""
    field, named = _resolved(profile, stage, "partition")
    names = named.split(",") if named else [name for name, row in partitions.items() if row["Default"] == "YES"]
    unusable = [fault for name in names if (fault := _unusable_partition(name, partitions, nodes))]
    if unusable or not names:
        faults = unusable or ["none given, and the cluster has no default"]
        yield from (f"{field}: {fault}; use one of: {', '.join(partitions)}" for fault in faults)
        return
    pool = list({node.name: node for node in nodes if node.partition in names}.values())
    where = f"of partition {','.join(names)}"
    yield from _too_large(stage, getattr(profile, stage), [partitions[name] for name in names], pool, where)
    field, constraint = _resolved(profile, stage, "constraint")
    features = frozenset().union(*(node.features for node in pool)) - {"(null)"}
    for feature in re.findall(r"(?<!\*)[A-Za-z_][\w.:-]*", constraint or ""):
        if feature not in features:
            remedy = f"use some of: {', '.join(sorted(features))}" if features else "remove it"
            yield f"{field}: no node {where} has the feature {feature!r}; {remedy}"


def _unusable_partition(name: str, partitions: dict[str, dict[str, str]], nodes: list[Node]) -> str | None:
    """Why no job can go to a partition; None if jobs can."""
    if name not in partitions:
        return f"unknown partition {name!r}"
    if (state := partitions[name]["State"]) in ("DRAIN", "INACTIVE"):
        return f"{name!r} takes no jobs, it is {state}"
    return None if any(node.partition == name for node in nodes) else f"{name!r} has no nodes"


def _too_large(
    stage: Stage, asked: Resources, rows: list[dict[str, str]], pool: list[Node], where: str
) -> Iterator[str]:
    """The resources that exceed what the partitions (`rows`) and their nodes (`pool`) have."""
    most = max(int(row["MaxNodes"]) if row["MaxNodes"].isdigit() else len(pool) for row in rows)
    tasks = f" × {asked.tasks} tasks" if asked.tasks > 1 else ""
    for name, amount, available, what in (
        ("minutes", asked.minutes, max(parse_minutes(row["MaxTime"]) for row in rows), ""),
        ("nodes", asked.nodes, min(most, len(pool)), ""),
        ("gpus_per_node", asked.gpus_per_node, max(node.gpus for node in pool), " GPUs of any node"),
        ("cpus_per_task", asked.cpus_per_task * asked.tasks, max(node.cpus for node in pool), " CPUs of any node"),
        ("mem_gb", asked.mem_gb or 0, max(node.memory_mb for node in pool) // 1024, " GiB of any node"),
    ):
        if amount > available:
            value = f"{getattr(asked, name)}{tasks if name == 'cpus_per_task' else ''}"
            yield f"{stage}.{name}: {value} is above the {available:.0f}{what} {where}; lower it, or take another one"


def _resolved(profile: Profile, stage: Stage, field: str) -> tuple[str, str | None]:
    """The name under which the profile sets a field that stages may override, and its value."""
    override = getattr(getattr(profile, stage), field)
    return (f"{stage}.{field}", override) if override else (field, getattr(profile, field))


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name  # not $USER: Slurm goes by the user id


def _unusable_paths(profile: Profile) -> Iterator[str]:
    """The shared folders that do not exist or cannot be written to."""
    for path in profile.shared:
        folder = Path(os.path.expandvars(path)).expanduser()
        if not folder.exists():
            yield f"shared: {path!r} does not exist here; create or mount {folder}, or correct the profile"
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield f"shared: {path!r} is not writable for {_user()}; change its permissions or the profile"


def _accounting_problems(profile: Profile, config: dict[str, str]) -> list[str]:
    """Accounts and QOS that slurmdbd does not know, or that it does not allow this user where that is enforced."""
    named = [("account", profile.account), *(_resolved(profile, stage, "qos") for stage in get_args(Stage))]
    if not config["AccountingStorageType"].endswith("slurmdbd"):
        return [f"{field}: {value!r} means nothing without accounting; remove it" for field, value in named if value]
    user, enforced = _user(), config["AccountingStorageEnforce"].split(",")
    query = ("show", "assoc", f"user={user}", f"cluster={config['ClusterName']}", "format=account,qos")
    rows = [line.split("|") for line in ask("sacctmgr", "-n", "-P", *query, error=ValueError).splitlines()]
    if "associations" in enforced and not rows:
        return [f"account: {user} has none on this cluster, and it requires one; ask its administrator"]
    accounts = sorted({account for account, _ in rows})
    if "associations" in enforced and profile.account and profile.account not in accounts:
        return [f"account: {profile.account!r} is not one of {user}'s; use one of: {', '.join(accounts)}"]
    known = set(ask("sacctmgr", "-n", "-P", "show", "qos", "format=name", error=ValueError).split())
    if "qos" in enforced:
        known &= {q for account, qos in rows if profile.account in (None, account) for q in qos.split(",")}
    return [
        f"{field}: {qos!r} is not open to {user}; use one of: {', '.join(sorted(known))}"
        for field, qos in named[1:]
        if qos and qos not in known
    ]


def _refusal(profile: Profile, stage: Stage) -> list[str]:
    """The reason why `sbatch --test-only` refuses a stage's job, which covers all that our own checks do not."""
    with tempfile.TemporaryDirectory() as folder:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**sbatch_parameters(profile, getattr(profile, stage), f"test-{stage}"))
        script = executor._make_submission_file_text("true", "")
    try:
        ask("sbatch", "--test-only", error=ValueError, script=script)
    except ValueError as error:
        return [f"{stage}: {error}; change {stage}'s resources, or ask the cluster's administrator"]
    return []
