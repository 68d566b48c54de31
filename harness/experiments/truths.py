"""Truths: statements that an experiment's results must meet before anyone believes the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from harness.experiments.closed import Closed
from mixers.registry import get

if TYPE_CHECKING:
    from harness.experiments.schema import Experiment, MixerSpec

FORMS = ("threshold", "order", "chance")
"""The forms of a truth; each is chosen by the key that holds the name of a column."""


class _Stated(Closed):
    at: list[PositiveInt] = []
    """Lengths or difficulties at which it must hold, as columns show them behind @; left out for a task without any."""

    presets: list[str] = []
    """Presets at which it must hold; all of the experiment's if left out."""

    why: str = ""
    """Source of the truth, in a sentence; printed next to it."""

    @property
    def where(self) -> str:
        """Lengths and presets, in words."""
        at = f" at {', '.join(map(str, self.at))}" if self.at else ""
        return at + (f" ({', '.join(self.presets)})" if self.presets else "")


class Threshold(_Stated):
    """A bound that every seed of the named rows meets."""

    threshold: str
    """Column, named as in tables but without its length: `mqar_acc`, `wikitext_ppl`."""

    of: list[str] = Field(min_length=1)
    """Rows, by mixer or by label. A mixer stands for all of its rows but those of ablations, which have labels."""

    at_least: float | None = None
    """Smallest value that meets it, in the unit that tables print: points for a metric in percent."""

    at_most: float | None = None
    """Largest value that meets it, in the same unit."""

    questions: PositiveInt = 1
    """Fewest questions, or samples where a record counts no questions, that a value must be measured on."""

    @model_validator(mode="after")
    def _one_bound(self) -> Threshold:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"at_least, at_most: got {self.at_least} and {self.at_most}; give exactly one of them")
        return self

    @property
    def column(self) -> str:
        """Name of the column, without its length."""
        return self.threshold

    @property
    def rows(self) -> dict[str, list[str]]:
        """Names of rows, by the field that holds them."""
        return {"of": self.of}

    @property
    def words(self) -> str:
        """The truth as one phrase."""
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        least = f", measured on at least {self.questions:,} questions" if self.questions > 1 else ""
        return f"{self.column} of {', '.join(self.of)} is {bound}{self.where}{least}"

    def holds(self, value: float) -> bool:
        """Whether a value, in the unit that tables print, meets the bound. NaN meets none."""
        return value >= self.at_least if self.at_least is not None else value <= self.at_most


class Order(_Stated):
    """An order of two rows: the interval of their difference over items and seeds excludes 0."""

    order: str
    """Column, named as in tables but without its length."""

    below: str
    """Row with the smaller value, by mixer or by label."""

    above: str
    """Row with the larger value, by mixer or by label."""

    @model_validator(mode="after")
    def _two_rows(self) -> Order:
        if self.below == self.above:
            raise ValueError(f"below, above: both are {self.below!r}; name two rows")
        return self

    @property
    def column(self) -> str:
        """Name of the column, without its length."""
        return self.order

    @property
    def rows(self) -> dict[str, list[str]]:
        """Names of rows, by the field that holds them."""
        return {"below": [self.below], "above": [self.above]}

    @property
    def words(self) -> str:
        """The truth as one phrase."""
        return f"{self.column} of {self.above} is above that of {self.below}{self.where}"


class Chance(_Stated):
    """Rows that do no better and no worse than chance: the interval of their mean over seeds lies close to it."""

    chance: str
    """Column, named as in tables but without its length."""

    of: list[str] = Field(min_length=1)
    """Rows, by mixer or by label. A mixer stands for all of its rows but those of ablations, which have labels."""

    level: float | None = None
    """Chance, in the unit that tables print; the one that the records state in their settings if left out."""

    within: PositiveFloat
    """Largest distance from chance of both ends of the interval, in the same unit."""

    @property
    def column(self) -> str:
        """Name of the column, without its length."""
        return self.chance

    @property
    def rows(self) -> dict[str, list[str]]:
        """Names of rows, by the field that holds them."""
        return {"of": self.of}

    @property
    def words(self) -> str:
        """The truth as one phrase."""
        level = "chance" if self.level is None else f"chance, {self.level:g}"
        return f"{self.column} of {', '.join(self.of)} is within {self.within:g} of {level}{self.where}"


def _form(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((form for form in FORMS if form in value), None)
    return next((form for form in FORMS if hasattr(value, form)), None)


Truth = Annotated[
    Annotated[Threshold, Tag("threshold")] | Annotated[Order, Tag("order")] | Annotated[Chance, Tag("chance")],
    Discriminator(
        _form,
        custom_error_type="truth_without_form",
        custom_error_message=f"has no form; name its column under one of {', '.join(FORMS)}",
    ),
]
"""A truth in one of its forms."""


def check_names(experiment: Experiment) -> None:
    """Raise ValueError for the first name of a row or a preset in its truths that an experiment does not have."""
    for index, truth in enumerate(experiment.truths):
        rows = row_names(experiment)
        named = [(field, names, rows) for field, names in truth.rows.items()]
        for field, names, known in [*named, ("presets", truth.presets, experiment.preset_names)]:
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"truths.{index}.{field}: {name!r} is not in the experiment; it has {', '.join(known)}"
                    )


def row_names(experiment: Experiment) -> list[str]:
    """Names that the rows of an experiment go by: mixers and labels, those of ablations too.

    A mixer whose file has not been loaded has no display name yet, so labels made from it are absent.
    """
    labelled = [(spec, label) for spec in experiment.mixers if (label := row_label(spec)) is not None]
    varied = [
        f"{label}, {ablation.label}"
        for ablation in experiment.ablations
        for spec, label in labelled
        if ablation.mixers is None or spec.mixer in ablation.mixers
    ]
    mixers = (spec.mixer for spec in experiment.mixers)
    return list(dict.fromkeys([*mixers, *(label for _, label in labelled), *varied]))


def row_label(spec: MixerSpec) -> str | None:
    """Label of a model's row; None if its mixer is defined in a file that has not been loaded."""
    try:
        return spec.label or get(spec.mixer).display
    except ValueError:
        return None
