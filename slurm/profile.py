"""Profiles of Slurm clusters: their schema, how one is loaded, and the sbatch options that it becomes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from harness.experiments.closed import Closed
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


Word = Annotated[str, AfterValidator(_word)]
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

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


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

    train: Resources = Resources()
    """Resources of a job that trains one run."""

    evaluate: Resources = Resources()
    """Resources of a job that evaluates one unit of a run. It has one process on one node."""

    prepare: Resources = Resources(gpus_per_node=0)
    """Resources of jobs that need no model: preparing data, downloading and collecting. They have one process each."""

    sharding: Sharding = "ddp"
    """How several training processes share a model: with `ddp` each holds all of it, with `fsdp` a part."""

    concurrency: PositiveInt | None = None
    """Tasks of one job array that may run at the same time; by default all."""

    signal_delay_s: PositiveInt = 120
    """Seconds before its time limit at which a job is told to save."""

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


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile by the name of a file in slurm/profiles, or from a path.

    Raises ValueError in one line if there is no such file or if a field is wrong.
    """
    path = Path(name_or_path)
    if not path.suffix and not path.is_file():
        path = PROFILES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"--cluster: no profile {name_or_path!s}; give local, debug, a path, or one of: {known}")
    values = read_yaml(path)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ValueError(one_line(error, str(path))) from None


def sbatch_parameters(
    profile: Profile, resources: Resources, job_name: str, dependency: str | None = None
) -> dict[str, Any]:
    """Parameters for submitit.SlurmExecutor.update_parameters, for jobs with these resources.

    dependency: in sbatch's syntax, such as `afterok:7` or `aftercorr:7`. submitit adds two options itself:
    open-mode=append, so that a requeued job continues its log, and the signal, USR2. `profile.python` is not among the
    parameters: it belongs to the executor's constructor.
    """
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
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{resources.mem_gb}GB" if resources.mem_gb else "0",
        "time": resources.minutes,
        "signal_delay_s": profile.signal_delay_s,
        "array_parallelism": profile.concurrency,
        "setup": [*profile.setup, *exports] or None,
        # Since Slurm 22.05 srun does not inherit it from the job; tasks that are bound to cores would get one each.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", *profile.srun_args],
        "dependency": dependency,
        # Needed where the cluster's JobRequeue is 0.
        "additional_parameters": {"requeue": True},
    }
    # By default submitit runs at most 256 tasks of an array at once, and sets a wckey that strict clusters refuse.
    unlimited = {"array_parallelism": 10**6, "wckey": None}
    return unlimited | {key: value for key, value in parameters.items() if value is not None}
