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
        ({"samples": (0.0, 0.75)}, "acc is 0.5, but its scores have the mean 0.375"),
        ({"samples": (0.5, math.nan)}, "acc of sample 1 is nan"),
        ({"value": math.nan}, "language: piqa: value: acc is nan"),
        ({"value": 2.0}, "acc is 2.0, and must lie between 0.0 and 1.0"),
        ({"metric": "word_perplexity", "value": 0.5}, "must lie between 1 and inf"),
        ({"metric": "word_perplexity", "value": math.inf}, "word_perplexity is inf"),
        ({"stderr": -1.0}, "stderr: acc has -1.0"),
        ({"stderr": math.nan}, "stderr: acc has nan"),
        ({"n": 0}, "n: acc has 0 samples"),
        ({"n": 1.5}, "n: acc has 1.5 samples"),
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
        (lambda line: line.replace('"value": 0.5', '"value": "half"'), "value: 'half' is not float"),
        (lambda line: line.replace('"value": 0.5', '"value": null'), "value: None"),
        (lambda line: line.replace('"seed": 0', '"seed": true'), "seed: True"),
        (lambda line: line.replace('"metric": "acc"', '"metric": "luck"'), "'luck' is not declared"),
        (lambda line: line.replace('"value": 0.5', '"value": 2.0'), "acc is 2.0, and must lie between 0.0 and 1.0"),
        (lambda line: line.replace('"value": 0.5', '"value": NaN'), "value: acc is nan, which is no score"),
        (lambda line: line.replace('"value": 0.5', '"value": "nan"'), "value: 'nan' is not float"),
        (lambda line: line.replace('"stderr": 0.25', '"stderr": -1'), "stderr: acc has -1.0; a standard error is"),
        (lambda line: line.replace('"n": 2', '"n": 0'), "n: acc has 0 samples"),
        (lambda line: line.replace('"n": 2', '"n": 2.5'), "n: 2.5 is not int"),
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


def test_the_scores_of_a_perplexity_are_those_of_its_logarithm() -> None:
    scores = (2.0, 4.0)
    assert record(metric="word_perplexity", value=math.exp(3.0), samples=scores).samples == scores
    with pytest.raises(ValueError, match="its scores have the mean 3.0"):
        record(metric="word_perplexity", value=3.1, samples=scores)


def test_scores_that_are_not_those_of_their_record_are_named_by_file_and_line(tmp_path):
    path = write_records(tmp_path / "r1", "language", [record(samples=(0.0, 1.0))])
    samples = path.with_suffix(".samples.jsonl")
    whole = samples.read_text()
    for old, new, complaint in [
        ("[0.0, 1.0]", "[1.0, 1.0]", "acc is 0.5, but its scores have the mean 1.0"),
        ("[0.0, 1.0]", "[0.5]", "has 1 scores but n = 2"),
        ("[0.0, 1.0]", "[NaN, 1.0]", "acc of sample 0 is nan"),
        ("piqa", "boolq", "no samples"),
    ]:
        samples.write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match=f"{re.escape(str(samples))}, line 1: .*{complaint}"):
            load_samples(tmp_path)


def test_a_line_is_parsed_into_the_fields_that_were_written(tmp_path):
    own = record(length=4, settings={"length_unit": "pairs", "a": 1}, samples=(0.0, 1.0))
    columns = parse_records(tmp_path / "x.jsonl", [json.loads(record_line(own))])
    assert (columns["task"], columns["length"], columns["seed"]) == ([own.task], [own.length], [own.seed])
    assert (
        columns["settings"] == ['{"a": 1, "length_unit": "pairs", "protocol_version": 1}'] and "samples" not in columns
    )
    line = json.loads(samples_line(own))
    assert tuple(line.pop("samples")) == own.samples and tuple(line.values()) == own.key


def test_lengths_count_tokens_unless_a_setting_says_otherwise():
    assert length_unit(['{"items": "x"}']) is None
    assert length_unit(['{"items": "x"}', '{"length_unit": "pairs"}']) == "pairs"


def test_a_baseline_is_a_layout_that_no_model_has():
    from typing import get_args

    from harness.model.language_model import Layout

    assert BASELINE not in get_args(Layout)
