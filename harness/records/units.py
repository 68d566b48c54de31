"""Names of units, the parts of a suite that are measured apart: SUITE, or SUITE@LENGTH for one context length."""

from __future__ import annotations


def unit_name(suite: str, length: int) -> str:
    """Return the name of the unit that measures one length of a suite."""
    return f"{suite}@{length}"


def suite_of(unit: str) -> str:
    """Return the suite that a unit belongs to."""
    return unit.partition("@")[0]
