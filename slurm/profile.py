"""Profiles of Slurm clusters: their schema, how one is loaded, and the sbatch options that it becomes."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from harness.experiments.closed import Closed
from harness.experiments.load import set_value
from harness.training.distributed import Sharding
from harness.training.estimate import UTILISATION
from harness.yaml_files import read_yaml
from mixers.interface import one_line

PROFILES = Path(__file__).parent / "profiles"

Stage = Literal["train", "evaluate", "prepare"]
"""Kinds of job with resources of their own in a profile.

`prepare` covers all work that needs no model: freezing what an experiment reads before its other jobs start (downloads
included), tokenising data for `data prepare --cluster`, and collecting the records at the end.
"""


def _word(value: str) -> str:
    if not re.fullmatch(r"[^\s-]\S*", value):
        raise ValueError(f"{value!r} is not one word as sbatch takes it; correct it, or leave it out for the default")
    return value


def _variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
        raise ValueError(f"{value!r} is not the name of a variable; use letters, digits and underscores")
    return value


FIELDS = {
    **{name: name for name in ("partition", "account", "qos", "constraint", "nodes", "cpus-per-task")},
    **{"ntasks": "tasks_per_node", "ntasks-per-node": "tasks_per_node", "gpus": "gpus_per_node", "mem": "mem_gb"},
    **{"gpus-per-task": "gpus_per_node", "time": "minutes", "signal": "signal_delay_s", "array": "concurrency"},
    **{"export": "environment", "export-file": "environment"},
}
"""Options of sbatch that have a field of their own in a profile."""
OURS = (
    *("job-name", "comment", "dependency", "output", "error", "open-mode", "requeue", "no-requeue", "hold", "wait"),
    *("kill-on-invalid-dep", "parsable", "test-only", "wrap", "chdir"),
)
"""Options of sbatch on which a submission depends."""


def _option(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
        raise ValueError(f"{name!r} is no long name of an option of sbatch; write it as in mail-type")
    name = name.removeprefix("--")
    if name in FIELDS:
        raise ValueError(f"{name!r} has a field of its own; set {FIELDS[name].replace('-', '_')} instead")
    if name in OURS:
        raise ValueError(f"{name!r} is set by every submission; leave it out")
    return name


def _option_value(value: str | int | bool | None) -> str | int | bool | None:
    if isinstance(value, str) and not re.fullmatch(r"\S([^\n]*\S)?", value):
        raise ValueError(f"{value!r} is not a value on one line; give one, or true for an option without a value")
    return value


Word = Annotated[str, AfterValidator(_word)]
Option = Annotated[str, AfterValidator(_option)]
OptionValue = Annotated[str | int | bool | None, AfterValidator(_option_value)]
Variable = Annotated[str, AfterValidator(_variable)]


class Resources(Closed):
    """The resources of one job."""

    nodes: PositiveInt = 1
    """Nodes per job."""

    gpus_per_node: NonNegativeInt = 1
    """GPUs per node; 0 requests none. The stage `prepare` defaults to 0."""

    tasks_per_node: PositiveInt | None = None
    """Processes per node; by default one per GPU, and one where there is no GPU."""

    cpus_per_task: PositiveInt = 8
    """CPU cores per process."""

    mem_gb: NonNegativeInt | None = None
    """Memory per node in GiB; 0 requests all of it. By default the partition decides."""

    minutes: PositiveInt = 1440
    """Time limit. A job that reaches it is queued again and resumes."""

    partition: Word | None = None
    """Partition of this stage's jobs, instead of the profile's."""

    qos: Word | None = None
    """Quality of service of this stage's jobs, instead of the profile's."""

    constraint: Word | None = None
    """Required node features of this stage's jobs, instead of the profile's."""

    sbatch: dict[Option, OptionValue] = {}
    """Further options of sbatch for this stage's jobs, on top of the profile's; null leaves one of those out."""

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


class Evaluate(Resources):
    """The resources of an evaluation's job, and how much it does."""

    pack: bool = False
    """Whether one job does all evaluations of a run, one after another, instead of one each."""


