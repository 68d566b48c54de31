"""The one interface of everything that measures.

A suite measures trained models, through any lm-eval model (`run`), or fresh ones, whose weights do not matter
(`measure`). Everything else has a default. `docs/suites.md` has a complete example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.experiments.closed import Closed
from harness.experiments.schema import TrainConfig
from harness.model.language_model import LanguageModel
from harness.records.metrics import Metric
from harness.records.record import FIRST_VERSION, PROTOCOL_VERSION, Measurement
from suites.shared.items import Item

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str], None]
"""Takes a line that says what is being done."""


def silent(line: str) -> None:
    """Report no progress."""


class SuiteConfig(Closed):
    """Base of every suite's options. Closed: a key that the suite does not know is an error, never ignored."""


@dataclass(frozen=True)
class Baseline:
    """A row of tables that needs no model, measured once for all runs of an experiment.

    name: identifies the row in records, where a run has its mixer's name. label: the row's heading in tables.
    measure: takes the experiment's tokenizer.
    """

    name: str
    label: str
    measure: Callable[[PreTrainedTokenizerBase], list[Measurement]]


class Suite:
    """Base class of all suites.

    A subclass sets `Config`, implements `run` or `measure` and is registered with `suites.registry.register_suite`,
    which sets `name` and `title`. Every method gets a validated `Config`; annotate it with your own.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Config: ClassVar[type[SuiteConfig]]
    metrics: ClassVar[Mapping[str, Metric]] = {}
    """Metrics that the suite yields and harness/records/metrics.py does not declare."""

    def run(self, lm: LM, config: Any, progress: Progress = silent) -> list[Measurement]:
        """Measure a trained model. Raises ValueError if it cannot be asked what the suite asks."""
        raise NotImplementedError

    def measure(
        self, model: LanguageModel, recipe: TrainConfig, config: Any, progress: Progress = silent
    ) -> list[Measurement]:
        """Measure a fresh model where it is, in the recipe's dtype; its weights may be changed."""
        raise NotImplementedError

    def protocol_versions(self, config: Any) -> dict[str, int]:
        """Return the version of each task's protocol that is no longer the first one, by the task of its measurements.

        A version counts the changes by which the same options measure something else: other items, prompts, windows
        or scores. It is part of what identifies an evaluation, and tables do not mix versions in a column.
        """
        return {}

    def stamped(self, config: Any, measurements: Iterable[Measurement]) -> list[Measurement]:
        """Return the measurements with their protocol's version in their settings."""
        versions = self.protocol_versions(config)
        return [
            replace(m, settings={**m.settings, PROTOCOL_VERSION: versions.get(m.task, FIRST_VERSION)})
            for m in measurements
        ]

    def units(self, config: Any) -> dict[str, Any]:
        """Return the parts that are measured in jobs of their own: configurations by unit name.

        The default is the whole suite under its own name; `harness.records.units.unit_name` names the part of a length.
        """
        return {self.name: config}

    def check(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError for anything that would fail only after training: missing data, prompts that do not fit."""

    def validation(self, config: Any) -> Any:
        """Return the same options on data of the same kind that no report uses, for choices such as a learning rate.

        Raises ValueError unless a suite has such data and implements this.
        """
        raise ValueError(
            f"suites.{self.name}: has no validation split; choose by a suite that has one, such as mqar or recall"
        )

    def prefetch(
        self, config: Any, tokenizer: PreTrainedTokenizerBase | None, progress: Progress = silent
    ) -> Iterable[Item]:
        """Fetch everything that jobs read from outside, and yield an item for each. No tokenizer: it could not be had.

        An item that could not be had says so instead of raising; see `suites.shared.items.hashed_item`.
        """
        return ()

    def baselines(self, config: Any) -> Sequence[Baseline]:
        """Return the rows that `collect` adds without a model."""
        return ()

    @property
    def fresh(self) -> bool:
        """Whether the suite measures fresh models, so that nothing is trained for it."""
        return type(self).measure is not Suite.measure
