"""Faults of a profile, found before submitting: from parsed answers of Slurm, and on a real cluster."""

from pathlib import Path

import pytest

from slurm.probe import (
    Node,
    array_limit,
    delays,
    parse_config,
    parse_minutes,
    parse_nodes,
    parse_partitions,
    problems,
    stage_problems,
)
from slurm.profile import Profile, load_profile
from tests.slurm.cluster.minislurm import MiniSlurm
from tests.slurm.conftest import FakeSlurm

NODES = """\
gpu|g1|128|1031000|gpu:h100:8(S:0-1)|ib,h100
gpu|g2|128|1031000|gpu:a100:4(S:0),gpu:v100:2,shard:8|ib,a100
cpu|c1|64|256000|(null)|(null)
"""
PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=4 MaxTime=2-00:00:00 State=UP TRES=cpu=256,mem=2062000M,node=2
PartitionName=cpu AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=04:00:00 State=UP TRES=cpu=64
PartitionName=old AllowGroups=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DRAIN TRES=(null)
PartitionName=empty AllowGroups=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TRES=(null)
"""


def test_nodes_are_read_with_all_their_gpus() -> None:
    first, second, third = parse_nodes(NODES)
    assert first == Node("gpu", "g1", 128, 1031000, 8, frozenset({"ib", "h100"}))
    assert (second.gpus, third.gpus) == (6, 0)
    assert parse_nodes("p|n|96+|500000+|gpu:2|(null)")[0].cpus == 96


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("2-00:00:00", 2880), ("04:00:00", 240), ("30:00", 30), ("1-12:30:30", 2190.5), ("UNLIMITED", float("inf"))],
)
def test_time_limits_are_read(text: str, minutes: float) -> None:
    assert parse_minutes(text) == minutes


def test_the_configuration_is_read() -> None:
    text = (
        "Configuration data as of 2024-01-01T00:00:00\nKillWait                = 30 sec\nAuthInfo = socket=/s,ttl=5\n"
    )
    assert parse_config(text) == {"KillWait": "30 sec", "AuthInfo": "socket=/s,ttl=5"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "gpu"}, []),
        ({"partition": "gpu,cpu"}, []),  # the nodes of both
        ({}, ["train.gpus_per_node: 1 is above the 0 GPUs of any node of partition cpu; lower it, or take another one",
              "train.minutes: 1440 is above the 240 of partition cpu; lower it, or take another one"]),
        ({"partition": "h100"}, ["partition: unknown partition 'h100'; use one of: gpu, cpu, old, empty"]),
        ({"partition": "old"}, ["partition: 'old' takes no jobs, it is DRAIN; use one of: gpu, cpu, old, empty"]),
        ({"partition": "empty"}, ["partition: 'empty' has no nodes; use one of: gpu, cpu, old, empty"]),
        ({"partition": "gpu", "train": {"nodes": 3}},
         ["train.nodes: 3 is above the 2 of partition gpu; lower it, or take another one"]),
        ({"partition": "gpu", "train": {"gpus_per_node": 8, "cpus_per_task": 17}},
         ["train.cpus_per_task: 17 × 8 tasks is above the 128 CPUs of any node of partition gpu; lower it, or take "
          "another one"]),
        ({"partition": "gpu", "train": {"mem_gb": 1024}},
         ["train.mem_gb: 1024 is above the 1006 GiB of any node of partition gpu; lower it, or take another one"]),
        ({"partition": "gpu", "constraint": "ib&[h100|a100*2]"}, []),
        ({"partition": "gpu", "train": {"constraint": "h200"}},
         ["train.constraint: no node of partition gpu has the feature 'h200'; use some of: a100, h100, ib"]),
    ],
)  # fmt: skip
def test_what_no_node_has_is_named_with_what_there_is(changes: dict, said: list[str]) -> None:
    profile = Profile.model_validate(changes)
    assert sorted(stage_problems(profile, "train", parse_partitions(PARTITIONS), parse_nodes(NODES))) == sorted(said)


def test_a_cluster_without_a_default_partition_wants_one_named() -> None:
    partitions = parse_partitions(PARTITIONS.replace("Default=YES", "Default=NO"))
    (one,) = stage_problems(Profile(), "train", partitions, parse_nodes(NODES))
    assert one.startswith("partition: none given, and the cluster has no default; use one of: gpu, cpu")


def test_without_slurms_programs_that_is_the_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (one,) = problems(Profile())
    assert one.startswith("PATH: sbatch, srun") and "login node" in one


def test_shared_folders_must_be_there_and_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WORK", str(tmp_path))
    profile = Profile(shared=["$WORK", "$WORK/absent", "/proc/1"])
    absent, read_only, _ = problems(profile)
    assert absent.startswith("shared: '$WORK/absent' does not exist here") and str(tmp_path / "absent") in absent
    assert read_only.startswith("shared: '/proc/1' is not writable")


def test_partitions_that_start_nothing_for_now_are_named(fake_slurm: FakeSlurm) -> None:
    rows = "PartitionName=main Default=YES State=UP\nPartitionName=night Default=NO State=DOWN"
    fake_slurm.answer("scontrol", f"printf '{rows}'")
    assert delays(Profile()) == []
    said = "partition: 'night' is DOWN: it takes jobs and starts none; wait, or name another one"
    assert delays(Profile(partition="main,night")) == [said]
    assert delays(Profile(train={"partition": "night"})) == [f"train.{said}"]


@pytest.mark.slurm
def test_a_fitting_profile_has_no_problems(slurm_at_hand: MiniSlurm) -> None:
    assert problems(load_profile("slurm")) == []
    assert problems(Profile(account="lab", qos="long", partition="low,high", constraint="fake")) == []
    assert array_limit() == 1001  # Slurm's default
    assert slurm_at_hand.squeue() == []


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "nope"}, ["partition: unknown partition 'nope'; use one of: debug, short, low, high"]),
        ({"account": "nope"}, ["account: 'nope' is not one of USER's; use one of: ACCOUNTS"]),
        ({"qos": "nope"}, ["qos: 'nope' is not open to USER; use one of: long, normal"]),
        ({"prepare": {"partition": "short", "minutes": 60}},
         ["prepare.minutes: 60 is above the 30 of partition short; lower it, or take another one"]),
        ({"train": {"nodes": 3}}, ["train.nodes: 3 is above the 2 of partition debug; lower it, or take another one"]),
        ({"evaluate": {"gpus_per_node": 3, "cpus_per_task": 1}},
         ["evaluate.gpus_per_node: 3 is above the 2 GPUs of any node of partition debug; lower it, or take another "
          "one"]),
        ({"train": {"constraint": "h100"}},
         ["train.constraint: no node of partition debug has the feature 'h100'; use some of: fake"]),
    ],
)  # fmt: skip
def test_what_the_cluster_would_refuse_is_found(slurm_at_hand: MiniSlurm, changes: dict, said: list[str]) -> None:
    user = slurm_at_hand.run("id", "-un").strip()
    accounts = "lab, root" if user == "root" else "lab"
    expected = [line.replace("USER", user).replace("ACCOUNTS", accounts) for line in said]
    assert problems(Profile.model_validate(changes)) == expected


@pytest.mark.slurm
def test_what_only_sbatch_knows_comes_in_its_words(slurm_at_hand: MiniSlurm) -> None:
    (one,) = problems(Profile(train={"constraint": "fake&[fake"}))
    assert one.startswith("train: sbatch --test-only: ") and "Invalid feature specification" in one


@pytest.mark.slurm
def test_a_silent_controller_is_the_one_problem(slurm_at_hand: MiniSlurm) -> None:
    slurm_at_hand.stop_controller()
    try:
        (one,) = problems(Profile())
        with pytest.raises(ValueError, match="Unable to contact slurm controller"):
            array_limit()
    finally:
        slurm_at_hand.start_controller()
    assert "Unable to contact slurm controller" in one and "\n" not in one


@pytest.mark.slurm
def test_accounts_and_qos_need_accounting(slurm_without_accounting: MiniSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_without_accounting.conf)
    monkeypatch.setenv("PATH", slurm_without_accounting.env["PATH"])
    assert problems(Profile()) == []
    assert problems(Profile(account="lab", train={"qos": "long"})) == [
        "account: 'lab' means nothing without accounting; remove it",
        "train.qos: 'long' means nothing without accounting; remove it",
    ]
