"""The schema of an experiment, and how one file becomes runs.

Everything is closed: an unknown key is an error that names it. A run is identified by the hash of its resolved
configuration, so the same run asked for twice, from whatever file, is one run.
"""

from __future__ import annotations

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from harness.matching import matched_config
from harness.model import Layout, ModelConfig
from harness.presets import preset
from harness.synthetic import shortest_row
from mixers.registry import MixerFile, file_of, get, load_file, mixer_config

EXPERIMENTS = Path(__file__).parent / "experiments"


Beta = Annotated[float, Field(ge=0, lt=1)]


class Closed(BaseModel):
    """Base of all configuration: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Phase(Closed):
    """A stretch of training on one mixture.

    tokens: how many are seen, rounded up to whole optimiser steps. seq_len: tokens a row. rows: how many rows of every
    optimiser step come from `text` and from each synthetic task of harness.synthetic.
    """

    tokens: PositiveInt
    seq_len: PositiveInt
    rows: dict[Literal["text", "mqar", "overwrite", "protect", "interference"], PositiveInt] = Field(min_length=1)

    @model_validator(mode="after")
    def _room(self) -> Phase:
        for task in self.rows:
            if task != "text" and self.seq_len < shortest_row(task):
                raise ValueError(f"seq_len: {self.seq_len} is too short for {task}; use at least {shortest_row(task)}")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * sum(self.rows.values())

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.tokens_per_step)


class DataConfig(Closed):
    """What is trained on.

    source: `embedded`, or a folder made by `run.py data prepare`. tokenizer: `embedded`, a tokenizer.json, or a Hub
    name; must be the one the shards were made with. phases: in this order, under one learning-rate schedule.
    """

    source: str = "embedded"
    tokenizer: str = "embedded"
    phases: list[Phase] = Field(min_length=1)

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Tokens seen in all."""
        return sum(phase.steps * phase.tokens_per_step for phase in self.phases)

    @property
    def seq_len(self) -> int:
        """Of the last phase: the length that the model is made for."""
        return self.phases[-1].seq_len


class TrainConfig(Closed):
    """The recipe; defaults are the paper's (arXiv 2605.22791) where it states one.

    accumulation: pieces into which the rows of a step are cut for memory's sake; a divisor of their number. lr: peak;
    cosine down to final_lr_ratio · lr after warmup_ratio of the tokens. weight_decay reaches matrices only, embedding
    included; not norms, biases, other vectors, A_log, dt_bias. dtype: of activations; `auto` is bf16 on a GPU that has
    it and fp32 elsewhere. checkpoint_every: optimiser steps between checkpoints. threads: CPU threads of the run.
    """

    accumulation: PositiveInt = 1
    lr: PositiveFloat = 4e-4
    final_lr_ratio: NonNegativeFloat = 0.1
    warmup_ratio: NonNegativeFloat = 0.01
    weight_decay: NonNegativeFloat = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: PositiveFloat = 1.0
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every: PositiveInt = 1000
    threads: PositiveInt | None = None


class MixerSpec(Closed):
    """One model of an experiment. label: its row in tables, by default the mixer's display name and layout."""

    mixer: str
    layout: Layout | None = None
    options: dict[str, Any] = {}
    label: str | None = None


