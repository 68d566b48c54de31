"""The schema of an experiment, and how one file becomes runs.

Everything is closed: an unknown key is an error that names it. A run is identified by the hash of its resolved
configuration, so the same run asked for twice, from whatever file, is one run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal

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

from harness.data.synthetic import shortest_row
from harness.experiments.presets import preset
from harness.model.language_model import Layout, ModelConfig
from mixers.interface import one_line
from mixers.registry import MixerFile

Beta = Annotated[float, Field(ge=0, lt=1)]


class Closed(BaseModel):
    """Base of all configuration: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Phase(Closed):
    """A stretch of training on one mixture.

    tokens: how many are seen, rounded up to whole optimiser steps. seq_len: tokens a row. rows: how many rows of every
    optimiser step come from `text` and from each synthetic task of harness.data.synthetic.
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
    name; must be the one the shards were made with. phases: in this order, under one learning-rate schedule; left out
    where nothing is trained.
    """

    source: str = "embedded"
    tokenizer: str = "embedded"
    phases: list[Phase] = Field(default=[], min_length=1)  # a default is not held to the length

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

    Those below change how a run is made and not what is trained, but for rounding, and are no part of its identity:
    milestones: optimiser steps between checkpoints that are kept for good. tracker: a package that metrics go to as
    well. recompute: activations of a block are made
    again for the backward pass instead of kept. compile: blocks go through torch.compile. max_skipped: steps in all
    that may be skipped because their loss or gradient is not finite.
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
    milestones: PositiveInt | None = None
    recompute: bool = False
    compile: bool = False
    max_skipped: NonNegativeInt = 10
    tracker: Literal["wandb", "trackio"] | None = None


NO_IDENTITY = {"milestones", "recompute", "compile", "max_skipped", "tracker"}
"""Fields of TrainConfig that a run's hash leaves out."""


class MixerSpec(Closed):
    """One model of an experiment. label: its row in tables, by default the mixer's display name and layout."""

    mixer: str
    layout: Layout | None = None
    options: dict[str, Any] = {}
    label: str | None = None


