"""Multi-query associative recall (MQAR) on bare token ids: accuracy over pairs, by place in the listing, by distance.

The rows are those of `harness.data.mqar`, from streams that training never draws. A row asks for each of its pairs
once, all in one forward pass. An answer is right if it is the most likely next token out of the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator

from harness.data.mqar import Drawn, Protocol, draw, fewest_ids
from harness.data.tokenizer import bare_ids
from harness.experiments.closed import Seed
from harness.experiments.data import RecallRows, check_difficulties
from harness.lm.generate import NotFinite
from harness.records.answers import kept
from harness.records.record import LENGTH_UNIT, Measurement
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared.lm_requests import fingerprint, mean_measurement, reader_of_ids

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

FIGURE_2 = ((4, 64), (8, 128), (16, 256), (64, 512))
"""(pairs, tokens) of Zoology's figure 2."""


class Config(SuiteConfig):
    """Options of the mqar suite."""

    sets: tuple[RecallRows, ...] = Field(
        default=tuple(RecallRows(pairs=pairs, seq_len=seq_len) for pairs, seq_len in FIGURE_2), min_length=1
    )
    """Difficulties: `pairs` of key and value in rows of `seq_len` tokens."""
    protocol: Protocol = "separated"
    """Placement of the questions, as in training: `zoology` or `separated`."""
    rows: PositiveInt = 1000
    """Rows per difficulty. Each asks for all its pairs, so that every place in the listing is asked for as often."""
    split: Literal["test", "validation"] = "test"
    """Rows to score: `test` for reports, `validation` for choices such as a learning rate."""
    seed: Seed = 0
    """Seed of the rows."""

    _difficulties = field_validator("sets")(check_difficulties)


@register_suite("mqar", title="multi-query associative recall on bare ids, by pairs, place and distance")
class Mqar(Suite):
    """How often the most likely next token is the value of the key that was asked for."""

    Config = Config

    def check(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the tokenizer is not one of bare ids, or has too few of them."""
        vocab = bare_ids(tokenizer)
        if vocab is None:
            raise ValueError(
                f"tokenizer: its {len(tokenizer)} tokens are no bare ids, which the rows are made of; train with "
                "data.source: synthetic and data.tokenizer: ids:N, or use the suite recall"
            )
        most = max(each.pairs for each in config.sets)
        if vocab < fewest_ids(most):
            raise ValueError(
                f"sets: {most} pairs have more keys than ids:{vocab} has; train with ids:{fewest_ids(most)} or more, "
                "or ask for fewer"
            )

    def validation(self, config: Config) -> Config:
        """Return the same rows of the split `validation`."""
        return config.model_copy(update={"split": "validation"})

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `acc` at each number of pairs, and its details `acc_by_position` and `acc_by_distance`.

        Rows are the samples of `acc`, since the questions of a row depend on one another. Raises ValueError for models
        that are not ours, and as `check` does; raises NotFinite with the row whose logits are not finite.
        """
        tokenizer, likeliest = reader_of_ids(lm, self.name)
        self.check(config, tokenizer)
        results = []
        for each in config.sets:
            progress(f"mqar@{each.pairs}: {config.rows} rows of {each.seq_len} tokens")
            stream = f"{config.split} {config.seed}"
            drawn = draw(each.pairs, each.seq_len, len(tokenizer), config.protocol, stream, np.arange(config.rows))
            inputs, questions = torch.from_numpy(drawn.inputs), torch.from_numpy(drawn.questions)
            answers = np.take_along_axis(drawn.targets, drawn.questions, axis=1)
            try:
                said = likeliest(inputs, questions).numpy()
            except NotFinite as fault:
                raise NotFinite(fault.index, each.task) from None
            right = said == answers
            settings = {
                "items_sha256": fingerprint([drawn.inputs.tolist(), drawn.targets.tolist()]),
                "protocol": config.protocol,
                "split": config.split,
                "seq_len": each.seq_len,
                "questions": right.size,
                "chance": 1 / each.pairs,
            }
            results.append(
                mean_measurement(
                    "acc",
                    right.mean(axis=1).tolist(),
                    suite=self.name,
                    task="mqar",
                    length=each.pairs,
                    settings=settings | {LENGTH_UNIT: "key-value pairs"},
                    answers=kept(map(asked, drawn.inputs, drawn.questions), *(map(ids, x) for x in (answers, said))),
                )
            )
            results += _details(each.task, right, drawn, settings)
        return results


def ids(tokens: NDArray[np.int64]) -> str:
    """Token ids in words: `7 902 15`."""
    return " ".join(map(str, tokens.tolist()))


def asked(row: NDArray[np.int64], questions: NDArray[np.int64]) -> str:
    """A row's listing and the keys that are asked for, in their order."""
    listing = row[: 2 * len(questions)].reshape(-1, 2)
    return f"{', '.join(map(ids, listing))}; values of {ids(row[questions])}?"


def _details(task: str, right: NDArray[np.bool_], drawn: Drawn, settings: dict[str, Any]) -> Iterator[Measurement]:
    """Accuracy by the place of the asked pair in the listing, from 1, and by distance, in bins up to powers of two.

    right: [R, P], by row and place. The standard error treats rows as the independent samples.
    """
    upper = 2 ** np.ceil(np.log2(drawn.distances)).astype(np.int64)
    places = np.broadcast_to(np.arange(1, right.shape[1] + 1), right.shape)
    for metric, unit, of in (
        ("acc_by_position", "place in the listing", places),
        ("acc_by_distance", "tokens at most from value to question", upper),
    ):
        for length in np.unique(of).tolist():
            value, stderr, count = clustered_mean(right, of == length)
            yield Measurement(
                suite="mqar",
                task=task,
                metric=metric,
                value=value,
                stderr=stderr,
                n=count,
                length=length,
                settings=settings | {LENGTH_UNIT: unit},
            )


def clustered_mean(right: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> tuple[float, float | None, int]:
    """Share of right answers among the chosen ones, its standard error, and their number.

    right, chosen: [R, P]. Rows are independent, answers of a row are not: the error is that of a ratio of two sums over
    rows, linearised. It is None if one row alone has chosen answers.
    """
    counts, hits = chosen.sum(axis=1), (right & chosen).sum(axis=1)
    counts, hits = counts[counts > 0], hits[counts > 0]
    total, rows = int(counts.sum()), len(counts)
    share = float(hits.sum() / total)
    if rows == 1:
        return share, None, total
    residuals = hits - share * counts
    return share, math.sqrt(rows / (rows - 1) * float((residuals**2).sum())) / total, total