class Experiment(Closed):
    """An experiment file: mixers × layouts × seeds at one scale, trained one way and measured by the suites.

    presets: several scales instead of the one `preset`, for an axis of width.
    layouts: where a mixer names none itself; attention is always its own layout. suites: options per suite.
    mixer_files: Python files that define mixers, relative to the experiment file.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    description: str = ""
    preset: str | None = None
    presets: list[str] = []
    mixers: list[MixerSpec] = Field(min_length=1)
    mixer_files: list[str] = []
    layouts: list[Literal["recurrent", "hybrid"]] = ["recurrent"]
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    data: DataConfig
    train: TrainConfig = TrainConfig()
    suites: dict[str, dict[str, Any]] = {}

    @property
    def scales(self) -> list[str]:
        """The presets by name, however given."""
        return self.presets if self.preset is None else [self.preset]

    @model_validator(mode="after")
    def _one_way_of_naming_scales(self) -> Experiment:
        if (self.preset is None) == (not self.presets):
            raise ValueError(f"preset, presets: got {self.preset!r} and {self.presets}; give exactly one of them")
        if len(set(self.presets)) < len(self.presets):
            raise ValueError(f"presets: {self.presets} names one twice; name each once")
        return self

    @model_validator(mode="after")
    def _pieces(self) -> Experiment:
        for index, phase in enumerate(self.data.phases):
            rows = sum(phase.rows.values())
            if rows % self.train.accumulation:
                raise ValueError(
                    f"train.accumulation: {self.train.accumulation} does not divide the {rows} rows of a step in "
                    f"data.phases.{index}; choose a divisor or change its rows"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _bare_names(cls, values: Any) -> Any:
        """Let a mixer be written as its name alone."""
        if isinstance(values, dict) and isinstance(values.get("mixers"), list):
            mixers = [{"mixer": m} if isinstance(m, str) else m for m in values["mixers"]]
            return values | {"mixers": mixers}
        return values


class RunConfig(Closed):
    """One run, resolved: nothing about it is decided later. `label` is how tables call it and not part of its id.

    data_sha256: of the data and the tokenizer, so that other data in the same place make another run.
    mixer_file: that defines the mixer, where it is none of ours or of an installed package.
    """

    label: str
    mixer: str
    layout: Layout
    preset: str
    seed: NonNegativeInt
    model: ModelConfig
    data: DataConfig
    data_sha256: str
    train: TrainConfig
    mixer_file: MixerFile | None = None

    @property
    def hash(self) -> str:
        """Of everything that changes what is trained."""
        content = self.model_dump(mode="json", exclude={"label", "mixer_file"})
        if self.mixer_file is not None:  # its content and not its place
            content["mixer_file"] = self.mixer_file.sha256
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        name = self.mixer.replace(":", "-")  # a folder's name with a colon reads as a host's to scp and rsync
        return f"{name}-{self.layout}-s{self.seed}-{self.hash[:8]}"


def describe(error: ValidationError, subject: str) -> str:
    """The first fault of a pydantic error as one line: field, what is wrong, the value."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field; remove it or correct its name"
    value = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    return f"{subject}: {field}: {message}{value}" if field else f"{subject}: {message}"


def load_experiment(path_or_name: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from a file, or by the name of one in harness/experiments.

    overrides: `a.b=value` with a YAML value, applied before validation. Raises ValueError with one line.
    """
    path = Path(path_or_name)
    if not path.suffix and not path.exists():
        path = EXPERIMENTS / f"{path_or_name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
        raise ValueError(f"experiment: no file {path_or_name!s}; give a path, or one of: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of fields, got {type(values).__name__}")
    for override in overrides or []:
        _override(values, override)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise ValueError(describe(error, str(path))) from None
    files = [str((path.parent / file).resolve()) for file in experiment.mixer_files]
    return experiment.model_copy(update={"mixer_files": files})


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set: expected a.b=value, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set: {key!r} goes through {parent!r}, which is no mapping")
    values[last] = parse_value(text, override)


def parse_value(text: str, subject: str) -> Any:
    """A YAML value given on the command line; ValueError naming the option when it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set: {subject!r} has no YAML value behind the =") from None


def expand(experiment: Experiment, vocab_size: int, data_sha256: str) -> list[RunConfig]:
    """All runs of an experiment, their models matched. Raises ValueError for the first that cannot be built.

    vocab_size: that of the tokenizer in use; it replaces the preset's. data_sha256: see RunConfig.
    """
    for file in experiment.mixer_files:
        load_file(file)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise ValueError(f"seeds: {experiment.seeds} names one twice; name each once")
    runs: dict[str, RunConfig] = {}
    for name, spec in product(experiment.scales, experiment.mixers):
        scale = preset(name)
        attention = spec.mixer == "attention"
        if attention and spec.layout not in (None, "attention"):
            raise ValueError(f"mixers: layout {spec.layout!r} does not go with attention, which is its own; remove it")
        layouts = ["attention"] if attention else [spec.layout] if spec.layout else experiment.layouts
        entry = get(spec.mixer)
        mixer_config(spec.mixer, scale.mixers.get(spec.mixer, {}) | spec.options)
        for layout in layouts:
            model = matched_config(name, layout, spec.mixer, spec.options, vocab_size)
            for seed in experiment.seeds:
                run = RunConfig(
                    label=spec.label or entry.display,
                    mixer=spec.mixer,
                    layout=layout,
                    preset=name,
                    seed=seed,
                    model=model,
                    data=experiment.data,
                    data_sha256=data_sha256,
                    train=experiment.train,
                    mixer_file=file_of(spec.mixer),
                )
                if run.run_id in runs:
                    raise ValueError(
                        f"{experiment.name}: mixers: {spec.mixer} ({layout}) is listed twice with the same options; "
                        "remove one"
                    )
                if any((r.label, r.layout, r.preset, r.seed) == (run.label, layout, name, seed) for r in runs.values()):
                    raise ValueError(
                        f"{experiment.name}: mixers: two entries are called {run.label!r} ({layout}); give each a label"
                    )
                runs[run.run_id] = run
    return list(runs.values())
