"""What a Slurm cluster is like: its profile in slurm/profiles/NAME.yaml, what submitit makes of that, and what the
cluster at hand would refuse of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from harness.experiments.schema import Closed
from harness.training.distributed import Sharding
from mixers.interface import one_line

PROFILES = Path(__file__).parent / "profiles"

Stage = Literal["train", "evaluate", "prepare"]


def _word(value: str) -> str:
    if not re.fullmatch(r"[^\s-]\S*", value):
        raise ValueError(f"{value!r} is not one word as sbatch takes it; correct it, or leave it out for the default")
    return value


def _variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
        raise ValueError(f"{value!r} is no name of a variable; use letters, digits and underscores")
    return value


Word = Annotated[str, AfterValidator(_word)]
Variable = Annotated[str, AfterValidator(_variable)]


class Resources(Closed):
    """What one job asks for.

    tasks_per_node: processes a node; None is one a GPU, at least one. mem_gb: GiB of a node, 0 for all of it, None for
    the partition's default. minutes: the time limit. partition, qos, constraint: instead of the site's.
    """

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 1
    tasks_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt = 8
    mem_gb: NonNegativeInt | None = None
    minutes: PositiveInt = 1440
    partition: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None

    @property
    def tasks(self) -> int:
        """Processes a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


class Profile(Closed):
    """A site's profile; slurm/profiles/template.yaml explains every field to who fills it in.

    sharding: what each of several training processes holds: `ddp` the whole model, `fsdp` a part of it. concurrency:
    tasks of an array at a time; None for all. signal_delay_s: seconds before the time limit at which a job
    is told to save. environment: set literally, after setup. python: the interpreter's command on the nodes; None for
    the submitting one. shared: paths that must exist and be writable. device: the GPU's name as torch has it; where
    the suite `throughput` has measured a model on one of that name, estimates go by it. tflops: dense bf16 peak of one
    GPU, for the others; utilisation: the part of it that training reaches.
    """

    description: str = ""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    train: Resources = Resources()
    evaluate: Resources = Resources()
    prepare: Resources = Resources(gpus_per_node=0)
    sharding: Sharding = "ddp"
    concurrency: PositiveInt | None = None
    signal_delay_s: PositiveInt = 120
    environment: dict[Variable, str] = {}
    setup: list[str] = []
    srun_args: list[str] = []
    python: str | None = Field(default=None, min_length=1)
    shared: list[str] = []
    device: str | None = Field(default=None, min_length=1)
    tflops: PositiveFloat | None = None
    utilisation: float = Field(default=0.4, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _prepare_without_gpus(cls, values: Any) -> Any:
        """Let a profile change one field of prepare and keep its default of no GPUs."""
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
    """A profile by the name of a file in slurm/profiles, or from a path. Raises ValueError with one line."""
    path = Path(name_or_path)
    if not path.suffix and not path.is_file():
        path = PROFILES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"--cluster: no profile {name_or_path!s}; give local, debug, a path, or one of: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of fields, got {type(values).__name__}")
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ValueError(one_line(error, str(path))) from None


def sbatch_parameters(
    profile: Profile, resources: Resources, job_name: str, dependency: str | None = None
) -> dict[str, Any]:
    """What submitit.SlurmExecutor.update_parameters takes for jobs with these resources.

    dependency: as sbatch writes it, `afterok:7` or `aftercorr:7`. submitit itself adds open-mode=append, for logs of a
    job that is queued again, and the signal, USR2. profile.python is for the executor's constructor.
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
        # Clusters without GPUs refuse to be asked for none of them.
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{resources.mem_gb}GB" if resources.mem_gb else "0",
        "time": resources.minutes,
        "signal_delay_s": profile.signal_delay_s,
        "array_parallelism": profile.concurrency,
        "setup": [*profile.setup, *exports] or None,
        # Since Slurm 22.05 srun no longer takes it from its job, and where tasks are bound each would get one core.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", *profile.srun_args],
        "dependency": dependency,
        # Also where the site's JobRequeue is 0.
        "additional_parameters": {"requeue": True},
    }
    # submitit's defaults: 256 tasks of an array at a time, and a wckey of its own, which sites that check it refuse.
    unlimited = {"array_parallelism": 10**6, "wckey": None}
    return unlimited | {key: value for key, value in parameters.items() if value is not None}
