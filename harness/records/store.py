"""The store of records: one JSONL file per run and unit of a suite, and the frame that they load as.

    <run>/records/<place>.jsonl           one flat record per line; see run_folder.place_name for the names of places
    <run>/records/<place>.samples.jsonl   the per-sample scores of the records that have them, and the
                                          answers to the first samples

A unit is written whole or not at all: samples first, then records, then its mark. A collection, which `run.py collect`
makes of an experiment, holds the same in three files: records.parquet, samples.json and answers.json.

Run, suite, task, metric and length identify a number. A number may be found more than once. Copies that agree on the
value and on what was measured count once, and the latest is kept. Copies that disagree are an error, since nothing says
which is right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.files import partial_path, read_json
from harness.records.answers import Answer, ungrouped
from harness.records.metrics import METRICS, Metric
from harness.records.record import (
    ADDED,
    KEY,
    NUMBERS,
    TEXTS_AND_SCORES,
    Record,
    SampleKey,
    fault,
    parse_records,
    parse_settings,
    read_lines,
    record_line,
    samples_fault,
    samples_line,
    with_version,
)
from harness.records.units import suite_of
from harness.run_folder import Collection, RunFolder, read_parquet, record_files

CODE = ["git_commit", "git_dirty", "code_sha256", "code_version", "files_sha256", "plugins"]
INCIDENTAL = ["label", "time", "command", *CODE, "file"]
"""Fields in which two copies of a number may differ: its label, and when and with which code it was measured."""
COLUMNS = [f.name for f in fields(Record) if f.name not in (*TEXTS_AND_SCORES, "schema")] + ["file"]
"""The columns of the frame that `load` returns."""

Source = Path | str | Iterable[Path | str]
"""A folder of runs, a run, a collection, a file of records, or several of these."""


def write_records(run_dir: Path, unit: str, records: Sequence[Record]) -> Path:
    """Replace the records of a unit, whole or not at all. Returns their file. unit: its name or its place.

    Raises ValueError if a record belongs to another suite or two records measure the same thing, and TypeError if
    settings hold what JSON cannot.
    """
    seen: set[SampleKey] = set()
    suite = suite_of(unit)
    for record in records:
        if record.suite != suite:
            raise ValueError(f"suite: a record of {record.suite!r} among those of {suite!r}; write each suite alone")
        if record.key in seen:
            raise ValueError(f"records: {record.key} appears twice; a run has one value per metric")
        seen.add(record.key)
    target, samples_target = RunFolder(run_dir).records(unit), RunFolder(run_dir).samples(unit)
    target.parent.mkdir(parents=True, exist_ok=True)
    with_samples = [record for record in records if record.samples is not None]
    temporary = _write_lines(target, (record_line(record) for record in records))
    try:
        samples_temporary = _write_lines(samples_target, (samples_line(record) for record in with_samples))
    except BaseException:
        temporary.unlink()
        raise
    # A crash between these steps leaves a unit without records, which is run again. It never leaves a mark, or samples,
    # next to other records.
    RunFolder(run_dir).done(unit).unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    os.replace(samples_temporary, samples_target)
    os.replace(temporary, target)
    return target


def _write_lines(target: Path, lines: Iterable[str]) -> Path:
    """Write lines to a temporary file next to `target` and flush it to disk. A failure removes the file."""
    temporary = partial_path(target)
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


def load(
    source: Source, run_ids: Iterable[str] | None = None, unreadable: dict[Path, str] | None = None
) -> pd.DataFrame:
    """Load every record of a source as one tidy frame, each number once (see the module's docstring).

    A row is a record: its fields, `settings` as canonical JSON text, and the `file` it was read from. `length` and
    `limit` are nullable integers.

    run_ids: keep only these runs.
    unreadable: if given, files that cannot be read are added to it with the reason, and the others are returned.

    Raises ValueError with file and line if a file cannot be read or has an unknown schema, and with both files if two
    records disagree on the same number.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    collected = []
    for path in _record_files(source):
        try:
            if path.suffix == ".parquet":
                collected.append(_read_collection(path))
                continue
            read = parse_records(path, read_lines(path))
        except ValueError as error:
            if unreadable is None:
                raise
            unreadable[path] = str(error)
            continue
        for name, values in read.items():
            columns[name] += values
    frames = [_typed(columns)] * bool(columns["run"]) + collected
    frame = pd.concat(frames, ignore_index=True) if frames else _typed(columns)
    if run_ids is not None:
        frame = frame[frame["run"].isin(set(run_ids))].reset_index(drop=True)
    return _without_copies(frame)


def load_samples(source: Source) -> dict[SampleKey, tuple[float, ...]]:
    """The per-sample scores of a source, by (run, suite, task, metric, length)."""
    return {key: scores for path in _record_files(source) for key, scores in _read_samples(path)}


def load_answers(source: Source) -> dict[SampleKey, tuple[Answer, ...]]:
    """The answers to the first items of a source's records, by (run, suite, task, metric, length).

    Records of earlier versions, and of suites whose items are no questions, have none. Raises ValueError with the file
    if they are damaged.
    """
    found: dict[SampleKey, tuple[Answer, ...]] = {}
    for path in _record_files(source):
        file = Collection(path.parent).answers if path.suffix == ".parquet" else path.with_suffix(".samples.jsonl")
        try:
            if path.suffix == ".parquet":
                found |= ungrouped(Collection(path.parent).read_answers())
            elif file.is_file():
                rows = [row for row in read_lines(file) if "answers" in row]
                found |= {tuple(row[name] for name in KEY): tuple(Answer(*a) for a in row["answers"]) for row in rows}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: no answers ({error!r}); evaluate and collect again") from error
    return found


def sample_frame(source: Source) -> pd.DataFrame:
    """The per-sample scores of a source as a frame, one row per score: what identifies its number (KEY), the row that
    it belongs to (label, layout, preset, seed), `item`, counted from 0, and `score`."""
    row = ["label", "layout", "preset", "seed"]
    scores = load_samples(source)
    lengths = [len(own) for own in scores.values()]
    frame = pd.DataFrame(list(scores), columns=KEY).astype({"length": "Int64"})
    frame = frame.merge(load(source)[[*KEY, *row]], on=KEY, how="left").loc[:, [*KEY, *row]]
    frame = frame.loc[frame.index.repeat(lengths)].reset_index(drop=True)
    items = [item for length in lengths for item in range(length)]
    return frame.assign(item=items, score=[score for own in scores.values() for score in own])


def _record_files(source: Source) -> list[Path]:
    """The record files of a source, sorted. Raises ValueError for a path that does not exist."""
    sources = [source] if isinstance(source, str | Path) else list(source)
    files: dict[Path, None] = {}
    for path in map(Path, sources):
        if path.is_file():
            found = [path]
        elif Collection(path).records.is_file():
            found = [Collection(path).records]
        elif path.is_dir():
            found = record_files(path)
        else:
            raise ValueError(
                f"records: {path} does not exist; give a folder of runs, a collection or a file of records"
            )
        files.update(dict.fromkeys(f for f in found if not f.name.endswith(".samples.jsonl")))
    return list(files)


def _typed(columns: dict[str, list[Any]] | pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame(columns, columns=COLUMNS)
    return frame.astype({"value": "float64", "stderr": "float64", "length": "Int64", "limit": "Int64"})


def _without_copies(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the latest copy of each number, at the position of the first. Raises ValueError if copies disagree."""
    repeated = frame.duplicated(KEY, keep=False)
    if not repeated.any():
        return frame
    copies = frame[repeated]
    key = [copies[name] for name in KEY]
    compared = copies.columns.difference([*KEY, *INCIDENTAL], sort=False)
    kinds = copies[compared].groupby(key, dropna=False, sort=False).transform("nunique", dropna=False)
    if (kinds > 1).any(axis=None):
        names = ", ".join(compared[(kinds > 1).any()])
        wrong = copies[(kinds > 1).any(axis=1)]
        same = wrong[wrong.groupby(KEY, dropna=False, sort=False).ngroup() == 0]
        number = ", ".join(str(v) for v in wrong[KEY].iloc[0] if not pd.isna(v))
        files = " and ".join(dict.fromkeys(same["file"]))
        raise ValueError(f"records: {number}: {files} disagree on {names}; load only one of them")
    position = pd.Series(copies.index, copies.index).groupby(key, dropna=False).transform("min")
    latest = copies.sort_values("time", kind="stable").drop_duplicates(KEY, keep="last")
    latest = latest.set_axis(position[latest.index])
    return pd.concat([frame[~repeated], latest]).sort_index().reset_index(drop=True)


def _read_collection(path: Path) -> pd.DataFrame:
    """The records of a collection, whose own metrics are declared. Raises ValueError if another version wrote it."""
    frame = read_parquet(path)
    frame = frame.assign(**{name: None for name in ADDED if name not in frame})
    expected = set(COLUMNS) - {"file"}
    if set(frame.columns) != expected:
        missing, unknown = sorted(expected - set(frame.columns)), sorted(set(frame.columns) - expected)
        raise ValueError(f"{path}: columns missing {missing}, unknown {unknown}; collect again with this version")
    declared = Collection(path.parent).metrics
    if declared.exists():  # by suites from elsewhere, which need not be loaded to read their records
        try:
            for name, description in read_json(declared, "run collect again").items():
                METRICS.setdefault(name, Metric(**description))
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{declared}: damaged ({error}); run collect again") from None
    frame = _typed(frame.assign(file=str(path), settings=[with_version(parse_settings(s)) for s in frame["settings"]]))
    if undeclared := sorted(set(frame["metric"]) - METRICS.keys()):
        raise ValueError(f"{path}: metric: {undeclared[0]!r} is not declared; collect again with this version")
    for number, (metric, value, stderr, n) in enumerate(frame[NUMBERS].itertuples(index=False), 1):
        if (why := fault(metric, value, None if pd.isna(stderr) else stderr, n)) is not None:
            raise ValueError(f"{path}, row {number}: {why}; evaluate and collect again")
    return frame


def _read_samples(path: Path) -> Iterator[tuple[SampleKey, tuple[float, ...]]]:
    """The scores that belong to a file of records, if it has any.

    Raises ValueError with file and line for scores that are no numbers, or not those of their record.
    """
    if path.suffix == ".parquet":
        samples_path = Collection(path.parent).samples
        pairs = Collection(path.parent).read_samples()
        rows = [dict(zip(KEY, key, strict=True)) | {"samples": scores} for key, scores in pairs]
    else:
        samples_path = path.with_suffix(".samples.jsonl")
        rows = read_lines(samples_path) if samples_path.exists() else []
    if not rows:
        return
    recorded = _read_collection(path) if path.suffix == ".parquet" else parse_records(path, read_lines(path))
    lengths = (None if pd.isna(length) else length for length in recorded["length"])
    keys = zip(*(recorded[name] for name in KEY[:-1]), lengths, strict=True)
    numbers = dict(zip(keys, zip(*(recorded[name] for name in ("metric", "value", "n")), strict=True), strict=True))
    for number, row in enumerate(rows, 1):
        try:
            key, scores = tuple(row[name] for name in KEY), tuple(map(float, row["samples"]))
            why = samples_fault(*numbers[key], scores)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{samples_path}, line {number}: no samples ({error!r}); evaluate again") from error
        if why is not None:
            raise ValueError(f"{samples_path}, line {number}: {why}; evaluate again")
        yield key, scores