class Profile(Closed):
    """The profile of a cluster: where jobs go, what they request and what surrounds them on a node.

    slurm/profiles/template.yaml is an example with every field.
    """

    description: str = ""
    """Free text for readers."""

    partition: Word | None = None
    """Partition of all jobs; several, separated by commas, mean whichever is free first. By default Slurm decides."""

    account: Word | None = None
    """Account to charge; by default the user's default account."""

    qos: Word | None = None
    """Quality of service; by default Slurm decides."""

    constraint: Word | None = None
    """Required node features, in sbatch's syntax: `a100`, `a100|h100`, `h100&ib`."""

    sbatch: dict[Option, OptionValue] = {}
    """Further options of sbatch for all jobs, by their long names; true for an option without a value. GPUs of a type
    are `gres: gpu:a100:4` or `gpus-per-node: a100:4`, with as many as the stage's gpus_per_node."""

    train: Resources = Resources()
    """Resources of a job that trains one run."""

    evaluate: Evaluate = Evaluate()
    """Resources of a job that evaluates one unit of a run, or all if packed. It has one process on one node."""

    prepare: Resources = Resources(gpus_per_node=0)
    """Resources of jobs that need no model: preparing data, downloading and collecting. They have one process each."""

    sharding: Sharding = "ddp"
    """How several training processes share a model: with `ddp` each holds all of it, with `fsdp` a part."""

    concurrency: PositiveInt | None = None
    """Tasks of one job array that may run at the same time; by default all."""

    max_jobs: int | None = Field(default=None, ge=4)
    """Jobs that you may have in the queue, each task of an array counted; by default the limits that the site's
    accounting enforces. A sweep that is larger goes through the queue in waves."""

    signal_delay_s: PositiveInt = 120
    """Seconds before its time limit at which a job is told to save."""

    silent_minutes: PositiveInt = 30
    """Minutes without a sign of life after which `status` calls a running job silent. Compiling kernels, checking data
    and a single long measurement are silent, too."""

    restart_silent: bool = False
    """Whether a training or evaluation that is silent for so long ends itself and starts again."""

    environment: dict[Variable, str] = {}
    """Environment variables, set literally after `setup`."""

    setup: list[str] = []
    """Shell lines that run on the node before the job."""

    srun_args: list[str] = []
    """Further options of srun, such as a container's image and mounts."""

    python: str | None = Field(default=None, min_length=1)
    """Command of the Python interpreter on the nodes; by default the path of the one that submits."""

    shared: list[str] = []
    """Folders that must exist and be writable; `~` and `$VARIABLES` are expanded."""

    device: str | None = Field(default=None, min_length=1)
    """Name of the GPU as torch reports it. Estimates use speeds that `throughput` measured on a device of this name."""

    tflops: PositiveFloat | None = None
    """Dense bf16 peak of one GPU in TFLOP/s, for estimates of models whose speed was not measured."""

    utilisation: float = Field(default=UTILISATION, gt=0, le=1)
    """Fraction of `tflops` that training reaches."""

    @model_validator(mode="before")
    @classmethod
    def _prepare_without_gpus(cls, values: Any) -> Any:
        """Keep the default of no GPUs for `prepare` when a profile sets another of its fields."""
        if isinstance(values, dict) and isinstance(values.get("prepare"), dict):
            return values | {"prepare": {"gpus_per_node": 0} | values["prepare"]}
        return values

    @model_validator(mode="after")
    def _time_to_save(self) -> Profile:
        for stage in get_args(Stage):
            minutes = getattr(self, stage).minutes
            if self.signal_delay_s >= 60 * minutes:
                raise ValueError(
                    f"signal_delay_s: {self.signal_delay_s} leaves nothing of the {minutes} minutes of {stage}; lower "
                    f"it or raise {stage}.minutes"
                )
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> Profile:
        for stage in get_args(Stage):
            resources: Resources = getattr(self, stage)
            options = self.options(resources)
            count = _gpus(options)
            if count is not None and count != resources.gpus_per_node:
                raise ValueError(
                    f"sbatch: {count} GPUs by gres or gpus-per-node for {stage}, whose gpus_per_node is "
                    f"{resources.gpus_per_node}; make them agree, or give the option under the stages that it is for"
                )
            if resources.mem_gb is not None and (given := {"mem-per-cpu", "mem-per-gpu"} & options.keys()):
                raise ValueError(f"sbatch: {min(given)} next to {stage}.mem_gb; give one of them")
        return self

    def options(self, resources: Resources) -> dict[str, str | int]:
        """The further options of sbatch for jobs with these resources: a stage's own replace the profile's."""
        merged = self.sbatch | resources.sbatch
        return {name: value for name, value in merged.items() if value is not None and value is not False}


