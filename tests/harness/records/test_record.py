"""A record refuses what no table could read, and its line of JSON says the same as it does."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from harness.records.record import BASELINE, length_unit, parse_records, record_line, samples_line
from harness.records.store import load, load_samples, write_records
from tests.harness.records.store_records import record


def test_a_measurement_refuses_what_no_table_could_read():
    good = record()
    for change, complaint in [
        ({"metric": "luck"}, "'luck' is not declared"),
        ({"samples": (1.0,)}, "has 1 scores but n = 2"),
        ({"suite": "../x"}, "names a file"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            replace(good, **change)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda line: line[: len(line) // 2], "not JSON"),
        (lambda line: "[1]", "not an object"),
        (
            lambda line: line.replace('"schema": 1', '"schema": 99'),
            "schema 99 is newer than this version reads, 1; update the project",
        ),
        (lambda line: line.replace('"task"', '"tusk"'), r"missing \['task'\], unknown \['tusk'\]"),
        (lambda line: line.replace('"value": 0.5', '"value": "half"'), "value or stderr"),
        (lambda line: line.replace('"value": 0.5', '"value": null'), "value: None"),
        (lambda line: line.replace('"seed": 0', '"seed": true'), "seed: True"),
        (lambda line: line.replace('"metric": "acc"', '"metric": "luck"'), "'luck' is not declared"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, damage, complaint):
    path = write_records(tmp_path / "r1", "language", [record(), record(task="boolq")])
    first, second = path.read_text().splitlines()
    damaged = damage(second)
    assert damaged != second
    path.write_text(f"{first}\n{damaged}\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 2: .*{complaint}"):
        load(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_stored_as_such_in_valid_json(tmp_path, value):
    path = write_records(tmp_path / "r1", "language", [record(value=value, n=1, samples=(value,))])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    assert load(tmp_path)["value"].iloc[0] == pytest.approx(value, nan_ok=True)
    (scores,) = load_samples(tmp_path).values()
    assert scores == pytest.approx((value,), nan_ok=True)


def test_a_line_is_parsed_into_the_fields_that_were_written(tmp_path):
    own = record(length=4, settings={"length_unit": "pairs", "a": 1}, samples=(0.0, 1.0))
    columns = parse_records(tmp_path / "x.jsonl", [json.loads(record_line(own))])
    assert (columns["task"], columns["length"], columns["seed"]) == ([own.task], [own.length], [own.seed])
    assert columns["settings"] == ['{"a": 1, "length_unit": "pairs"}'] and "samples" not in columns
    line = json.loads(samples_line(own))
    assert tuple(line.pop("samples")) == own.samples and tuple(line.values()) == own.key


def test_lengths_count_tokens_unless_a_setting_says_otherwise():
    assert length_unit(['{"items": "x"}']) is None
    assert length_unit(['{"items": "x"}', '{"length_unit": "pairs"}']) == "pairs"


def test_a_baseline_is_a_layout_that_no_model_has():
    from typing import get_args

    from harness.model.language_model import Layout

    assert BASELINE not in get_args(Layout)
