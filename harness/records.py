"""The result record and its store: one JSONL file per run and unit of a suite, written whole or not at all.

    <run>/records/<unit>.jsonl           one record a line, flat; a unit is SUITE or SUITE@LENGTH
    <run>/records/<unit>.samples.jsonl   the per-sample scores of those records that have them

The samples are written first and the records last, so a unit whose records exist is complete.
"""

from __future__ import annotations

import json
import math
import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any

import pandas as pd

from harness.metrics import METRICS
from harness.provenance import Provenance, provenance

__all__ = ["Measurement", "Provenance", "Record", "load", "load_samples", "provenance", "write_records"]

SCHEMA = 1
SampleKey = tuple[str, str, str, str, int | None]
"""(run, suite, task, metric, length): what identifies a number."""


@dataclass(frozen=True)
class Measurement:
    """One number that a suite yields.

    metric: a key of METRICS; `value` is stored in that metric's own unit, accuracies as fractions.
    stderr: standard error of `value` over samples, None where it is not known. n: samples behind it.
    length: context length in tokens, where the task has one.
    stand_in: why this is not the paper's own measurement (another data set, other haystacks), None where it is.
    limit: samples asked for when fewer than the whole set.
    settings: whatever else must agree before two numbers may be compared: data set and sha256 of its items,
        prompts, truncation. JSON values only.
    samples: scores in the order of the items, whose mean is `value`; of a perplexity those that
        `stats.perplexity` gives, whose mean is the logarithm of `value`.
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

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: {self.metric!r} is not declared; add it to harness/metrics.py")
        if self.samples is not None and len(self.samples) != self.n:
            raise ValueError(f"samples: {self.task} has {len(self.samples)} scores but n = {self.n}; give one a sample")
        if not self.suite or set(self.suite) & set("./\\"):
            raise ValueError(f"suite: {self.suite!r} names a file; use a plain word")


@dataclass(frozen=True, kw_only=True)
class Record(Measurement, Provenance):
    """A measurement of one run, with its birth certificate. Flat, one line of JSON.

    run: the hash of the resolved configuration. label: the row of a table; runs that differ in nothing but the
    seed share it. preset: the scale.
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
        """The record of a measurement; `run` gives run, label, mixer, layout, preset and seed."""
        return cls(**shallow(measurement), **shallow(provenance), **run)

    @property
    def key(self) -> SampleKey:
        return self.run, self.suite, self.task, self.metric, self.length


def shallow(instance: Any) -> dict[str, Any]:
    return {f.name: getattr(instance, f.name) for f in fields(instance)}


COLUMNS = [f.name for f in fields(Record) if f.name not in ("samples", "schema")] + ["file"]
HINTS = {name: hint for name, hint in typing.get_type_hints(Record).items() if name != "samples"}
TYPES: dict[str, tuple[type, ...]] = {
    name: tuple(typing.get_origin(h) or h for h in (typing.get_args(hint) if isinstance(hint, UnionType) else [hint]))
    for name, hint in HINTS.items()
}
"""The types that each field of a line may have. Exact ones: bool is a subclass of int, but true is no seed."""


def write_records(run_dir: Path, unit: str, records: Sequence[Record]) -> Path:
    """Replace the records of a suite, or of one length of it, by these, whole or not at all; returns their file.

    Raises ValueError when a record belongs to another suite or two records measure the same thing, and TypeError
    when settings hold what JSON cannot.
    """
    seen: set[SampleKey] = set()
    suite = unit.partition("@")[0]
    for record in records:
        if record.suite != suite:
            raise ValueError(f"suite: a record of {record.suite!r} among those of {suite!r}; write each suite alone")
        if record.key in seen:
            raise ValueError(f"records: {record.key} appears twice; a run has one value of a metric")
        seen.add(record.key)
    folder = run_dir / "records"
    folder.mkdir(parents=True, exist_ok=True)
    target, samples_target = folder / f"{unit}.jsonl", folder / f"{unit}.samples.jsonl"
    with_samples = [record for record in records if record.samples is not None]
    temporary = write_lines(target, (record_line(record) for record in records))
    try:
        samples_temporary = write_lines(samples_target, (samples_line(record) for record in with_samples))
    except BaseException:
        temporary.unlink()
        raise
    # Between these steps a crash leaves a suite without records, which is run again, never records beside the
    # samples of others.
    target.unlink(missing_ok=True)
    os.replace(samples_temporary, samples_target)
    os.replace(temporary, target)
    return target


