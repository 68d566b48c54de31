"""The schema of an experiment file: what is compared, on which data, with which recipe, measured by which suites.

Everything is closed: an unknown key is an error that names it. The docstring under a field documents it everywhere:
`run.py schema` prints it, and the JSON schema that the command writes lets an editor complete an experiment file.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.experiments.closed import Closed, Seed
from harness.experiments.data import DataConfig
from harness.experiments.presets import Match, preset
from harness.experiments.truths import Truth, check_names
from harness.experiments.tuning import OPTION, RECIPE, Tuning, fields_of
from harness.model.language_model import LINEAR_GAIN, InitGain, Layout
from mixers.identity import INCIDENTAL, Neutral
from mixers.interface import one_line

Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class TrainConfig(Closed):
    """The recipe. Defaults are the paper's (arXiv 2605.22791) where it states one.

    Some fields change how a run is made and not, but for rounding, what is trained; they are no part of its identity.
    """

    accumulation: PositiveInt = 1
    """Pieces that the rows of a step are cut into to save memory; a divisor of their number."""

    lr: PositiveFloat = 4e-4
    """Peak learning rate; cosine decay follows the warm-up."""

    final_lr_ratio: Share = 0.1
    """Learning rate at the end of training, as a share of the peak."""

    warmup_ratio: Share = 0.01
    """Share of the tokens over which the learning rate rises linearly."""

    weight_decay: NonNegativeFloat = 0.1
    """Applied to matrices, the embedding included; not to norms, biases, other vectors, A_log and dt_bias."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""

    init_gain: Annotated[InitGain, Neutral(2**-2.5)] = LINEAR_GAIN
    """Initialisation of linear layers: a gain, with which weights are Xavier-uniform and biases 0, or `upstream`.

    `upstream` leaves weights and biases as the layers' constructors draw them: uniformly in ±1/√(fan in), torch's
    default, here as in mamba-ssm and flash-linear-attention, whose layers of the form `fla:<Layer>` may have a rule of
    their own. What these packages' language models then do to the weights is no part of it: a normal distribution of
    standard deviation 0.02 in fla, and in mamba-ssm an output projection divided by √(residual branches). Convolutions,
    A_log, dt_bias, D and the biases of fla's layers are as upstream with a gain, too."""

    clip: PositiveFloat = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of activations. `auto` is bf16 on a GPU that has it and fp32 elsewhere."""

    checkpoint_every: Annotated[PositiveInt, INCIDENTAL] = 1000
    """Optimiser steps between checkpoints. Not part of a run's identity."""

    threads: Annotated[PositiveInt | None, INCIDENTAL] = None
    """CPU threads; torch's default if left out. Not part of a run's identity."""

    milestones: Annotated[PositiveInt | None, INCIDENTAL] = None
    """Optimiser steps between checkpoints that are kept for good. Not part of a run's identity."""

    recompute: Annotated[bool, INCIDENTAL] = False
    """Recompute activations in the backward pass instead of keeping them. Not part of a run's identity."""

    compile: Annotated[bool, INCIDENTAL] = False
    """Compile the blocks with torch.compile. Not part of a run's identity."""

    max_skipped: Annotated[NonNegativeInt, INCIDENTAL] = 10
    """Most steps that may be skipped because their loss or gradient is not finite. Not part of a run's identity."""

    tracker: Annotated[Literal["wandb", "trackio"] | None, INCIDENTAL] = None
    """Package that metrics also go to. Not part of a run's identity."""

    @field_validator("init_gain", mode="before")
    @classmethod
    def _gain_or_upstream(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        if not number and value != "upstream":
            raise ValueError(f"{value!r} is neither a gain above 0 nor 'upstream'; use one of them")
        return value


class MixerSpec(Closed):
    """One model of an experiment."""

    mixer: str
    """Name of a registered mixer, or `fla:<Layer>`."""

    layout: Layout | None = None
    """`recurrent` or `hybrid`; the experiment's `layouts` if left out."""

    options: dict[str, Any] = {}
    """Options of the mixer, over the preset's geometry; `run.py schema MIXER` lists them."""

    label: str | None = None
    """Name of its row in tables; the mixer's display name if left out."""

    train: dict[str, Any] = {}
    """Fields of `train` for this model alone, over the experiment's: values that were tuned before, for example."""


class Ablation(Closed):
    """A variant of an experiment's models, trained and measured next to them, in rows `<their label>, <label>`."""

    label: str = Field(min_length=1)
    """Name of the variant, appended to the label of each model."""

    options: dict[str, Any] = {}
    """Options of the mixer, over the model's own."""

    train: dict[str, Any] = {}
    """Fields of `train`, over the experiment's."""

    leading_conv: NonNegativeInt | None = None
    """Taps of the convolution before every mixer, instead of the experiment's `leading_conv`."""

    mixers: list[str] | None = Field(default=None, min_length=1)
    """Mixers that it applies to, by name; all of them if left out."""

    @model_validator(mode="after")
    def _changes_something(self) -> Ablation:
        if not (self.options or self.train or self.leading_conv is not None):
            raise ValueError(f"options, train, leading_conv: {self.label!r} has none of them; say what it changes")
        return self


class Expected(Closed):
    """The paper's numbers for these models, and the tolerance that they should be met within at the paper's scale."""

    table: Literal["table2", "table3", "table4", "table5", "figure2"]
    """Table of the paper, as filed in harness.records.published."""

    preset: str
    """Scale at which the paper measured."""

    tokens: PositiveInt
    """Training tokens of the paper's models."""

    tolerance: dict[str, PositiveFloat] = Field(min_length=1)
    """Largest difference from the printed number that is not yet a finding, by column or by metric, named as in tables
    of results. In the unit that tables print: points for a metric in percent, else the metric's own."""

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

    @property
    def columns(self) -> dict[str, float]:
        """Tolerance by column of the table, for the columns that have one."""
        return {column: x for column in _printed_columns(self.table) if (x := self.allowed(column)) is not None}

    def allowed(self, column: str) -> float | None:
        """Tolerance of a column: its own, else its metric's; None if neither is stated."""
        return self.tolerance.get(column, self.tolerance.get(_printed_columns(self.table).get(column, "")))


class Experiment(Closed):
    """An experiment: mixers × layouts × ablations × seeds at one scale, one recipe, and the suites that measure."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Name of the experiment; its collection and submissions carry it."""

    description: str = ""
    """Purpose of the experiment, in a sentence or two; shown in its report."""

    preset: str | None = None
    """Scale of all models; `run.py list` names the presets."""

    presets: list[str] = []
    """Several scales instead of the one `preset`, for an axis of width."""

    mixers: list[MixerSpec] = Field(min_length=1)
    """Models to compare; a mixer without options may be written as its name alone."""

    mixer_files: list[str] = []
    """Python files that register mixers, relative to the experiment file."""

    suite_files: list[str] = []
    """Python files that register suites, relative to the experiment file."""

    layouts: list[Literal["recurrent", "hybrid"]] = ["recurrent"]
    """Layouts of mixers that name none themselves. Attention is always a layout of its own."""

    match: Match = "parameters"
    """Quantity that the MLP widths make equal to that of the preset's Gated DeltaNet-2 in the recurrent layout:
    `parameters` without the embeddings, training `flops` per token at the preset's context, or `mlp`: no matching, all
    models have its MLP width."""

    leading_conv: NonNegativeInt = 0
    """Taps of a short convolution that each block has before its mixer, as in Based; 0 for none."""

    seeds: list[Seed] = Field(default=[0], min_length=1)
    """Seeds of initialisation and data order; every model is trained once per seed."""

    data: DataConfig = DataConfig()
    """Training data."""

    train: TrainConfig = TrainConfig()
    """Training recipe, the same for all models."""

    suites: dict[str, dict[str, Any]] = {}
    """Suites that measure the models, each with its options; `run.py schema SUITE` lists them."""

    ablations: list[Ablation] = []
    """Variants that are trained next to the models as they are."""

    tuning: Tuning | None = None
    """Values that every model tries before its reported runs; they then use the best ones."""

    scales: dict[str, dict[str, Any]] = {}
    """Other scales by name: fields that differ there, merged over the file's, mappings key by key."""

    expected: Expected | None = None
    """The paper's numbers, and how closely they should be met at its scale."""

    truths: list[Truth] = []
    """Statements that the results must meet; tables and reports print whether they do."""

    @property
    def preset_names(self) -> list[str]:
        """Presets, from `preset` or `presets`."""
        return self.presets if self.preset is None else [self.preset]

    @property
    def expectation(self) -> Expected | None:
        """The paper's numbers, if the preset and the tokens are the paper's; else None."""
        tokens = sum(phase.tokens for phase in self.data.phases)
        if self.expected is None or (self.preset, tokens) != (self.expected.preset, self.expected.tokens):
            return None
        return self.expected

    def train_of(self, spec: MixerSpec, ablation: Ablation | None = None) -> TrainConfig:
        """Recipe of a model, or of an ablation of it. Raises ValueError naming the field that sets a wrong value."""
        recipe = self.train
        own = (f"mixers: {spec.label or spec.mixer!r}: train", spec.train)
        for where, changes in (own, *([(f"ablations: {ablation.label!r}: train", ablation.train)] if ablation else [])):
            if changes:
                try:
                    recipe = TrainConfig.model_validate(recipe.model_dump() | changes)
                except ValidationError as error:
                    raise ValueError(one_line(error, where)) from None
        return recipe

    @model_validator(mode="after")
    def _one_way_of_naming_presets(self) -> Experiment:
        if (self.preset is None) == (not self.presets):
            raise ValueError(f"preset, presets: got {self.preset!r} and {self.presets}; give exactly one of them")
        if len(set(self.presets)) < len(self.presets):
            raise ValueError(f"presets: {self.presets} names one twice; name each once")
        return self

    @model_validator(mode="after")
    def _pieces(self) -> Experiment:
        for spec, ablation in product(self.mixers, (None, *self.ablations)):
            pieces = self.train_of(spec, ablation).accumulation
            where = f"mixers: {spec.label or spec.mixer!r}: " if spec.train else ""
            where += "" if ablation is None else f"ablations: {ablation.label!r}: "
            for index, phase in enumerate(self.data.phases):
                if phase.rows_per_step % pieces:
                    raise ValueError(
                        f"{where}train.accumulation: {pieces} does not divide the {phase.rows_per_step} rows of a step "
                        f"in data.phases.{index}; choose a divisor or change its rows"
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
    def _tuning_fits(self) -> Experiment:
        if self.tuning is None:
            return self
        if shared := sorted(set(self.seeds) & set(self.tuning.seeds)):
            raise ValueError(
                f"tuning.seeds: {shared} are seeds of the experiment, too; trials need their own, so that the choice "
                "does not flatter the runs that are reported"
            )
        if not self.data.phases:
            raise ValueError("tuning: data.phases has none, so that nothing is trained; remove one of them")
        if self.tuning.preset not in (None, *self.preset_names):
            raise ValueError(f"tuning.preset: {self.tuning.preset!r} is not of the experiment; {self.preset_names} are")
        if self.tuning.choose.suite not in self.suites:
            known = ", ".join(self.suites) or "none"
            raise ValueError(
                f"tuning.choose.suite: {self.tuning.choose.suite!r} is not among the experiment's suites ({known}); "
                "choose by one of them"
            )
        for values in self.tuning.combinations:
            try:
                TrainConfig.model_validate(self.train.model_dump() | fields_of(values, RECIPE))
            except ValidationError as error:
                raise ValueError(one_line(error, "tuning.grid: train.")) from None
        tuned = {part: fields_of(self.tuning.grid, part).keys() for part in (RECIPE, OPTION)}
        for spec in self.mixers:
            if both := sorted(tuned[RECIPE] & spec.train.keys()):
                raise ValueError(
                    f"mixers: {spec.label or spec.mixer!r} sets train.{both[0]}, which tuning.grid tries; remove one"
                )
        for ablation in self.ablations:
            for part, given in ((RECIPE, ablation.train), (OPTION, ablation.options)):
                if both := sorted(tuned[part] & given.keys()):
                    raise ValueError(
                        f"ablations: {ablation.label!r} sets {part}.{both[0]}, which tuning.grid tries; remove one"
                    )
        return self

    @model_validator(mode="after")
    def _truths_name_what_is_compared(self) -> Experiment:
        check_names(self)
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


@cache
def _printed_columns(table: str) -> dict[str, str]:
    """Metric by column of a table of the paper, columns named as in tables of results."""
    from harness.records.published import column_name, published

    cells = published(table)[["task", "metric", "length"]].fillna({"length": 0})
    return {column_name(task, metric, length or None): metric for task, metric, length in cells.itertuples(index=False)}


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
