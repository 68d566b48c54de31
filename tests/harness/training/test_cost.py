"""The cost of training in words: what is counted, and on which basis hours are estimated."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.records.store import write_records
from harness.training.checkpoint import KEEP
from harness.training.cost import cost_here, cost_of, disk_of, measured_speeds
from tests.harness.records.store_records import record


@pytest.fixture(scope="module")
def configs() -> list:
    return expand(load_experiment("table2"), 32000, "0" * 64).runs


def number(pattern: str, line: str) -> float:
    match = re.search(pattern, line)
    assert match is not None, line
    return float(match[1].replace(",", ""))


def test_hours_fall_with_the_rate_and_flops_and_disk_add_up_over_runs(configs: list, tmp_path: Path) -> None:
    speeds = measured_speeds(tmp_path)
    one, two = (cost_of(configs[:1] * n, 989, 0.4, speeds, None) for n in (1, 2))
    for pattern in (r", ([\d.e+]+) FLOPs", r"([\d,.]+) GB of disk", r"([\d,.]+) GPU hours"):
        assert number(pattern, two) == pytest.approx(2 * number(pattern, one), rel=0.01)  # printed with few digits
    faster = cost_of(configs[:1], 989, 0.8, speeds, None)
    hours = r"([\d,.]+) GPU hours"
    assert number(hours, one) == pytest.approx(2 * number(hours, faster), rel=0.01)
    assert "at 40% of 989 TFLOP/s (from the FLOPs, not measured), without evaluation" in one


def test_without_a_rate_hours_are_unknown_and_the_remedy_is_named(configs: list, tmp_path: Path) -> None:
    line = cost_of(configs[:1], None, 0.4, measured_speeds(tmp_path), None)
    assert line.endswith("GPU hours unknown: set `tflops` in a profile, or measure with the suite `throughput`")


def test_sharding_divides_the_memory_of_a_process(configs: list, tmp_path: Path) -> None:
    memory = r"([\d,.]+) GB of memory"
    lines = [cost_of(configs[:1], None, 0.4, measured_speeds(tmp_path), None, 16, s) for s in ("ddp", "fsdp")]
    assert number(memory, lines[1]) < number(memory, lines[0]) / 4
    assert "each of 16 processes (fsdp)" in lines[1]


def test_checkpoints_are_told_by_kind_and_as_pruning_leaves_them(configs: list, tmp_path: Path) -> None:
    line, speeds = disk_of(configs), measured_speeds(tmp_path)
    weights, moments, last = (number(rf"([\d,.]+) GB {what}", line) for what in ("of weights", "of the opt", "in all"))
    assert moments == pytest.approx(2 * weights, rel=0.01)
    whole = number(r"([\d,.]+) GB of disk", cost_of(configs, 989, 0.4, speeds, None))
    assert weights + moments == pytest.approx(whole, rel=0.01)
    assert last == pytest.approx(whole / KEEP, rel=0.01)  # without milestones a run keeps the last KEEP


def test_here_nothing_to_train_costs_nothing(configs: list, tmp_path: Path) -> None:
    assert cost_here([], tmp_path) == "nothing to train"
    assert cost_here(configs[:1], tmp_path).startswith("training: 1 runs, ")


def test_the_latest_speed_of_a_run_that_was_measured_in_several_ways_counts(tmp_path: Path) -> None:
    for hour, place, value in ((1, "throughput+aaaaaaaa", 100.0), (2, "throughput+bbbbbbbb", 200.0)):
        measured = record(suite="throughput", task="train", metric="train_tokens_per_second", value=value, length=128)
        measured = replace(measured, settings={"steps": hour}, time=f"2026-01-01T0{hour}:00:00+00:00")
        write_records(tmp_path / "r1", place, [measured])
    assert measured_speeds(tmp_path)["value"].tolist() == [200.0]
