"""`data prepare` as a user calls it: wrong use ends in one line, before anything is written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from run import app


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0"], "--processes: 0 cannot be; give at least 1, and none with --cluster"),
        (["--processes", "2", "--cluster", "slurm"], "--processes: 2 cannot be"),
        (["--jobs", "2"], "--jobs: 2 jobs cannot be; give at least 1, with --cluster PROFILE"),
        (["--set-profile", "partition=x"], "--set-profile: this machine has no profile; give --cluster PROFILE"),
        (["--cluster", "debug"], "--cluster: debug is this machine; leave it out"),
    ],
)
def test_a_wrong_option_names_itself_and_what_to_give(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["data", "prepare", "embedded", "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()