class Ablation(Closed):
    """A variant of an experiment's models, trained and measured beside them, in rows called `<their label>, <label>`.

    options: of the mixer, over its own. train: fields of TrainConfig, over the experiment's. mixers: those it is for,
    by name; all of them if None.
    """

    label: str = Field(min_length=1)
    options: dict[str, Any] = {}
    train: dict[str, Any] = {}
    mixers: list[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _changes_something(self) -> Ablation:
        if not (self.options or self.train):
            raise ValueError(f"options, train: {self.label!r} has neither; say what it changes")
        return self


class Expected(Closed):
    """What the paper printed for these models, which is an expectation at its own scale alone: see
    `Experiment.expectation`.

    table: of harness.records.published. preset, tokens: the scale at which its numbers were measured, and what was
    trained on. tolerance: by column or by metric, both named as in tables of results, the difference from the printed
    number that is not yet a finding, in the unit that tables print: points where a metric is in percent, else the
    metric's own.
    """

    table: Literal["table2", "table3", "table4", "table5", "figure2"]
    preset: str
    tokens: PositiveInt
    tolerance: dict[str, PositiveFloat] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Expected:
        preset(self.preset)
        columns = _printed_columns(self.table)
        for name in self.tolerance:
            if name not in columns and name not in columns.values():
                raise ValueError(
                    f"tolerance: {name!r} is no column of {self.table}; use a metric of it "
                    f"({', '.join(_once(columns.values()))}) or a column: {', '.join(columns)}"
                )
        return self

    def allowed(self, column: str) -> float | None:
        """The tolerance of a column, its own or else its metric's; None where none is stated."""
        return self.tolerance.get(column, self.tolerance.get(_printed_columns(self.table).get(column, "")))


class Experiment(Closed):
    """An experiment file: mixers × layouts × ablations × seeds at one scale, one recipe, and the suites that measure.

    presets: several instead of the one `preset`, for an axis of width.
    layouts: where a mixer names none itself; attention is always its own layout. suites: options per suite.
    mixer_files: Python files that define mixers, relative to the experiment file. ablations: beside the models as they
    are. scales: by name, fields that differ there, merged over the file's, mappings key by key; see `load_experiment`.
    expected: the paper's numbers, and how near they should be met at its scale.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    description: str = ""
    preset: str | None = None
    presets: list[str] = []
    mixers: list[MixerSpec] = Field(min_length=1)
    mixer_files: list[str] = []
    suite_files: list[str] = []
    """Python files that register suites, relative to the experiment file."""
    layouts: list[Literal["recurrent", "hybrid"]] = ["recurrent"]
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    suites: dict[str, dict[str, Any]] = {}
    ablations: list[Ablation] = []
    scales: dict[str, dict[str, Any]] = {}
    expected: Expected | None = None

    @property
    def preset_names(self) -> list[str]:
        """The presets, however given."""
        return self.presets if self.preset is None else [self.preset]

    @property
    def expectation(self) -> Expected | None:
        """What the paper's numbers should be met within; None where the preset or the tokens are not the paper's."""
        asked = sum(phase.tokens for phase in self.data.phases)
        if self.expected is None or (self.preset, asked) != (self.expected.preset, self.expected.tokens):
            return None
        return self.expected

    def train_of(self, ablation: Ablation | None) -> TrainConfig:
        """The recipe of an ablation, or of the models as they are. Raises ValueError naming the ablation's field."""
        if ablation is None or not ablation.train:
            return self.train
        try:
            return TrainConfig.model_validate(self.train.model_dump() | ablation.train)
        except ValidationError as error:
            raise ValueError(one_line(error, f"ablations: {ablation.label!r}: train")) from None

    @model_validator(mode="after")
    def _one_way_of_naming_presets(self) -> Experiment:
        if (self.preset is None) == (not self.presets):
            raise ValueError(f"preset, presets: got {self.preset!r} and {self.presets}; give exactly one of them")
        if len(set(self.presets)) < len(self.presets):
            raise ValueError(f"presets: {self.presets} names one twice; name each once")
        return self

    @model_validator(mode="after")
    def _pieces(self) -> Experiment:
        for ablation in (None, *self.ablations):
            pieces = self.train_of(ablation).accumulation
            where = "" if ablation is None else f"ablations: {ablation.label!r}: "
            for index, phase in enumerate(self.data.phases):
                rows = sum(phase.rows.values())
                if rows % pieces:
                    raise ValueError(
                        f"{where}train.accumulation: {pieces} does not divide the {rows} rows of a step in "
                        f"data.phases.{index}; choose a divisor or change its rows"
                    )
        return self

    @model_validator(mode="after")
    def _ablations_fit(self) -> Experiment:
        mixers = _once(spec.mixer for spec in self.mixers)
        for ablation in self.ablations:
            for name in ablation.mixers or []:
                if name not in mixers:
                    raise ValueError(
                        f"ablations: {ablation.label!r}: mixers: {name!r} is not in the experiment; it has "
                        f"{', '.join(mixers)}"
                    )
        return self

    @model_validator(mode="after")
    def _scales_change_fields(self) -> Experiment:
        fields = [name for name in type(self).model_fields if name not in ("name", "scales", "expected")]
        for scale, changes in self.scales.items():
            for key in changes:
                if key not in fields:
                    raise ValueError(f"scales.{scale}.{key}: not what a scale can change; use {', '.join(fields)}")
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
        content = self.model_dump(mode="json", exclude={"label": True, "mixer_file": True, "train": NO_IDENTITY})
        if self.mixer_file is not None:  # its content and not its place
            content["mixer_file"] = self.mixer_file.sha256
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        name = self.mixer.replace(":", "-")  # a folder's name with a colon reads as a host's to scp and rsync
        return f"{name}-{self.layout}-s{self.seed}-{self.hash[:8]}"


@cache
def _printed_columns(table: str) -> dict[str, str]:
    """The metric by column of a table of the paper, columns named as in tables of results."""
    from harness.records.published import column_name, published

    cells = published(table)[["task", "metric", "length"]].fillna({"length": 0})
    return {column_name(task, metric, length or None): metric for task, metric, length in cells.itertuples(index=False)}


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
