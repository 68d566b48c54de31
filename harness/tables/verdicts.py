"""Verdicts on truths, and how many are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MET, NOT_MET, UNDECIDED = "met", "not met", "undecided"

Outcome = Literal["met", "not met", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """Whether a truth holds.

    truth: in words. numbers: values per seed or intervals, numbers of samples, and what is lacking. why: the source of
    the truth; may be empty.
    """

    outcome: Outcome
    truth: str
    numbers: str
    why: str = ""


def tally(verdicts: Sequence[Verdict]) -> str:
    """Count verdicts by outcome: `3 met, 1 not met, 2 undecided`; outcomes without a verdict are left out."""
    outcomes = [verdict.outcome for verdict in verdicts]
    return ", ".join(f"{n} {outcome}" for outcome in (MET, NOT_MET, UNDECIDED) if (n := outcomes.count(outcome)))


def truth_text(verdict: Verdict) -> str:
    """A truth with its source."""
    return f"{verdict.truth} ({verdict.why})" if verdict.why else verdict.truth