def _gpus(options: Mapping[str, str | int]) -> int | None:
    """GPUs per node that further options of sbatch ask for; None if they do not speak of GPUs."""
    gres = [part for part in str(options.get("gres", "")).split(",") if re.match(r"(gres[:/])?gpu\b", part)]
    asked = str(options["gpus-per-node"]).split(",") if "gpus-per-node" in options else gres
    counts = [part.rpartition(":")[2] for part in asked]  # a type without a number asks for one
    return sum(int(count) if count.isdigit() else 1 for count in counts) if counts else None


def load_profile(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Profile:
    """Load a profile by the name of a file in slurm/profiles, or from a path.

    overrides: `a.b=value` with a YAML value, applied before validation. Raises ValueError in one line if there is no
    such file or if a field is wrong.
    """
    path = Path(name_or_path)
    if not path.suffix and not path.is_file():
        path = PROFILES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"--cluster: no profile {name_or_path!s}; give local, debug, a path, or one of: {known}")
    values = read_yaml(path)
    for override in overrides:
        set_value(values, override, "--set-profile")
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ValueError(one_line(error, str(path))) from None


SRUN = (
    *("job_name", "partition", "account", "qos", "constraint", "nodes", "ntasks_per_node", "gpus_per_node"),
    *("cpus_per_task", "mem", "time"),
)
"""Parameters of submitit that are options of srun under the same names."""


def srun_command(profile: Profile, job_name: str, command: str, variables: Sequence[str] = ()) -> list[str]:
    """The command line that runs a command of ours in a job of its own, with the resources of one evaluation.

    command: in the shell's syntax, without the interpreter. variables: assignments in the same syntax, for the process.
    The profile's `setup` and `environment` come before both.
    """
    resources = profile.evaluate.model_copy(update={"nodes": 1, "tasks_per_node": 1})
    parameters = sbatch_parameters(profile, resources, job_name)
    known = {name: parameters[name] for name in SRUN if name in parameters}
    options = {name.replace("_", "-"): value for name, value in known.items()} | profile.options(resources)
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    lines = [*parameters.get("setup", []), *(f"export {each}" for each in variables)]
    lines.append(f"exec {profile.python or shlex.quote(sys.executable)} {command}")
    return ["srun", *words, *profile.srun_args, "bash", "-c", "\n".join(lines)]


def sbatch_parameters(
    profile: Profile, resources: Resources, job_name: str, dependency: str | None = None
) -> dict[str, Any]:
    """Parameters for submitit.SlurmExecutor.update_parameters, for jobs with these resources.

    dependency: in sbatch's syntax, such as `afterok:7` or `aftercorr:7`. submitit adds two options itself:
    open-mode=append, so that a requeued job continues its log, and the signal, USR2. `profile.python` is not among the
    parameters: it belongs to the executor's constructor.
    """
    options = profile.options(resources)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    parameters = {
        "job_name": job_name,
        "partition": resources.partition or profile.partition,
        "account": profile.account,
        "qos": resources.qos or profile.qos,
        "constraint": resources.constraint or profile.constraint,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks,
        # A cluster without GPUs refuses a request for zero of them.
        "gpus_per_node": None if _gpus(options) is not None else resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{resources.mem_gb}GB" if resources.mem_gb else "0",
        "time": resources.minutes,
        "signal_delay_s": profile.signal_delay_s,
        "array_parallelism": profile.concurrency,
        "setup": [*profile.setup, *exports] or None,
        # Since Slurm 22.05 srun does not inherit it from the job; tasks that are bound to cores would get one each.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", *profile.srun_args],
        "dependency": dependency,
        # requeue: needed where the cluster's JobRequeue is 0. signal: else a variable of submitit's could choose it.
        "additional_parameters": {"requeue": True, "signal": f"USR2@{profile.signal_delay_s}"} | options,
    }
    # By default submitit runs at most 256 tasks of an array at once, and sets a wckey that strict clusters refuse.
    unlimited = {"array_parallelism": 10**6, "wckey": None}
    return unlimited | {key: value for key, value in parameters.items() if value is not None}
