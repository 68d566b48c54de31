"""The commands on sweeps as a user calls them: wrong use ends in one line, before anything is written."""

import io
import os
import re
import signal
import stat
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from harness import progress
from run import app
from slurm.local import run_experiment
from tests.slurm.experiments import TEXT, call, data_config, experiment, failed_run

cli = CliRunner()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixers=[gdn9]"], "mixer: unknown name 'gdn9'; known: attention"),
        (["data.source=nowhere"], "nowhere; make it with"),
        (["data.tokenizer=nowhere.json"], "nowhere.json"),
        (["data.phases=[{tokens: 9, seq_len: 10000000, rows: {text: 1}}]"], "seq_len"),
        (["suites.recall.pears=[1]"], "suites.recall.pears: "),
        (["suites.recal={}"], "suites: unknown name 'recal'; known: language, ruler, retrieval, recall"),
        (["suites.recall.pairs=[1000]"], "suites.recall: pairs: 1000 is outside 1 to"),
        (["suites.ruler={lengths: [150], haystack: corpus}"], "suites.ruler: "),
        (["train.lr=fast"], "train.lr: "),
    ],
)
def test_wrong_use_ends_in_one_line_and_exit_code_2_before_anything_is_written(
    tmp_path: Path, small_data: Path, overrides: list[str], message: str
) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    options = [part for override in overrides for part in ("--set", override)]
    result = cli.invoke(app, ["submit", str(path), "--runs", str(runs), *options])
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line]
    assert line.startswith("error: ") and message in line
    assert not runs.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["submit", "FILE", "--parallel", "0"], "--parallel: 0 runs at a time; give at least 1"),
        (
            ["submit", "FILE", "--cluster", "nowhere"],
            "--cluster: no profile nowhere; give local, debug, a path, or",
        ),
        (
            ["submit", "FILE", "--only", "mixer=gdn9"],
            "--only: no run has mixer 'gdn9'; give one of: gated_deltanet, at",
        ),
        (["submit", "FILE", "--only", "lr=1"], "--only: 'lr=1' is not FIELD=VALUE with a field of: mixer, seed, label"),
        (["submit", "FILE", "--limit", "0"], "--limit: 0 runs; give at least 1"),
        (["submit", "FILE", "--set-profile", "partition=x"], "--set-profile: local has no profile; give --cluster"),
        (["status", "FILE", "--state", "lazy"], "--state: 'lazy' is no state of a run; give one of: done, training"),
        (["retry", "FILE"], "--failed, --suite, --run: give --failed, or one or both of the others"),
        (["retry", "FILE", "--failed", "--suite", "recall"], "--failed, --suite, --run: give --failed, or"),
        (["retry", "FILE", "--run", "nope"], "--run: 'nope' is not of this experiment; its runs: gated_deltanet-"),
        (["train", "FILE", "--run", "nope"], "--run: 'nope' names 0 runs; give one of: gated_deltanet-"),
        (
            ["train", "FILE", "--run", "attention", "--sharding", "zero"],
            "--sharding: 'zero' is unknown; use ddp or",
        ),
        (["train", "FILE", "--run", "attention", "--sharding", "fsdp"], "this is one; start it with torchrun"),
        (["logs", "nope"], "run: no 'nope' has started in"),
        (["bench", "sweep", "--runs", "4"], "--runs: 4 is no sweep; give at least 5"),
    ],
)
def test_a_wrong_option_names_itself_and_what_to_give(
    tmp_path: Path, small_data: Path, command: list[str], message: str
) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    words = [str(path) if word == "FILE" else word for word in command]
    result = cli.invoke(app, words if command[0] == "bench" else [*words, "--runs", str(runs)])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line]
    assert line.startswith("error: ") and message in line
    assert not runs.exists()


def test_progress_on_a_terminal_shows_an_error_text_as_it_is(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, plans, runs = failed_run(tmp_path, small_data)
    screen = io.StringIO()
    monkeypatch.setattr("slurm.local.Console", lambda: Console(file=screen, force_terminal=True, width=400))
    monkeypatch.setattr("slurm.local.snapshot", lambda root: None)
    monkeypatch.setattr("slurm.local.run_plan", lambda plans, *rest: rest[-2](plans) or {})
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        run_experiment(loaded, plans, runs, "local", 1, "submit")
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert TEXT in screen.getvalue()


def test_work_in_this_process_says_how_far_it_is(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.local.PRINT_INTERVAL", 0.05)
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    path = experiment(tmp_path, small_data, mixers=["attention"], data=data_config(small_data, steps=40))
    options = [str(path), "--runs", str(tmp_path / "runs")]
    trained = cli.invoke(app, ["train", *options, "--run", "attention"])
    assert trained.exit_code == 0, trained.output
    assert re.search(r"starting: 0 s", trained.stderr)
    assert re.search(r"loss \d\.\d{3}  [\d,]+ tok/s, step \d+ of 40, \d+ s left: \d+ s", trained.stderr)
    again = cli.invoke(app, ["submit", *options, "--cluster", "debug", "--set", "train.lr=0.002"])
    assert again.exit_code == 0, again.output
    assert re.search(r"training +step \d+/40  loss", again.output)
    assert "planning" in again.stderr and "planning" in cli.invoke(app, ["collect", *options]).stderr


def test_colleagues_of_a_group_can_continue_each_others_runs(tmp_path: Path, small_data: Path) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    before = os.umask(0o002)
    try:
        call(tmp_path, "submit", "--cluster", "debug")
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "runs").rglob("*") if not path.is_symlink()]
    assert len(made) > 20 and not [path for path in made if not path.stat().st_mode & stat.S_IWGRP]
