"""Profiles of clusters: a closed schema, and the sbatch options that a profile becomes."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import submitit
import yaml
from submitit.slurm.slurm import _make_sbatch_string

from harness.files import CHECKOUT
from slurm.profile import PROFILES, Evaluate, Profile, Resources, load_profile, sbatch_parameters
from tests.slurm.cluster.minislurm import MiniSlurm


def write_profile(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path: Path) -> None:
    assert load_profile(path.stem) == load_profile(path)


def test_the_documented_profiles_are_valid(tmp_path: Path) -> None:
    texts = re.findall(r"```yaml\n(.*?)```", (CHECKOUT / "docs" / "slurm.md").read_text("utf-8"), re.DOTALL)
    profiles = [load_profile(write_profile(tmp_path, text)) for text in texts]
    assert len(profiles) == 6
    typed, allocation, pyxis, apptainer, _, small = profiles
    assert "#SBATCH --gres=gpu:a100:4" in script(typed, typed.train)
    assert "#SBATCH --qos=long" in script(allocation, allocation.train)
    assert "--container-image=" in " ".join(script(pyxis, pyxis.train))
    assert apptainer.python is not None and apptainer.python.startswith("apptainer exec ")
    assert small.restart_silent and (small.concurrency, small.max_jobs, small.evaluate.pack) == (4, 50, True)


def test_the_template_names_every_field() -> None:
    values = yaml.safe_load((PROFILES / "template.yaml").read_text())
    assert set(values) == set(Profile.model_fields)
    assert set(values["train"]) == set(Resources.model_fields)
    assert set(values["train"]) | set(values["evaluate"]) == set(Evaluate.model_fields)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton: gpu", "partiton: unknown field"),
        ("train: {pack: true}", "train.pack: unknown field"),
        ("train: {minutes: 0}", "train.minutes: .* (got 0)"),
        ("partition: gpu nodes", "partition: 'gpu nodes' is not one word"),
        ("qos: --exclusive", "qos: '--exclusive' is not one word"),
        ("environment: {A-B: x}", "'A-B' is not the name of a variable"),
        ("{train: {minutes: 2}, signal_delay_s: 120}", "signal_delay_s: 120 leaves nothing of the 2 minutes of train"),
        ("account: a\npartition: b\naccount: c", "account: given twice, in lines 1 and 3; keep one of them"),
        ("sbatch: {time: 60}", "sbatch.* 'time' has a field of its own; set minutes instead"),
        ("train: {sbatch: {dependency: 'afterok:1'}}", "train.sbatch.* 'dependency' is set by every submission"),
        ("sbatch: {mail_type: END}", "'mail_type' is no long name of an option of sbatch; write it as in mail-type"),
        ('sbatch: {reservation: "a\\n#SBATCH --uid=0"}', "sbatch.reservation: .* is not a value on one line"),
        ("sbatch: {gres: 'gpu:a100:4'}", "sbatch: 4 GPUs by gres or gpus-per-node for train, whose gpus_per_node is 1"),
        ("{train: {mem_gb: 9}, sbatch: {mem-per-cpu: 4G}}", "sbatch: mem-per-cpu next to train.mem_gb; give one"),
        ("tflops: .inf", "tflops: inf is not finite; give a number"),
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


def test_further_options_reach_sbatch_and_a_stage_adds_to_those_of_the_site() -> None:
    train = Resources(gpus_per_node=4, sbatch={"gres": "gpu:a100:4,disk:2", "nice": None, "exclusive": True})
    profile = Profile(sbatch={"nice": 100, "reservation": "spring", "mail-user": "a@b.c"}, train=train)
    lines = [line.replace("'", "") for line in script(profile, train)]
    for option in ("reservation=spring", "mail-user=a@b.c", "gres=gpu:a100:4,disk:2", "exclusive"):
        assert f"#SBATCH --{option}" in lines
    assert not [line for line in lines if "nice" in line or "gpus-per-node" in line]
    assert "#SBATCH --nice=100" in script(profile, profile.prepare)


@pytest.mark.parametrize(
    ("options", "count"),
    [({"gres": "gpu:h100"}, 1), ({"gpus-per-node": "h100"}, 1), ({"gres": "gpu:2"}, 2),
     ({"gpus-per-node": "h100:8"}, 8), ({"gpus-per-node": 2}, 2),
     ({"gres": "gpu:a:1,gpu:b:2"}, 3), ({"gres": "shard:8"}, 1)],
)  # fmt: skip
def test_gpus_of_a_type_are_counted(options: dict[str, Any], count: int) -> None:
    Profile(train={"gpus_per_node": count, "sbatch": options})
    if "shard" not in str(options):
        with pytest.raises(ValueError, match=f"{count} GPUs by gres or gpus-per-node for train"):
            Profile(train={"gpus_per_node": count + 1, "sbatch": options})


def test_the_command_line_overrides_a_field_of_the_profile(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "train: {minutes: 5, gpus_per_node: 0}")
    profile = load_profile(path, ["train.minutes=2880", "sbatch.reservation=x"])
    assert (profile.train.minutes, profile.train.gpus_per_node, profile.sbatch) == (2880, 0, {"reservation": "x"})
    for override, said in (("train.minuts=1", "train.minuts: unknown field"), ("minutes", "--set-profile: expected a")):
        with pytest.raises(ValueError, match=said):
            load_profile(path, [override])


def test_all_of_a_nodes_memory_can_be_asked_for() -> None:
    assert "#SBATCH --mem=0" in script(Profile(), Resources(mem_gb=0))


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
