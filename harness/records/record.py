"""The result record: one measured number with its provenance, and its line of JSON."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any

from harness.records.answers import MOST_ANSWERS, Answer
from harness.records.metrics import METRICS
from harness.records.provenance import Provenance

SCHEMA = 1

SampleKey = tuple[str, str, str, str, int | None]
"""(run, suite, task, metric, length): what identifies a number."""
KEY = ["run", "suite", "task", "metric", "length"]

ROUNDING = 1e-9
"""Largest excess over a metric's range: what sums of float64 round to, with a wide margin."""
SAME_MEAN = 1e-6
"""Largest difference of a value from the mean of its samples, relative to the largest of them. Two float64 sums of a
million scores agree to 1e-10; scores that a suite computes in fp32 agree to 1e-7."""

BASELINE = "baseline"
"""The layout of records that no model made, such as token frequencies."""
NUMBERS = ["metric", "value", "stderr", "n"]
"""The fields that `fault` takes."""
LENGTH_UNIT = "length_unit"
"""The setting that names what `length` counts, if not tokens."""
PROTOCOL_VERSION, FIRST_VERSION = "protocol_version", 1
"""The setting with the version of a measurement's protocol, and its value in records that do not state one."""


@dataclass(frozen=True)
class Measurement:
    """One number that a suite yields.

    metric: a key of METRICS. `value` is stored in that metric's own unit, accuracies as fractions.
    stderr: standard error of `value` over samples, None if it is unknown. n: number of samples.
    length: context length in tokens, or the difficulty in the unit that settings[LENGTH_UNIT] names; None if the task
        has neither.
    stand_in: why this is not the paper's own measurement (another data set, other haystacks); None if it is.
    limit: samples asked for, if fewer than the whole set.
    settings: everything else that must agree before two numbers may be compared: the data set and the SHA-256 of its
        items, prompts, truncation. JSON values only.
    samples: per-item scores in the order of the items; their mean is `value`. For a perplexity, the scores of
        `stats.perplexity`, whose mean is the logarithm of `value`.
    answers: texts of the first items (harness.records.answers.kept), for readers; None if items are no questions.

    Raises ValueError for a metric that is not declared, numbers that `fault` or `samples_fault` finds wrong, or a suite
    that is no plain word.
    """

    suite: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    length: int | None = None
    stand_in: str | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    samples: tuple[float, ...] | None = None
    answers: tuple[Answer, ...] | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: {self.metric!r} is not declared; add it to the `metrics` of its suite")
        why = fault(self.metric, self.value, self.stderr, self.n)
        if why is None and self.samples is not None:
            why = samples_fault(self.metric, self.value, self.n, self.samples)
        if why is None and self.answers is not None and len(self.answers) > min(MOST_ANSWERS, len(self.samples or ())):
            why = f"answers: {len(self.answers)} texts; give those of the first {MOST_ANSWERS} samples at most"
        if why is not None:
            at = "" if self.length is None else f"@{self.length}"
            raise ValueError(f"{self.suite}: {self.task}{at}: {why}")
        if not self.suite or set(self.suite) & set("./\\"):
            raise ValueError(f"suite: {self.suite!r} names a file; use a plain word")


@dataclass(frozen=True, kw_only=True)
class Record(Measurement, Provenance):
    """A measurement of one run, with its provenance. Flat: one line of JSON.

    run: the run's id, which ends with the hash of its resolved configuration. label: the row of a table; runs that
    differ only in their seed share it. preset: the scale.
    """

    run: str
    label: str
    mixer: str
    layout: str
    preset: str
    seed: int
    schema: int = SCHEMA

    @classmethod
    def of(cls, measurement: Measurement, provenance: Provenance, **run: Any) -> Record:
        """The record of a measurement. `run` gives run, label, mixer, layout, preset and seed."""
        return cls(**shallow(measurement), **shallow(provenance), **run)

    @property
    def key(self) -> SampleKey:
        """(run, suite, task, metric, length)."""
        return self.run, self.suite, self.task, self.metric, self.length


def fault(metric: str, value: float, stderr: float | None, n: int) -> str | None:
    """The field of a measured number that cannot be true, with the reason; None if all can."""
    least, most = METRICS[metric].range
    if not math.isfinite(value):
        return f"value: {metric} is {value}, which is no score; look at the model's outputs"
    if not least - ROUNDING <= value <= most + ROUNDING:
        return f"value: {metric} is {value}, and must lie between {least} and {most}"
    if stderr is not None and not 0 <= stderr < math.inf:
        return f"stderr: {metric} has {stderr}; a standard error is finite and at least 0, or None if it is unknown"
    if not isinstance(n, int) or n < 1:
        return f"n: {metric} has {n} samples; a number needs at least one, and whole ones"
    return None


def samples_fault(metric: str, value: float, n: int, samples: Sequence[float]) -> str | None:
    """The reason why per-sample scores do not belong to a number that has no other fault; None if they do."""
    if len(samples) != n:
        return f"samples: {metric} has {len(samples)} scores but n = {n}; give one per sample"
    for number, score in enumerate(samples):
        if not math.isfinite(score):
            return f"samples: {metric} of sample {number} is {score}, which is no score; look at the model's outputs"
    mean = math.fsum(samples) / n
    stated = [value, math.log(value)] if METRICS[metric].logarithmic and value > 0 else [value]
    if min(abs(mean - each) for each in stated) > SAME_MEAN * max(1.0, *map(abs, samples)):
        return f"samples: {metric} is {value}, but its scores have the mean {mean}; give those that it is the mean of"
    return None