def write_lines(target: Path, lines: Iterable[str]) -> Path:
    """Write lines to a temporary file beside `target`, flushed to disk; nothing is left behind by a failure."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def record_line(record: Record) -> str:
    row = asdict(record)
    del row["samples"]
    row["value"], row["stderr"] = encode(record.value), encode(record.stderr)
    return json.dumps(row, allow_nan=False, ensure_ascii=False)


def samples_line(record: Record) -> str:
    assert record.samples is not None
    row = dict(zip(("run", "suite", "task", "metric", "length"), record.key, strict=True))
    return json.dumps({**row, "samples": [encode(s) for s in record.samples]}, allow_nan=False, ensure_ascii=False)


def encode(value: float | None) -> float | str | None:
    """JSON has no number for NaN and the infinities; they are written as "nan", "inf" and "-inf"."""
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else str(value)


def decode(value: float | str | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def load(source: Path | str | Iterable[Path | str], run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """Every record under a folder of runs, a run, a file, or several of these, as one tidy frame.

    A row is a record: its fields, `settings` as canonical JSON text, and the `file` it was read from; `length`,
    `limit` are nullable integers. Records that appear twice word for word count once. run_ids keeps those runs.
    Raises ValueError naming file and line of whatever cannot be read, of a schema that is not known, and of
    two records that disagree on the same number.
    """
    wanted = None if run_ids is None else set(run_ids)
    rows: dict[SampleKey, dict[str, Any]] = {}
    for path in record_files(source):
        for number, row in read_lines(path):
            row = parse_record(row, f"{path}, line {number}")
            if wanted is not None and row["run"] not in wanted:
                continue
            key = (row["run"], row["suite"], row["task"], row["metric"], row["length"])
            known = rows.get(key)
            if known is None:
                rows[key] = {**row, "file": str(path)}
            elif not same_row(known, row):
                raise ValueError(
                    f"{path}, line {number}: disagrees with {known['file']} on {key}; load only one of the two"
                )
    frame = pd.DataFrame(list(rows.values()), columns=COLUMNS)
    return frame.astype({"value": "float64", "stderr": "float64", "length": "Int64", "limit": "Int64"})


def load_samples(
    source: Path | str | Iterable[Path | str], run_ids: Iterable[str] | None = None
) -> dict[SampleKey, tuple[float, ...]]:
    """The per-sample scores under the same sources as `load`, by (run, suite, task, metric, length)."""
    wanted = None if run_ids is None else set(run_ids)
    found: dict[SampleKey, tuple[float, ...]] = {}
    for path in record_files(source):
        samples_path = path.with_suffix(".samples.jsonl")
        if not samples_path.exists():
            continue
        for number, row in read_lines(samples_path):
            try:
                key = (row["run"], row["suite"], row["task"], row["metric"], row["length"])
                scores = tuple(decode(s) for s in row["samples"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{samples_path}, line {number}: no samples ({error}); evaluate again") from error
            if wanted is None or row["run"] in wanted:
                found[key] = scores
    return found


def record_files(source: Path | str | Iterable[Path | str]) -> list[Path]:
    """The files of records that a source means, sorted; ValueError for a path that does not exist."""
    sources = [source] if isinstance(source, str | Path) else list(source)
    files: dict[Path, None] = {}
    for path in map(Path, sources):
        if path.is_file():
            found = [path]
        elif path.is_dir():
            # A run, a folder of runs, a folder of experiments; not deeper, where snapshots of code would be.
            found = sorted(f for depth in ("", "*/", "*/*/") for f in path.glob(f"{depth}records/*.jsonl"))
        else:
            raise ValueError(f"records: {path} does not exist; give a folder of runs or a file of records")
        files.update(dict.fromkeys(f for f in found if not f.name.endswith(".samples.jsonl")))
    return list(files)


def read_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}); evaluate that suite again") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not an object; evaluate that suite again")
            yield number, row


def parse_record(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A line of JSON as a row of the frame, or ValueError naming the line and the field."""
    schema = row.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{where}: schema {schema!r}, this version reads {SCHEMA}; evaluate that suite again")
    missing, unknown = TYPES.keys() - row.keys(), row.keys() - TYPES.keys()
    if missing or unknown:
        raise ValueError(f"{where}: fields missing {sorted(missing)}, unknown {sorted(unknown)}; evaluate again")
    try:
        row = {**row, "value": decode(row["value"]), "stderr": decode(row["stderr"])}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: value or stderr: {error}; evaluate again") from error
    for name, value in row.items():
        if type(value) not in TYPES[name]:
            expected = " or ".join(t.__name__ for t in TYPES[name])
            raise ValueError(f"{where}: {name}: {value!r} is not {expected}; evaluate again")
    if row["metric"] not in METRICS:
        raise ValueError(f"{where}: metric: {row['metric']!r} is not declared in harness/metrics.py")
    del row["schema"]
    row["settings"] = json.dumps(row["settings"], sort_keys=True, ensure_ascii=False)
    return row


def same_row(known: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether two rows agree in every field; NaN agrees with NaN."""
    return all(known[k] == v or (v != v and known[k] != known[k]) for k, v in row.items())
