"""The result record and its store: one JSONL file per run and unit of a suite, written whole or not at all.

    <run>/records/<unit>.jsonl           one record a line, flat; a unit is SUITE or SUITE@LENGTH
    <run>/records/<unit>.samples.jsonl   the per-sample scores of those records that have them

The samples are written first and the records last, so a unit whose records exist is complete. A collection, which
`run.py collect` makes of an experiment, is the same as two files: records.parquet and samples.json.

A number is identified by run, suite, task, metric and length. Where a number is found twice, copies that say the same
of its value and of what was measured count once, and the one measured last is kept; copies that do not agree are an
error, since nothing says which is right.
"""

from __future__ import annotations

import json
import math
import os
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any

import pandas as pd

from harness.records.metrics import METRICS
from harness.records.provenance import Provenance

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
            raise ValueError(f"metric: {self.metric!r} is not declared; add it to harness/records/metrics.py")
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


KEY = ["run", "suite", "task", "metric", "length"]
INCIDENTAL = ["label", "time", "command", "git_commit", "git_dirty", "file"]
"""What two copies of a number may differ in: how it is called, and when and by which checkout it was measured again."""
COLUMNS = [f.name for f in fields(Record) if f.name not in ("samples", "schema")] + ["file"]
HINTS = {name: hint for name, hint in typing.get_type_hints(Record).items() if name != "samples"}
TYPES: dict[str, tuple[type, ...]] = {
    name: tuple(typing.get_origin(h) or h for h in (typing.get_args(hint) if isinstance(hint, UnionType) else [hint]))
    for name, hint in HINTS.items()
}
"""The types that each field of a line may have. Exact ones: bool is a subclass of int, but true is no seed."""
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


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
    row = shallow(record)
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


Source = Path | str | Iterable[Path | str]


