"""The training data of an experiment: their source, their tokenizer, and phases of rows that follow one another."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from harness.data import state_tracking
from harness.data.mqar import Protocol, fewest_ids
from harness.data.mqar import shortest_row as shortest_mqar
from harness.data.order import uniform
from harness.data.synthetic import TASKS, Questions, shortest_row
from harness.data.tokenizer import ids_count
from harness.experiments.closed import Closed
from mixers.identity import INCIDENTAL, Neutral

SYNTHETIC = "synthetic"
"""The source of data without text."""

RowTask = Literal[
    "text",
    "mqar",
    "overwrite",
    "protect",
    "interference",
    "s_niah_1",
    "s_niah_2",
    "s_niah_3",
    "mk_niah_1",
]


class Phase(Closed):
    """A stretch of training on one mixture of rows."""

    tokens: PositiveInt
    """Tokens to train on, rounded up to whole optimiser steps."""

    seq_len: PositiveInt
    """Tokens per row."""

    rows: dict[RowTask, PositiveInt] = Field(min_length=1)
    """Rows per optimiser step: from `text`, from each synthetic task of harness.data.synthetic, and in each of RULER's
    formats in harness.data.needles."""

    questions: Annotated[Questions, Neutral("bare")] = "bare"
    """Questions of the synthetic tasks: a key alone (`bare`), or with a marker before it (`marked`, the default where
    there are such rows)."""

    @model_validator(mode="before")
    @classmethod
    def _mark_questions(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("rows"), dict) and set(values["rows"]) & set(TASKS):
            return {"questions": "marked"} | values
        return values

    @model_validator(mode="after")
    def _rows_hold_a_sample(self) -> Phase:
        for task in self.rows:
            if task in TASKS and self.seq_len < shortest_row(task):
                raise ValueError(f"seq_len: {self.seq_len} is too short for {task}; use at least {shortest_row(task)}")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows per optimiser step, of all tasks together."""
        return sum(self.rows.values())

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimiser step."""
        return self.seq_len * self.rows_per_step

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return -(-self.tokens // self.tokens_per_step)

    @property
    def tokens_by_length(self) -> dict[int, int]:
        """Tokens of all steps, by the length of their rows."""
        return {self.seq_len: self.steps * self.tokens_per_step}

    def __str__(self) -> str:
        """The phase in words."""
        rows = " and ".join(f"{count} {task}" for task, count in self.rows.items())
        return f"{self.steps * self.tokens_per_step:,} tokens in rows of {self.seq_len}: {rows}"

    def scaled(self, share: float) -> Phase:
        """The same phase with `share` times the tokens, and at least one step."""
        return self.model_copy(update={"tokens": max(1, round(share * self.tokens))})


class RecallRows(Closed):
    """Rows of multi-query associative recall at one difficulty."""

    pairs: PositiveInt
    """Key-value pairs that a row lists; it asks for each once."""

    seq_len: PositiveInt
    """Tokens per row."""

    @model_validator(mode="after")
    def _questions_fit(self) -> RecallRows:
        if self.seq_len < (least := shortest_mqar(self.pairs)):
            raise ValueError(f"seq_len: {self.seq_len} is too short for {self.pairs} pairs; use at least {least}")
        return self

    @property
    def task(self) -> str:
        """Name of the task at this difficulty."""
        return f"mqar@{self.pairs}"


class RecallSet(RecallRows):
    """A set of training rows of one difficulty."""

    examples: PositiveInt
    """Rows in the set. An epoch's last step may begin the set anew to be whole."""

    def steps(self, rows: int) -> int:
        """Optimiser steps of `rows` rows per epoch."""
        return -(-self.examples // rows)


def check_difficulties(sets: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `sets`; raise ValueError if two have as many pairs, by which their results are told apart. A validator."""
    pairs = [each.pairs for each in sets]
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"pairs: {pairs} has one twice; give each number of pairs one set")
    return sets


class RecallPhase(Closed):
    """A stretch of training on multi-query associative recall (harness.data.mqar), on bare token ids.

    Every step draws its rows from one set. Sets take turns in a pseudo-random order, each as often as its examples
    need.
    """

    mqar: tuple[RecallSet, ...] = Field(min_length=1)
    """Sets of rows, one for each difficulty. A phase with this field is of this kind."""

    rows: PositiveInt
    """Rows per optimiser step."""

    epochs: PositiveInt = 1
    """Passes over the same examples, each in an order of its own."""

    protocol: Protocol = "separated"
    """Placement of the questions: `zoology` as in arXiv 2312.04927, or `separated`, where none directly follows the
    listing and the distance of a question does not depend on its pair's place."""

    _difficulties = field_validator("mqar")(check_difficulties)

    @property
    def rows_per_step(self) -> int:
        """Rows per optimiser step."""
        return self.rows

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.epochs * sum(each.steps(self.rows) for each in self.mqar)

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return sum(self.tokens_by_length.values())

    @property
    def seq_len(self) -> int:
        """Tokens of the longest rows."""
        return max(each.seq_len for each in self.mqar)

    @property
    def tokens_by_length(self) -> dict[int, int]:
        """Tokens of all steps, by the length of their rows."""
        tokens = dict.fromkeys((each.seq_len for each in self.mqar), 0)
        for each in self.mqar:
            tokens[each.seq_len] += self.epochs * each.steps(self.rows) * self.rows * each.seq_len
        return tokens

    def __str__(self) -> str:
        """The phase in words."""
        sets = " and ".join(f"{s.examples:,} rows of {s.pairs} pairs in {s.seq_len} tokens" for s in self.mqar)
        epochs = f"{self.epochs} epochs of " if self.epochs > 1 else ""
        return f"{self.tokens:,} tokens, {self.rows} rows a step: {epochs}{sets} (mqar, {self.protocol})"

    def scaled(self, share: float) -> RecallPhase:
        """The same phase with `share` times the examples of each set, and at least one."""
        sets = [s.model_copy(update={"examples": max(1, round(share * s.examples))}) for s in self.mqar]
        return self.model_copy(update={"mqar": tuple(sets)})


class StateTrackingPhase(Closed):
    """A stretch of training on one state-tracking task (harness.data.state_tracking), on bare token ids.

    The rows of a step have one length, drawn for the step and alike for every seed.
    """

    state_tracking: state_tracking.Task
    """Task of all rows. A phase with this field is of this kind."""

    steps: Annotated[int, Field(ge=1, le=10**7)]
    """Optimiser steps."""

    rows: PositiveInt
    """Rows per optimiser step."""

    lengths: tuple[PositiveInt, PositiveInt]
    """Tokens of the shortest and of the longest rows. A step's length is uniform between the two."""

    curriculum: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps over which the longest length grows, linearly, from the shortest one to its full size."""

    @field_validator("lengths")
    @classmethod
    def _in_order(cls, lengths: tuple[int, int]) -> tuple[int, int]:
        if lengths[0] > lengths[1]:
            raise ValueError(f"{list(lengths)} has its shortest length above its longest; swap them")
        return lengths

    @model_validator(mode="after")
    def _rows_hold_a_word(self) -> StateTrackingPhase:
        if self.lengths[0] < (least := state_tracking.shortest_row(self.state_tracking)):
            raise ValueError(f"lengths: {self.lengths[0]} is too short for {self.state_tracking}; use at least {least}")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows per optimiser step."""
        return self.rows

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.rows * int(step_lengths(self).sum())

    @property
    def seq_len(self) -> int:
        """Tokens of the longest rows."""
        return self.lengths[1]

    @property
    def tokens_by_length(self) -> dict[int, int]:
        """Tokens of all steps, by the length of their rows."""
        return {length: self.rows * length * n for length, n in sorted(Counter(step_lengths(self).tolist()).items())}

    def __str__(self) -> str:
        """The phase in words."""
        grow = f", the longest growing over {self.curriculum:.0%} of the steps" if self.curriculum else ""
        low, high = self.lengths
        return f"{self.steps:,} steps of {self.rows} rows of {self.state_tracking} in {low} to {high} tokens{grow}"

    def scaled(self, share: float) -> StateTrackingPhase:
        """The same phase with `share` times the steps, and at least one."""
        return self.model_copy(update={"steps": max(1, round(share * self.steps))})


@lru_cache(maxsize=16)
def step_lengths(phase: StateTrackingPhase) -> NDArray[np.int64]:
    """Tokens per row at each step, [steps]."""
    low, high = phase.lengths
    steps = np.arange(phase.steps)
    grown = np.minimum(1.0, (steps + 1) / (phase.curriculum * phase.steps)) if phase.curriculum else 1.0
    longest = low + np.floor((high - low) * grown + np.zeros(phase.steps))
    u = uniform(f"{state_tracking.DEFINITION} {phase.state_tracking} lengths", steps, 1)[:, 0]
    return (low + np.floor(u * (longest - low + 1))).astype(np.int64)


AnyPhase = Phase | RecallPhase | StateTrackingPhase
BarePhase = RecallPhase | StateTrackingPhase


def _of_its_kind(value: Any) -> Any:
    """A phase from plain values. Errors name its own fields, which those of a union of all kinds would not."""
    if isinstance(value, AnyPhase):
        return value
    named = value if isinstance(value, dict) else {}
    kind = RecallPhase if "mqar" in named else StateTrackingPhase if "state_tracking" in named else Phase
    return kind.model_validate(value)


def _fewest_ids(phase: BarePhase) -> int:
    if isinstance(phase, StateTrackingPhase):
        return state_tracking.fewest_ids(phase.state_tracking)
    return max(fewest_ids(each.pairs) for each in phase.mqar)


class DataConfig(Closed):
    """The training data."""

    source: Annotated[str, INCIDENTAL] = "embedded"
    """`embedded`, a folder made by `run.py data prepare` (relative to the experiment file), or `synthetic` for no text
    at all. A run is identified by the content, not by the path."""

    tokenizer: Annotated[str, INCIDENTAL] = "embedded"
    """`embedded`, a tokenizer.json or a folder with one (relative to the experiment file), or a name on the Hub: the
    one that the shards were made with. `ids:N`, N bare ids, for the source `synthetic`."""

    phases: list[Annotated[AnyPhase, BeforeValidator(_of_its_kind)]] = Field(
        default=[],
        min_length=1,  # the default is not held to the length
    )
    """Phases in order, under one learning-rate schedule: mixtures of text and synthetic tasks in words, or for the
    source `synthetic` tasks on bare ids (`mqar`, `state_tracking`). Left out if nothing is trained."""

    @model_validator(mode="after")
    def _source_serves_the_rows(self) -> DataConfig:
        ids, bare = ids_count(self.tokenizer), self.source == SYNTHETIC
        if bare != (ids is not None):
            raise ValueError(
                f"source, tokenizer: {self.source!r} does not go with {self.tokenizer!r}; use source: {SYNTHETIC} and "
                "tokenizer: ids:N together, or neither"
            )
        for index, phase in enumerate(self.phases):
            if bare != isinstance(phase, BarePhase):
                rows = "text or words" if bare else "a task on bare ids"
                of_data = f"use source: {SYNTHETIC} with tokenizer: ids:N"
                use = "use phases with `mqar` or `state_tracking`" if bare else of_data
                raise ValueError(f"source: {self.source!r} has no rows for phases.{index}, {rows}; {use}")
            if bare and ids < (least := _fewest_ids(phase)):
                raise ValueError(
                    f"tokenizer: {self.tokenizer!r} has too few ids for phases.{index}: {phase}; "
                    f"use at least ids:{least}"
                )
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Tokens seen by the end of training."""
        return sum(sum(phase.tokens_by_length.values()) for phase in self.phases)

    @property
    def row_tasks(self) -> set[str]:
        """Tasks that rows of text and in words are drawn from, in any phase: the keys of their `rows`."""
        return {task for phase in self.phases if isinstance(phase, Phase) for task in phase.rows}

    @property
    def seq_len(self) -> int:
        """Tokens per row of the last phase, the longest of them: the length that the model is made for."""
        return self.phases[-1].seq_len

    def scaled(self, share: float) -> DataConfig:
        """The same data with `share` times the training, in every phase."""
        return self.model_copy(update={"phases": [phase.scaled(share) for phase in self.phases]})
