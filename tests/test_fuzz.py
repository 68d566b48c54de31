"""Broken input of every kind: one line that names it, exit code 1 or 2, and nothing half-written.

MIXERBENCH_FUZZ is the number of cases of each kind (a few dozen by default).
"""

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.records.store import load
from run import app
from slurm.profile import PROFILES

pytestmark = pytest.mark.long

CASES = int(os.environ.get("MIXERBENCH_FUZZ", "40"))
bounded = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # what fails is small as it is, and each case starts a command
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
EXPERIMENT: dict[str, Any] = {
    "name": "fuzzed",
    "preset": "cpu-600k",
    "mixers": ["attention", {"mixer": "attention", "label": "narrow", "options": {"window": 64}}],
    "seeds": [0, 1],
    "data": {"phases": [{"tokens": 512, "seq_len": 64, "rows": {"text": 1, "mqar": 1}}]},
    "train": {"lr": 1e-3, "warmup_ratio": 0.1, "betas": [0.9, 0.95], "threads": 1},
    "suites": {"recall": {"pairs": [2, 4], "samples": 4}},
    "tuning": {
        "grid": {"train.lr": [1e-3, 3e-3]},
        "seeds": [100, 101],
        "share": 0.5,
        "choose": {"suite": "recall", "task": "mqar", "metric": "acc"},
    },
    "truths": [{"threshold": "mqar_acc", "of": ["attention"], "at": [2], "at_least": 99}],
    "scales": {"wide": {"seeds": [0], "train": {"lr": 2e-3}}},
}

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 64, 10**6, 2**31, 2**63, 10**30, -(10**30)]),
    st.sampled_from([0.0, -0.5, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(["", " ", "x", "gdn2", "inf", "1e-3", "../..", "/", "a\nb", "[/red]", "é💥", "\x00", "{}"]),
    st.text(max_size=8),
    st.lists(st.integers(-2, 3), max_size=3),
    st.dictionaries(st.sampled_from(["text", "mixer", "label", "x", "train.lr"]), st.integers(-1, 2), max_size=2),
)


@st.composite
def changed(draw: st.DrawFn, content: Any, most: int = 2) -> Any:
    """Plain values with one or two places replaced, removed, moved a level down or joined by an unknown key."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, most))):
        parent, key, at = None, None, content
        while isinstance(at, dict | list) and at and (parent is None or draw(st.booleans())):
            key = draw(st.sampled_from(sorted(at, key=str) if isinstance(at, dict) else range(len(at))))
            parent, at = at, at[key]
        if parent is None:
            return draw(junk)
        how = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "add"]))
        if how == "remove":
            del parent[key]
        elif how == "add" and isinstance(parent, dict):
            parent[draw(st.text(min_size=1, max_size=6))] = draw(junk)
        else:
            parent[key] = [at] if how == "wrap" else draw(junk)
    return content


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are cut off, or have a piece replaced, doubled or removed."""
    begin = draw(st.integers(0, max(0, len(content) - 1)))
    end = draw(st.integers(begin, min(len(content), begin + 40)))
    piece = draw(
        st.sampled_from([b"", b"\x00", b"\xff\xfe", b"}", b"[", b"\n", b"NaN", b"-1", b"1e999", b'"', b": ", b"\t"])
    )
    how = draw(st.sampled_from(["cut", "replace", "double"]))
    if how == "cut":
        return content[:begin]
    return content[:begin] + (piece if how == "replace" else content[begin:end] * 2) + content[end:]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def check(result: Result, *names: str) -> None:
    """A command either did what it should, or said in one line what is wrong. names: of the files at fault."""
    said = f"{result.output!r} {result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit), said
    assert result.exit_code in (0, 1, 2), said
    if result.exit_code == 0 or result.stderr.startswith("Usage:"):  # typer's own words on wrong options
        return
    lines = result.stderr.strip("\n").split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], said
    if re.search(r"\b[A-Z]\w*(Error|Exception)\b", errors[0]):
        assert any(name in errors[0] for name in names), said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@bounded