def load(
    source: Source, run_ids: Iterable[str] | None = None, unreadable: dict[Path, str] | None = None
) -> pd.DataFrame:
    """Every record under a folder of runs, a run, a collection, a file, or several of these, as one tidy frame.

    A row is a record: its fields, `settings` as canonical JSON text, and the `file` it was read from; `length`,
    `limit` are nullable integers. Copies count once, as the module says. run_ids keeps those runs. unreadable: where
    given, a file that cannot be read is entered there with the reason, and the others are returned.
    Raises ValueError naming file and line of what cannot be read, of a schema that is not known, and of two records
    that disagree on the same number.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    collected = []
    for path in record_files(source):
        try:
            if path.suffix == ".parquet":
                collected.append(read_collection(path))
                continue
            read = parse_records(path, read_lines(path))
        except ValueError as error:
            if unreadable is None:
                raise
            unreadable[path] = str(error)
            continue
        for name, values in read.items():
            columns[name] += values
    frames = [typed(columns)] * bool(columns["run"]) + collected
    frame = pd.concat(frames, ignore_index=True) if frames else typed(columns)
    if run_ids is not None:
        frame = frame[frame["run"].isin(set(run_ids))].reset_index(drop=True)
    return once(frame)


def typed(columns: dict[str, list[Any]] | pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame(columns, columns=COLUMNS)
    return frame.astype({"value": "float64", "stderr": "float64", "length": "Int64", "limit": "Int64"})


def once(frame: pd.DataFrame) -> pd.DataFrame:
    """Each number once, the copy measured last, in the place of the first; ValueError where copies disagree."""
    repeated = frame.duplicated(KEY, keep=False)
    if not repeated.any():
        return frame
    copies = frame[repeated]
    key = [copies[name] for name in KEY]
    told = copies.columns.difference([*KEY, *INCIDENTAL], sort=False)
    kinds = copies[told].groupby(key, dropna=False, sort=False).transform("nunique", dropna=False)
    if (kinds > 1).any(axis=None):
        names = ", ".join(told[(kinds > 1).any()])
        wrong = copies[(kinds > 1).any(axis=1)]
        same = wrong[wrong.groupby(KEY, dropna=False, sort=False).ngroup() == 0]
        number = ", ".join(str(v) for v in wrong[KEY].iloc[0] if not pd.isna(v))
        files = " and ".join(dict.fromkeys(same["file"]))
        raise ValueError(f"records: {number}: {files} disagree on {names}; load only one of them")
    place = pd.Series(copies.index, copies.index).groupby(key, dropna=False).transform("min")
    latest = copies.sort_values("time", kind="stable").drop_duplicates(KEY, keep="last")
    latest = latest.set_axis(place[latest.index])
    return pd.concat([frame[~repeated], latest]).sort_index().reset_index(drop=True)


def read_collection(path: Path) -> pd.DataFrame:
    """The records of a collection, or ValueError where it is of another version."""
    frame = pd.read_parquet(path)
    expected = set(COLUMNS) - {"file"}
    if set(frame.columns) != expected:
        missing, unknown = sorted(expected - set(frame.columns)), sorted(set(frame.columns) - expected)
        raise ValueError(f"{path}: columns missing {missing}, unknown {unknown}; collect again with this version")
    return typed(frame.assign(file=str(path)))


def load_samples(source: Source) -> dict[SampleKey, tuple[float, ...]]:
    """The per-sample scores under the same sources as `load`, by (run, suite, task, metric, length)."""
    return {key: scores for path in record_files(source) for key, scores in read_samples(path)}


def read_samples(path: Path) -> Iterator[tuple[SampleKey, tuple[float, ...]]]:
    """The scores that belong to a file of records, if it has some."""
    if path.suffix == ".parquet":
        kept = path.with_name("samples.json")
        for key, scores in json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else ():
            yield tuple(key), tuple(scores)
        return
    samples_path = path.with_suffix(".samples.jsonl")
    if not samples_path.exists():
        return
    for number, row in enumerate(read_lines(samples_path), 1):
        try:
            yield tuple(row[name] for name in KEY), tuple(decode(s) for s in row["samples"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{samples_path}, line {number}: no samples ({error}); evaluate again") from error


def record_files(source: Source) -> list[Path]:
    """The files of records that a source means, sorted; ValueError for a path that does not exist."""
    sources = [source] if isinstance(source, str | Path) else list(source)
    files: dict[Path, None] = {}
    for path in map(Path, sources):
        if path.is_file():
            found = [path]
        elif (path / "records.parquet").is_file():
            found = [path / "records.parquet"]
        elif path.is_dir():
            # A run, a folder of runs, a folder of experiments; not deeper, where snapshots of code would be.
            found = sorted(f for depth in ("", "*/", "*/*/") for f in path.glob(f"{depth}records/*.jsonl"))
        else:
            raise ValueError(
                f"records: {path} does not exist; give a folder of runs, a collection or a file of records"
            )
        files.update(dict.fromkeys(f for f in found if not f.name.endswith(".samples.jsonl")))
    return list(files)


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        rows = json.loads(f"[{','.join(lines)}]")
    except json.JSONDecodeError:
        rows = [parse_line(path, number, line) for number, line in enumerate(lines, 1)]
    if len(rows) != len(lines) or not all(type(row) is dict for row in rows):
        rows = [parse_line(path, number, line) for number, line in enumerate(lines, 1)]
    return rows


def parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); evaluate that suite again") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: not an object; evaluate that suite again")
    return row


def parse_records(path: Path, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The lines of a file as columns of the frame, or ValueError naming line and field."""
    for number, row in enumerate(rows, 1):
        if row.get("schema") != SCHEMA or row.keys() != TYPES.keys():
            raise ValueError(f"{path}, line {number}: {why_not_read(row)}")
    columns = {name: [row[name] for row in rows] for name in TYPES}
    for name in ("value", "stderr"):
        for number, value in enumerate(columns[name]) if set(map(type, columns[name])) != {float} else ():
            try:
                columns[name][number] = value if type(value) is float else decode(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number + 1}: value or stderr: {error}; evaluate again") from error
    for name, values in columns.items():
        if not set(map(type, values)) <= set(TYPES[name]):
            number, value = next((n, v) for n, v in enumerate(values, 1) if type(v) not in TYPES[name])
            expected = " or ".join(t.__name__ for t in TYPES[name])
            raise ValueError(f"{path}, line {number}: {name}: {value!r} is not {expected}; evaluate again")
    if unknown := set(columns["metric"]) - METRICS.keys():
        number, metric = next((n, m) for n, m in enumerate(columns["metric"], 1) if m in unknown)
        raise ValueError(f"{path}, line {number}: metric: {metric!r} is not declared in harness/records/metrics.py")
    del columns["schema"]
    columns["settings"] = list(map(CANONICAL.encode, columns["settings"]))
    return {**columns, "file": [str(path)] * len(rows)}


def why_not_read(row: dict[str, Any]) -> str:
    schema = row.get("schema")
    if type(schema) is int and schema > SCHEMA:
        return f"schema {schema} is newer than this version reads, {SCHEMA}; update the project"
    if schema != SCHEMA:
        return f"schema {schema!r}, this version reads {SCHEMA}; evaluate that suite again"
    missing, unknown = sorted(TYPES.keys() - row.keys()), sorted(row.keys() - TYPES.keys())
    return f"fields missing {missing}, unknown {unknown}; evaluate again"
