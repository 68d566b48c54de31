"""Names of units: a suite, or one of its lengths."""

from __future__ import annotations

from harness.records.units import suite_of, unit_name


def test_a_unit_names_its_suite_and_length():
    assert unit_name("ruler", 4096) == "ruler@4096"
    assert suite_of("ruler@4096") == suite_of("ruler") == "ruler"
