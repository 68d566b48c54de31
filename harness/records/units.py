"""Names of suites and of units, the parts of a suite that are measured apart: SUITE, or SUITE@LENGTH."""

from __future__ import annotations

from harness.run_folder import unit_of

SUITES = ("language", "ruler", "retrieval", "recall", "mqar", "state_tracking", "throughput", "decode")
"""Built-in suites, in the order in which tables show them; those from outside follow."""


def unit_name(suite: str, length: int) -> str:
    """Return the name of the unit that measures one length of a suite."""
    return f"{suite}@{length}"


def suite_of(unit: str) -> str:
    """Return the suite that a unit, or a place, belongs to."""
    return unit_of(unit).partition("@")[0]
