"""Site profiles: a closed schema, what sbatch gets from it, and what a cluster would refuse, found beforehand."""

import os
from pathlib import Path
from typing import Any

import pytest
import submitit
import yaml
from submitit.slurm.slurm import _make_sbatch_string

from slurm.probe import (
    Node,
    array_limit,
    parse_config,
    parse_minutes,
    parse_nodes,
    parse_partitions,
    problems,
    stage_problems,
)
from slurm.profile import PROFILES, Profile, Resources, load_profile, sbatch_parameters
from slurm.queue import ask
from tests.slurm.cluster.minislurm import MiniSlurm


def write_profile(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path: Path) -> None:
    assert load_profile(path.stem) == load_profile(path)


def test_the_template_names_every_field() -> None:
    values = yaml.safe_load((PROFILES / "template.yaml").read_text())
    assert set(values) == set(Profile.model_fields)
    assert set(values["train"]) == set(Resources.model_fields)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton: gpu", "partiton: unknown field"),
        ("train: {minutes: 0}", "train.minutes: .* (got 0)"),
        ("partition: gpu nodes", "partition: 'gpu nodes' is not one word"),
        ("qos: --exclusive", "qos: '--exclusive' is not one word"),
        ("environment: {A-B: x}", "'A-B' is not the name of a variable"),
        ("{train: {minutes: 2}, signal_delay_s: 120}", "signal_delay_s: 120 leaves nothing of the 2 minutes of train"),
        ("[1, 2]", "expected a mapping of fields, got list"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_profile_ends_in_one_line_that_names_the_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")) as error:
        load_profile(write_profile(tmp_path, text))
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no profile nowhere; give local, debug, a path, or one of: slurm, template"):
        load_profile("nowhere")


def test_a_process_a_gpu_and_one_where_there_is_none() -> None:
    assert Resources(gpus_per_node=8).tasks == 8
    assert Resources(gpus_per_node=0).tasks == 1
    assert Resources(gpus_per_node=8, tasks_per_node=1).tasks == 1


def test_prepare_keeps_its_default_of_no_gpus_when_another_field_is_set(tmp_path: Path) -> None:
    assert load_profile(write_profile(tmp_path, "prepare: {minutes: 5}")).prepare == Resources(
        gpus_per_node=0, minutes=5
    )


def script(profile: Profile, resources: Resources, **more: Any) -> list[str]:
    """The lines of the batch script of an array of 400 jobs; TypeError for parameters that submitit does not take."""
    parameters = sbatch_parameters(profile, resources, "job", **more)
    return _make_sbatch_string("command", folder="/logs", map_count=400, **parameters).splitlines()


def test_sbatch_gets_every_field_and_a_stage_overrides_the_site() -> None:
    profile = Profile(
        partition="gpu", account="lab", qos="normal", constraint="a100", concurrency=16, signal_delay_s=90,
        setup=["module load cuda"], environment={"A": "x y $HOME"}, srun_args=["--container-image=i.sqsh"],
    )  # fmt: skip
    asked = Resources(nodes=2, gpus_per_node=4, cpus_per_task=6, mem_gb=64, minutes=30, qos="long", constraint="h100")
    lines = script(profile, asked, dependency="aftercorr:7")
    for option in (
        "partition=gpu", "account=lab", "qos=long", "constraint=h100", "nodes=2", "gpus-per-node=4", "mem=64GB",
        "ntasks-per-node=4", "cpus-per-task=6", "time=30", "signal=USR2@90", "array='0-399%16'", "open-mode=append",
        "dependency=aftercorr:7", "requeue",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines or f"#SBATCH --{option}".replace("'", "") in lines, option
    assert lines.index("module load cuda") < lines.index("export A='x y $HOME'")
    (srun,) = (line for line in lines if line.startswith("srun"))
    assert " --cpus-per-task=6 --container-image=i.sqsh " in srun


def test_sbatch_is_not_told_what_the_profile_leaves_open() -> None:
    lines = script(Profile(), Resources(gpus_per_node=0))
    options = {line.split("=")[0].removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert not options & {"partition", "account", "qos", "constraint", "mem", "gpus-per-node", "dependency", "wckey"}
    assert any("0-399%400" in line for line in lines)  # all at a time


def test_all_of_a_nodes_memory_can_be_asked_for() -> None:
    assert "#SBATCH --mem=0" in script(Profile(), Resources(mem_gb=0))


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


def test_a_command_without_an_answer_is_an_error_in_one_line_or_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails = ("sh", "-c", "echo first >&2; echo 'Unable to contact slurm controller' >&2; exit 1")
    assert ask("cat", error=ValueError, script="input") == "input"
    assert ask(*fails, error=None) is None and ask("no-such-command", error=None) is None
    with pytest.raises(RuntimeError, match="exit 1: Unable to contact slurm controller; try again when the cluster"):
        ask(*fails, error=RuntimeError)
    with pytest.raises(ValueError, match="PATH: no-such-command not found; submit from a login node"):
        ask("no-such-command", error=ValueError)
    monkeypatch.setattr("slurm.queue.PATIENCE", 0.1)
    with pytest.raises(ValueError, match=r"sleep 5: no answer within 0.1 s; try again when the cluster is up"):
        ask("sleep", "5", error=ValueError)


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


def test_a_cluster_without_a_default_partition_wants_one_named() -> None:
    partitions = parse_partitions(PARTITIONS.replace("Default=YES", "Default=NO"))
    (one,) = stage_problems(Profile(), "train", partitions, parse_nodes(NODES))
    assert one.startswith("partition: none given, and the cluster has no default; use one of: gpu, cpu")


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


@pytest.mark.slurm
def test_a_job_gets_what_its_parameters_say(slurm_at_hand: MiniSlurm, tmp_path: Path) -> None:
    def surroundings() -> tuple[str, ...]:  # in here, since jobs cannot import this file
        names = ("SLURM_PROCID", "SLURMD_NODENAME", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "ADDED")
        return tuple(os.environ.get(name, "") for name in names)

    profile = Profile(environment={"ADDED": "$as written"}, account="lab", qos="long")
    executor = submitit.SlurmExecutor(tmp_path)
    resources = Resources(nodes=2, gpus_per_node=2, cpus_per_task=3, minutes=5)
    executor.update_parameters(**sbatch_parameters(profile, resources, "surroundings"))
    job = executor.submit(surroundings)
    slurm_at_hand.wait(lambda: all(job.task(i).paths.result_pickle.exists() for i in range(4)), "four results")
    nodes = ["n1", "n1", "n2", "n2"]
    assert job.results() == [(str(i), node, "3", "0,1", "$as written") for i, node in enumerate(nodes)]
    steps = slurm_at_hand.run("scontrol", "show", "job", job.job_id)
    assert "Requeue=1" in steps and "Account=lab QOS=long" in steps
