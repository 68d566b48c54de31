"""The commands that follow experiments, as a user calls them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from run import app
from tests.slurm.experiments import TEXT, experiment, failed_run

cli = CliRunner()


def test_an_experiment_that_was_never_submitted_has_its_planned_runs_waiting(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data)
    result = cli.invoke(app, ["status", str(path), "--runs", str(tmp_path / "runs"), "--json"])
    assert result.exit_code == 0, result.output
    assert [row["state"] for row in json.loads(result.output)] == ["waiting", "waiting"]
    shown = cli.invoke(app, ["status", str(path), "--runs", str(tmp_path / "runs")])
    assert shown.output.startswith("tiny: 0 of 2 runs done, 2 waiting\n")


def test_status_watched_shows_an_error_text_as_it_is(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, runs = failed_run(tmp_path, small_data)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slurm.commands.following.time", SimpleNamespace(sleep=interrupt))  # other modules wait as ever
    monkeypatch.setenv("COLUMNS", "400")
    shown = cli.invoke(app, ["status", "tiny", "--watch", "--runs", str(runs)])
    assert TEXT in shown.output and "interrupted" in shown.output