def shallow(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, without copying their values."""
    return {f.name: getattr(instance, f.name) for f in fields(instance)}


TEXTS_AND_SCORES = ("samples", "answers")
"""Fields of a record that are kept next to its line."""
HINTS = {name: hint for name, hint in typing.get_type_hints(Record).items() if name not in TEXTS_AND_SCORES}
TYPES: dict[str, tuple[type, ...]] = {
    name: tuple(typing.get_origin(h) or h for h in (typing.get_args(hint) if isinstance(hint, UnionType) else [hint]))
    for name, hint in HINTS.items()
}
"""The types that each field of a line may have. They are matched exactly: bool is a subclass of int, but true is not a
seed."""
ADDED = [f.name for f in fields(Provenance) if f.default is None]
"""Fields that came after the first records, which lack them. They are read as None."""
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


def with_version(settings: dict[str, Any]) -> str:
    """Settings as canonical JSON, with the version of their protocol: the first one where they name none."""
    return CANONICAL.encode({PROTOCOL_VERSION: FIRST_VERSION} | settings)


@lru_cache(maxsize=4096)
def parse_settings(text: str) -> dict[str, Any]:
    """The settings of a record from their JSON text. Many records share a text; do not modify the result."""
    return json.loads(text)


def length_unit(settings: Iterable[str]) -> str | None:
    """Unit of the lengths of records with these settings (JSON text); None for tokens."""
    return next((unit for text in settings if (unit := parse_settings(text).get(LENGTH_UNIT))), None)


def record_line(record: Record) -> str:
    """A record as one line of JSON, without samples and answers. Raises TypeError if settings hold what JSON cannot."""
    row = shallow(record)
    for name in TEXTS_AND_SCORES:
        del row[name]
    row["value"], row["stderr"] = float(record.value), None if record.stderr is None else float(record.stderr)
    return json.dumps(row, allow_nan=False, ensure_ascii=False)


def samples_line(record: Record) -> str:
    """The per-sample scores of a record, and its answers if it has any, as one line of JSON."""
    assert record.samples is not None
    row = {**dict(zip(KEY, record.key, strict=True)), "samples": list(map(float, record.samples))}
    if record.answers is not None:
        row["answers"] = [[each.asked, each.expected, each.said] for each in record.answers]
    return json.dumps(row, allow_nan=False)  # ASCII: texts may hold characters at which Python divides lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises ValueError with file and line for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text ({error}); evaluate that suite again") from None
    try:
        # One call per file instead of one per line, for speed.
        rows = json.loads(f"[{','.join(lines)}]")
    except json.JSONDecodeError:
        rows = [_parse_line(path, number, line) for number, line in enumerate(lines, 1)]
    if len(rows) != len(lines) or not all(type(row) is dict for row in rows):
        rows = [_parse_line(path, number, line) for number, line in enumerate(lines, 1)]
    return rows


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); evaluate that suite again") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: not an object; evaluate that suite again")
    return row


def parse_records(path: Path, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The lines of a file as columns of a frame, `settings` as canonical JSON text, `file` the path.

    Raises ValueError with file, line and field if a line is not a record of this schema.
    """
    rows = [row if row.keys() == TYPES.keys() else dict.fromkeys(ADDED) | row for row in rows]
    for number, row in enumerate(rows, 1):
        if row.get("schema") != SCHEMA or row.keys() != TYPES.keys():
            raise ValueError(f"{path}, line {number}: {_why_not_read(row)}")
    columns = {name: [row[name] for row in rows] for name in TYPES}
    for name in ("value", "stderr"):
        columns[name] = [float(value) if type(value) is int else value for value in columns[name]]
    for name, values in columns.items():
        if not set(map(type, values)) <= set(TYPES[name]):
            number, value = next((n, v) for n, v in enumerate(values, 1) if type(v) not in TYPES[name])
            expected = " or ".join(t.__name__ for t in TYPES[name])
            raise ValueError(f"{path}, line {number}: {name}: {value!r} is not {expected}; evaluate again")
    if unknown := set(columns["metric"]) - METRICS.keys():
        number, metric = next((n, m) for n, m in enumerate(columns["metric"], 1) if m in unknown)
        suite = columns["suite"][number - 1]
        raise ValueError(
            f"{path}, line {number}: metric: {metric!r} is not declared; load the file of the suite {suite!r} first "
            "(--suite-file, suite_files)"
        )
    for number, numbers in enumerate(zip(*(columns[name] for name in NUMBERS), strict=True), 1):
        if (why := fault(*numbers)) is not None:
            raise ValueError(f"{path}, line {number}: {why}; evaluate again")
    del columns["schema"]
    columns["settings"] = [with_version(of) for of in columns["settings"]]
    return {**columns, "file": [str(path)] * len(rows)}


def _why_not_read(row: dict[str, Any]) -> str:
    schema = row.get("schema")
    if type(schema) is int and schema > SCHEMA:
        return f"schema {schema} is newer than this version reads, {SCHEMA}; update the project"
    if schema != SCHEMA:
        return f"schema {schema!r}, this version reads {SCHEMA}; evaluate that suite again"
    missing, unknown = sorted(TYPES.keys() - row.keys()), sorted(row.keys() - TYPES.keys())
    return f"fields missing {missing}, unknown {unknown}; evaluate again"
