"""The commands on runs and jobs as a user calls them: wrong use ends in one line, before anything is written."""

import io
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.experiments.schema import Experiment
from harness.training import checkpoint
from run import app
from slurm.local import run_experiment
from slurm.plan import RunPlan, plan
from slurm.snapshot import open_submission
from slurm.state import started, write_status
from suites.units import TRAIN
from tests.slurm.experiments import experiment

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


def test_params_gives_every_mixer_and_layout_as_json() -> None:
    result = cli.invoke(app, ["params", "--preset", "release-1.3b", "--json"])
    rows = json.loads(result.output)
    assert len(rows) == 13
    for row in rows:
        assert row["non_embedding_params"] > 1.29e9 and row["flops_per_token"] > 7.7e9
        assert {"embedding_params", "state_floats_per_layer", "mlp_widths"} <= set(row)
    assert cli.invoke(app, ["params", "--preset", "2b"]).exit_code == 2


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


def test_an_experiment_that_was_never_submitted_has_its_planned_runs_waiting(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data)
    result = cli.invoke(app, ["status", str(path), "--runs", str(tmp_path / "runs"), "--json"])
    assert result.exit_code == 0, result.output
    assert [row["state"] for row in json.loads(result.output)] == ["waiting", "waiting"]
    shown = cli.invoke(app, ["status", str(path), "--runs", str(tmp_path / "runs")])
    assert shown.output.startswith("tiny: 0 of 2 runs done, 2 waiting\n")


TEXT = "[/data/x] has shape [b, t]"
"""An error text that rich would take for markup, and refuse."""


def failed_run(folder: Path, shards: Path) -> tuple[Experiment, list[RunPlan], Path]:
    """An experiment that was submitted, and whose first run failed with TEXT."""
    loaded, runs = load_experiment(experiment(folder, shards)), folder / "runs"
    plans = plan(loaded, runs)
    open_submission(loaded, plans, runs, "slurm")
    plans[0].folder.mkdir()
    write_status(plans[0].folder, TRAIN, "failed", TEXT)
    return loaded, plans, runs


def test_status_watched_shows_an_error_text_as_it_is(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, runs = failed_run(tmp_path, small_data)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slurm.commands.time", SimpleNamespace(sleep=interrupt))  # other modules wait as ever
    monkeypatch.setenv("COLUMNS", "400")
    shown = cli.invoke(app, ["status", "tiny", "--watch", "--runs", str(runs)])
    assert TEXT in shown.output and "interrupted" in shown.output


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


def test_runs_are_listed_with_their_size_and_checkpoints_of_trained_ones_are_removed(tmp_path: Path) -> None:
    trained, unfinished = (tmp_path / name for name in ("run-1", "run-2"))
    for run in (trained, unfinished):
        started(run, TRAIN, "log")
        for step in (1, 2):
            checkpoint.save(run, step, {"step": step})
    (trained / "train.json").write_text("{}")
    rows = json.loads(cli.invoke(app, ["runs", "list", "--runs", str(tmp_path), "--json"]).output)
    assert [(row["run"], row["trained"]) for row in rows] == [("run-1", True), ("run-2", False)]
    assert all(row["bytes"] > row["checkpoint_bytes"] > 0 for row in rows)

    def left(keep: str) -> list[int]:
        result = cli.invoke(app, ["runs", "prune", "--keep", keep, "--runs", str(tmp_path)])
        assert result.exit_code == 0 and result.output.endswith(" MB freed\n"), result.output
        return [len(list((run / "checkpoints").glob("step_*"))) for run in (trained, unfinished)]

    write_status(trained, TRAIN, "queued", job="7")  # Slurm is silent here: it may be waiting
    assert left("none") == [2, 2]
    write_status(trained, TRAIN, "done")
    assert left("last") == [1, 2] and left("none") == [0, 2]
    assert cli.invoke(app, ["runs", "prune", "--keep", "some", "--runs", str(tmp_path)]).exit_code == 2
