"""Verdicts are counted by outcome."""

from harness.tables.verdicts import MET, UNDECIDED, Verdict, tally


def test_outcomes_without_a_verdict_are_not_counted() -> None:
    assert tally([Verdict(outcome, "", "") for outcome in (UNDECIDED, MET, MET)]) == "2 met, 1 undecided"
    assert tally([]) == ""
