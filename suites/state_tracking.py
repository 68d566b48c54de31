"""State tracking: parity, modular arithmetic and composition of permutations, at lengths beyond those trained.

The rows are those of `harness.data.state_tracking`, from streams that training never draws. An answer is right if it is
the most likely next token out of the whole vocabulary. Scaled accuracy is (accuracy - chance) / (1 - chance), as in
Mamba-3 (arXiv 2603.15569, table 5b) and Grazzi et al. (arXiv 2411.12537).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator, model_validator

from harness.data.state_tracking import Task, draw, fewest_ids, shortest_row, states
from harness.data.tokenizer import bare_ids
from harness.experiments.closed import Seed
from harness.lm.generate import NotFinite
from harness.records.answers import kept
from harness.records.record import LENGTH_UNIT, Measurement
from harness.records.stats import mean_stderr
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared.lm_requests import check_distinct, fingerprint, mean_measurement, reader_of_ids

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

PARTS = 8
"""Parts of a row whose accuracy is told apart."""


class Config(SuiteConfig):
    """Options of the state_tracking suite."""

    task: Task = "parity"
    """Task of the rows, as in training: a model that was trained on another one has nothing to say about it."""
    lengths: tuple[PositiveInt, ...] = Field(default=(40, 80, 160, 256), min_length=1)
    """Tokens per row."""
    rows: PositiveInt = 1000
    """Rows per length."""
    split: Literal["test", "validation"] = "test"
    """Rows to score: `test` for reports, `validation` for choices such as a learning rate."""
    seed: Seed = 0
    """Seed of the rows."""

    _distinct = field_validator("lengths")(check_distinct)

    @model_validator(mode="after")
    def _rows_hold_a_word(self) -> Config:
        if min(self.lengths) < (least := shortest_row(self.task)):
            raise ValueError(f"lengths: {min(self.lengths)} is too short for {self.task}; use at least {least}")
        return self


@register_suite("state_tracking", title="state tracking on bare ids: parity, modular arithmetic, permutations")
class StateTracking(Suite):
    """How often the most likely next token is the state that the row has reached."""

    Config = Config

    def check(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the tokenizer is not one of bare ids, or has too few of them."""
        vocab, least = bare_ids(tokenizer), fewest_ids(config.task)
        if vocab is None or vocab < least:
            has = f"its {len(tokenizer)} tokens are no bare ids" if vocab is None else f"ids:{vocab} has too few ids"
            raise ValueError(
                f"tokenizer: {has} for {config.task}; train with data.source: synthetic and data.tokenizer: ids:{least}"
            )

    def validation(self, config: Config) -> Config:
        """Return the same rows of the split `validation`."""
        return config.model_copy(update={"split": "validation"})

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `scaled_acc` over the answers in the last quarter of the rows, at each length, with details.

        The answers before it lie at lengths that training may have shown. Rows are the samples. The detail
        `acc_by_position` is the accuracy, unscaled, in each eighth of the rows. Raises ValueError for models that are
        not ours, and as `check` does; NotFinite for outputs that are not finite.
        """
        tokenizer, likeliest = reader_of_ids(lm, self.name)
        self.check(config, tokenizer)
        chance, results = 1 / states(config.task), []
        for length in config.lengths:
            progress(f"{config.task}: {config.rows} rows of {length} tokens")
            drawn = draw(config.task, length, f"{config.split} {config.seed}", np.arange(config.rows))
            places = np.flatnonzero(drawn.counted[0])  # the same in all rows
            asked = torch.from_numpy(np.broadcast_to(places, (config.rows, len(places))).copy())
            try:
                said = likeliest(torch.from_numpy(drawn.inputs), asked).numpy()
            except NotFinite as fault:
                raise NotFinite(fault.index, f"{config.task}@{length}") from None
            right = said == drawn.targets[:, places]
            settings = {
                "items_sha256": fingerprint([drawn.inputs.tolist(), drawn.targets.tolist()]),
                "split": config.split,
                "states": states(config.task),
            }
            last = right[:, places >= min(places[-1], 3 * length // 4)]
            results.append(
                mean_measurement(
                    "scaled_acc",
                    ((last.mean(axis=1) - chance) / (1 - chance)).tolist(),
                    suite=self.name,
                    task=config.task,
                    length=length,
                    settings=settings | {"questions": last.size, "chance": 0.0},
                    answers=kept(
                        (" ".join(map(str, row)) for row in drawn.inputs[:, : places[-1] + 1].tolist()),
                        map(str, drawn.targets[:, places[-1]].tolist()),
                        map(str, said[:, -1].tolist()),
                    ),
                )
            )
            part = places * PARTS // length
            for number in np.unique(part).tolist():
                inside = right[:, part == number]
                value, stderr = mean_stderr(inside.mean(axis=1).tolist())
                results.append(
                    Measurement(
                        suite=self.name,
                        task=f"{config.task}@{length}",
                        metric="acc_by_position",
                        value=value,
                        stderr=stderr,
                        n=config.rows,
                        length=(number + 1) * length // PARTS,
                        settings=settings
                        | {"questions": inside.size, "chance": chance, LENGTH_UNIT: "tokens read at most"},
                    )
                )
        return results
