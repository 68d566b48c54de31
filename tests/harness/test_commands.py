"""Commands on models and results, refused in one line where they cannot work; tests/test_run.py runs them on runs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from run import app

cli = CliRunner()


def refused(*arguments: str) -> str:
    result = cli.invoke(app, list(arguments))
    assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    return result.output


def test_matched_models_are_listed_with_parameters_state_and_flops() -> None:
    result = cli.invoke(app, ["params", "--preset", "cpu-600k", "--json"])
    rows = json.loads(result.output)
    counts = [row["non_embedding_params"] for row in rows if "refused" not in row]
    assert len(counts) >= 7 and max(counts) < 1.01 * min(counts)
    states = {row["state_floats_per_layer"] for row in rows if row["layout"] == "recurrent"}
    assert len(states) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("params", "--preset", "cpu-700k"), "preset: unknown name 'cpu-700k'; known: "),
        (("params", "--preset", "125m", "--length", "0"), "--length: 0 is no length; give at least 1 token"),
        (("check", "gdn3"), "mixer: unknown name 'gdn3'; known: "),
        (("check", "gdn2", "--device", "tpu"), "--device: 'tpu' is not on this machine"),
        (("generate", "--run", "nowhere", "It is"), "nowhere: no run lies there"),
        (("export", "--run", "nowhere", "--out", "out"), "nowhere: no run lies there"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["table", "report"])
def test_what_was_not_collected_cannot_be_shown(command: str, tmp_path: Path) -> None:
    said = refused(command, "demo", "--runs", str(tmp_path))
    assert "nothing collected there; run collect first" in said
    assert list(tmp_path.iterdir()) == []


def test_a_figure_says_which_collection_it_lacks(tmp_path: Path) -> None:
    assert "run collect first" in refused(
        "figure", "demo", "--what", "scores", "--column", "a", "--runs", str(tmp_path)
    )
    said = refused("figure", "demo", "--what", "gates", "--runs", str(tmp_path))
    assert "--run: gates are drawn from a model" in said
