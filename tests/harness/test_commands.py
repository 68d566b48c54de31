"""Commands on models and results, refused in one line where they cannot work; tests/test_run.py runs them on runs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.files import CHECKOUT
from harness.run_folder import Collection
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


@pytest.fixture
def demo(tmp_path: Path) -> list[str]:
    """A table of the committed demo: the arguments without --strict."""
    shutil.copytree(CHECKOUT / "results" / "demo", tmp_path / "demo")
    return ["table", "demo", "--out", str(tmp_path / "demo")]


def stating(demo: list[str], **fields: object) -> list[str]:
    """Change some fields of the collected experiment; returns the arguments."""
    path = Collection(Path(demo[3])).experiment
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | fields))
    return demo


GUESS = {"threshold": "mqar_acc", "of": ["attention"], "at": [4], "at_least": 0}


def test_strict_exits_with_1_and_names_each_truth_that_is_not_met_or_undecided(demo: list[str]) -> None:
    met = cli.invoke(app, [*stating(demo, truths=[GUESS]), "--strict"])
    assert met.exit_code == 0 and met.stderr == "truths: 1 met\n", met.output
    truths = [GUESS, GUESS | {"at_least": 101}, GUESS | {"at": [5]}]
    failed = cli.invoke(app, [*stating(demo, truths=truths), "--strict"])
    said = failed.stderr.splitlines()
    assert failed.exit_code == 1 and said[0] == "truths: 1 met, 1 not met, 1 undecided"
    assert said[1].startswith("not met: mqar_acc of attention is at least 101 at 4: Transformer (attention) @4: ")
    assert said[2].startswith("undecided: ") and said[2].endswith("no row was measured at 5; there are 4, 8, 16, 32")
    assert "### Truths" in failed.stdout and len(said) == 3
    assert cli.invoke(app, demo).exit_code == 0  # without --strict


def test_an_order_of_one_seed_is_undecided(demo: list[str]) -> None:
    order = {"order": "mqar_acc", "below": "attention", "above": "gdn2", "at": [4]}
    result = cli.invoke(app, [*stating(demo, truths=[order]), "--strict"])
    assert result.exit_code == 1 and "1 seed; an interval over seeds needs 3" in result.stderr


def test_strict_without_a_truth_or_with_a_part_of_the_results_is_refused(demo: list[str]) -> None:
    result = cli.invoke(app, [*stating(demo, truths=[]), "--strict"])
    assert result.exit_code == 2 and result.stderr == (
        "error: --strict: demo states no truths; add some and collect again, or leave --strict out\n"
    )
    assert "--columns leaves some out" in refused(*demo, "--strict", "--columns", "mqar_acc@4")
    assert "--paper leaves some out" in refused("table", "table2", "--strict", "--paper")


def test_a_figure_says_which_collection_it_lacks(tmp_path: Path) -> None:
    assert "run collect first" in refused(
        "figure", "demo", "--what", "scores", "--column", "a", "--runs", str(tmp_path)
    )
    said = refused("figure", "demo", "--what", "gates", "--runs", str(tmp_path))
    assert "--run: gates are drawn from a model" in said


def test_params_gives_every_mixer_and_layout_as_json() -> None:
    result = cli.invoke(app, ["params", "--preset", "release-1.3b", "--json"])
    rows = json.loads(result.output)
    assert len(rows) == 13
    for row in rows:
        assert row["non_embedding_params"] > 1.29e9 and row["flops_per_token"] > 7.7e9
        assert {"embedding_params", "state_floats_per_layer", "mlp_widths"} <= set(row)
    assert cli.invoke(app, ["params", "--preset", "2b"]).exit_code == 2
