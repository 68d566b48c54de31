"""Metrics: direction, scale and name are declared once; suites may add theirs but not redefine any."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from harness.records.metrics import BUILT_IN, METRICS, Metric, declare, without_details


def test_percent_is_the_factor_and_the_direction_the_arrow():
    assert (METRICS["acc"].scale, METRICS["acc"].arrow) == (100, "↑")
    assert (METRICS["stale"].scale, METRICS["stale"].arrow) == (100, "↓")
    assert (METRICS["word_perplexity"].scale, METRICS["word_perplexity"].arrow) == (1, "↓")


def test_only_perplexities_are_shown_on_a_logarithmic_scale():
    assert {name for name, metric in METRICS.items() if metric.logarithmic} == {"word_perplexity", "perplexity"}


def test_speeds_and_memory_are_comparable_on_one_device_only():
    assert METRICS["decode_tokens_per_second"].of_device and METRICS["peak_memory_bytes"].of_device
    assert not METRICS["acc"].of_device and not METRICS["state_bytes"].of_device


def test_a_fraction_lies_between_0_and_1_unless_its_metric_says_otherwise():
    assert METRICS["acc"].range == METRICS["mfu"].range == (0, 1)
    assert METRICS["word_perplexity"].range == (1, math.inf) and METRICS["needle_logprob"].range == (-math.inf, 0)
    assert Metric("change", higher_is_better=True, percent=True, least=-1).range == (-1, 1)


def test_a_suite_adds_metrics_and_redefines_none(monkeypatch):
    monkeypatch.setattr("harness.records.metrics.METRICS", dict(METRICS))
    from harness.records import metrics

    own = Metric("luck", higher_is_better=True)
    declare({"luck": own})
    declare({"luck": own, "acc": METRICS["acc"]})
    assert metrics.METRICS["luck"] == own and "luck" not in BUILT_IN
    with pytest.raises(ValueError, match="metrics: 'acc' is declared already"):
        declare({"acc": own})


def test_details_of_another_number_can_be_left_out():
    frame = pd.DataFrame({"metric": ["acc", "acc_by_position", "stale", "acc_by_distance"], "value": range(4)})
    assert without_details(frame)["value"].tolist() == [0, 2]
    assert without_details(frame[:0]).empty
