"""The schedule of a run: the place of each optimiser step, and the rows that it reads, by number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.data import mqar, state_tracking
from harness.data.order import permute
from harness.experiments.data import (
    AnyPhase,
    DataConfig,
    Phase,
    RecallPhase,
    RecallSet,
    StateTrackingPhase,
    step_lengths,
)
from harness.experiments.schema import TrainConfig

Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]
"""Inputs, targets, and which targets count, each [rows, tokens]."""


@dataclass(frozen=True)
class RecallStep:
    """One step of a recall phase: step `number` of the steps that draw from the set `of`, counted over all epochs.

    stream: name of the phase's rows (harness.data.mqar.draw).
    """

    phase: RecallPhase
    of: RecallSet
    number: int
    stream: str

    @property
    def task(self) -> str:
        """The rows' task and difficulty, by which learning curves are kept apart."""
        return self.of.task

    def numbers(self, begin: int, end: int) -> NDArray[np.int64]:
        """Numbers of the rows `begin` … `end` - 1 of the step among the set's examples, [end - begin].

        Each epoch reads the examples in an order of its own, and goes on with its first ones to fill its last step.
        """
        rows = self.phase.rows
        epoch, step = divmod(self.number, self.of.steps(rows))
        places = np.arange(step * rows + begin, step * rows + end, dtype=np.int64) % self.of.examples
        return permute(places, self.of.examples, f"{self.stream} {self.of.task} {epoch}")

    def draw(self, begin: int, end: int, vocab: int) -> Arrays:
        """Rows `begin` … `end` - 1 of the step."""
        numbers = self.numbers(begin, end)
        drawn = mqar.draw(self.of.pairs, self.of.seq_len, vocab, self.phase.protocol, self.stream, numbers)
        return drawn.inputs, drawn.targets, drawn.counted

    def __str__(self) -> str:
        """The rows in words."""
        return f"{self.phase.rows} rows of {self.task}, step {self.number} of that set"


@dataclass(frozen=True)
class StateTrackingStep:
    """Step `number` of a phase of state tracking, in rows of `seq_len` tokens. stream: as for RecallStep."""

    phase: StateTrackingPhase
    seq_len: int
    number: int
    stream: str

    @property
    def task(self) -> str:
        """The rows' task, by which learning curves are kept apart."""
        return self.phase.state_tracking

    def draw(self, begin: int, end: int, vocab: int) -> Arrays:
        """Rows `begin` … `end` - 1 of the step."""
        first = self.number * self.phase.rows
        return state_tracking.draw(self.task, self.seq_len, self.stream, np.arange(first + begin, first + end))

    def __str__(self) -> str:
        """The rows in words."""
        return f"{self.phase.rows} rows of {self.task} in {self.seq_len} tokens, step {self.number}"


@dataclass(frozen=True)
class Position:
    """The place of a step in the schedule.

    phase: phase that the step belongs to. first: first step of that phase. tokens: tokens seen by the end of the step.
    seq_len: tokens per row of the step. rows: rows of text and of tasks in words seen before the step, by task. bare:
    the step's rows where they are drawn on bare ids, else None.
    """

    phase: AnyPhase
    first: int
    tokens: int
    seq_len: int
    rows: dict[str, int]
    bare: RecallStep | StateTrackingStep | None = None

    @property
    def step_tokens(self) -> int:
        """Tokens of the step."""
        return self.phase.rows_per_step * self.seq_len

    @property
    def alike(self) -> bool:
        """Whether all steps of the phase draw from the same rows, so that their losses can be compared."""
        return isinstance(self.phase, Phase) or (isinstance(self.phase, RecallPhase) and len(self.phase.mqar) == 1)

    def __str__(self) -> str:
        """The rows of the step in words."""
        return f"rows {self.phase.rows} from {self.rows}" if self.bare is None else str(self.bare)


def position(config: DataConfig, seed: int, step: int) -> Position:
    """Locate a step, counted from 0, in the schedule. A pure function: to resume, the step's number is enough.

    Raises ValueError for a step past the end.
    """
    tokens, left = 0, step
    rows = {task: 0 for phase in config.phases if isinstance(phase, Phase) for task in phase.rows}
    for index, phase in enumerate(config.phases):
        inside = min(left, phase.steps)
        if isinstance(phase, Phase):
            for task, count in phase.rows.items():
                rows[task] += inside * count
        if left < phase.steps:
            first = step - left
            if isinstance(phase, Phase):
                return Position(phase, first, tokens + (left + 1) * phase.tokens_per_step, phase.seq_len, rows)
            stream = f"train {seed} {index}"
            if isinstance(phase, StateTrackingPhase):
                lengths = step_lengths(phase)
                bare = StateTrackingStep(phase, int(lengths[left]), left, stream)
                seen = tokens + phase.rows * int(lengths[: left + 1].sum())
                return Position(phase, first, seen, bare.seq_len, rows, bare)
            turns = _turns(phase, stream)
            step_of = RecallStep(phase, phase.mqar[turns.sets[left]], int(turns.numbers[left]), stream)
            return Position(phase, first, tokens + int(turns.tokens[left]), step_of.of.seq_len, rows, step_of)
        tokens += sum(phase.tokens_by_length.values())
        left -= phase.steps
    raise ValueError(f"step: {step} is past the last of {config.steps} steps")


@dataclass(frozen=True)
class _Turns:
    """All steps of a recall phase, each [steps]: the set that a step draws from, its number among the steps of that
    set, and the phase's tokens by its end."""

    sets: NDArray[np.int64]
    numbers: NDArray[np.int64]
    tokens: NDArray[np.int64]


@lru_cache(maxsize=16)
def _turns(phase: RecallPhase, stream: str) -> _Turns:
    """The steps of a recall phase. Cached: a step's tokens depend on all steps before it."""
    epoch = np.repeat(np.arange(len(phase.mqar)), [each.steps(phase.rows) for each in phase.mqar])
    places = np.arange(len(epoch))
    sets = np.concatenate([epoch[permute(places, len(epoch), f"{stream} {n}")] for n in range(phase.epochs)])
    numbers = np.empty_like(sets)
    for index in range(len(phase.mqar)):
        numbers[sets == index] = np.arange(np.count_nonzero(sets == index))
    lengths = np.array([each.seq_len for each in phase.mqar])
    return _Turns(sets, numbers, np.cumsum(phase.rows * lengths[sets]))


def pieces(data: DataConfig, train: TrainConfig, processes: int) -> int:
    """Number of pieces into which each of `processes` processes cuts its share of a step's rows.

    No piece is larger than one process would make it with `train.accumulation`. If `processes` divides the
    accumulation, the pieces are exactly those of one process, distributed over all.

    Raises ValueError if the rows of a step cannot be shared equally.
    """
    each = -(-train.accumulation // processes)
    for index, phase in enumerate(data.phases):
        if phase.rows_per_step % (processes * each):
            raise ValueError(
                f"world size: {processes} processes with train.accumulation {train.accumulation} cut a step into "
                f"{processes * each} equal pieces, and data.phases.{index} has {phase.rows_per_step} rows; use a "
                "number of processes that divides them"
            )
    return each