@given(content=changed(EXPERIMENT))
def test_experiment_files(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    check(call("submit", str(path), "--runs", str(tmp_path / "runs"), "--dry-run"), path.name)
    assert {entry.name for entry in tmp_path.iterdir()} == {"fuzzed.yaml"}


@bounded
@given(content=spoiled(yaml.safe_dump(EXPERIMENT).encode()))
def test_texts_of_experiment_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_bytes(content)
    check(call("status", str(path), "--runs", str(tmp_path / "runs")), path.name)
    assert {entry.name for entry in tmp_path.iterdir()} == {"fuzzed.yaml"}


FIELDS = ["seeds", "train.lr", "train.betas", "train", "data.phases.0.tokens", "suites.recall.pairs", "mixers", "name"]
TEXTS = [
    "",
    "1",
    "-1",
    "[",
    "[1, 2",
    "{a: 1}",
    "{a: 1, a: 2}",
    "inf",
    ".nan",
    "null",
    "!!python/object:os.system x",
    "*a",
]


@bounded
@given(
    key=st.one_of(st.sampled_from(FIELDS), st.text(max_size=10)),
    value=st.one_of(st.sampled_from(TEXTS), st.text(max_size=8)),
)
def test_overrides(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    check(call("status", str(path), "--runs", str(tmp_path / "runs"), "--set", f"{key}={value}"), path.name, "--set")


@bounded
@given(content=changed(yaml.safe_load((PROFILES / "template.yaml").read_text(encoding="utf-8"))))
def test_profiles(content: Any, tmp_path: Path) -> None:
    experiment, path = tmp_path / "fuzzed.yaml", tmp_path / "site.yaml"
    experiment.write_text(yaml.safe_dump(EXPERIMENT | {"tuning": None, "truths": []}))
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    runs = tmp_path / "runs"
    check(call("submit", str(experiment), "--runs", str(runs), "--cluster", str(path), "--dry-run"), path.name)
    assert not runs.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small comparison that is trained, evaluated and collected."""
    folder = tmp_path_factory.mktemp("fuzz")
    content = EXPERIMENT | {"tuning": None, "truths": [], "mixers": ["attention"], "seeds": [0]}
    (folder / "fuzzed.yaml").write_text(yaml.safe_dump(content))
    for command in ("submit", "collect"):
        more = ["--cluster", "debug"] if command == "submit" else []
        result = call(command, str(folder / "fuzzed.yaml"), "--runs", str(folder / "runs"), *more)
        assert result.exit_code == 0, result.output
    yield folder


@bounded
@given(data=st.data())
def test_records(data: st.DataObject, finished: Path, tmp_path: Path) -> None:
    (source,) = (path for path in finished.glob("runs/*/records/*.jsonl") if ".samples" not in path.name)
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "attention-attention-s0-00000000" / "records" / source.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if data.draw(st.booleans()):
        line = data.draw(changed(lines[0]))
        path.write_text(
            json.dumps(line) + "\n" + "".join(json.dumps(each) + "\n" for each in lines[1:]), encoding="utf-8"
        )
    else:
        path.write_bytes(data.draw(spoiled(source.read_bytes())))
    try:
        frame = load([path])
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error), error
    else:
        assert frame["value"].between(0, 1).all() and (frame["n"] >= 1).all()


SMALL = (
    "state/*.json",
    "train.json",
    "inputs.json",
    "config.yaml",
    "metrics.jsonl",
    "checkpoints/index.json",
    "history/*",
)


@bounded
@given(data=st.data())
def test_run_folders(data: st.DataObject, finished: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished / "runs", runs, dirs_exist_ok=True)
    (run,) = runs.glob("attention-*")
    places = sorted(str(path.relative_to(run)) for pattern in SMALL for path in run.glob(pattern))
    path = run / data.draw(st.sampled_from(places))
    sound = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed(json.loads(sound)))), encoding="utf-8")
    else:
        path.write_bytes(data.draw(spoiled(sound)))
    before = contents(run)
    named = (path.name, run.name)
    check(call("status", str(finished / "fuzzed.yaml"), "--runs", str(runs)), *named)
    check(call("collect", str(finished / "fuzzed.yaml"), "--runs", str(runs), "--out", str(tmp_path / "out")), *named)
    assert contents(run) == before  # reading changes nothing
    shutil.rmtree(runs)


@bounded
@given(
    name=st.sampled_from(["a.txt", "a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "A.TXT", "a.zst", "a.bin"]),
    content=st.one_of(
        st.binary(max_size=60),
        spoiled(b'{"text": "One."}\n{"text": "Two <|bos|> three."}\n'),
        st.lists(junk, max_size=3).map(lambda values: json.dumps(values).encode()),
        st.dictionaries(st.sampled_from(["text", "x"]), junk, max_size=2).map(lambda row: json.dumps(row).encode()),
    ),
)
def test_data_files(name: str, content: bytes, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for each in (folder, out):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(content)
    result = call("data", "prepare", str(folder / name), "--out", str(out), "--processes", "1")
    check(result, name)
    if result.exit_code == 0:
        assert (out / "index.json").is_file()
    else:
        assert not (out / "index.json").exists()
    assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]
