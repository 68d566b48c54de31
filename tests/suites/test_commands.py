"""The commands on suites: the list with a title per suite, limits of `eval`, and suites that are not for it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.lm import load
from run import app
from suites import registry

cli = CliRunner()


def test_list_has_a_line_on_every_mixer_preset_experiment_and_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    known = json.loads(cli.invoke(app, ["list", "--json"]).output)
    assert set(known) == {"mixers", "presets", "experiments", "suites"} and all(map(all, known.values()))
    assert known["suites"] == {name: entry.title for name, entry in registry.entries().items()}
    assert known["mixers"]["gdn2"].startswith("Gated DeltaNet-2 (arXiv 2605.22791)")
    assert known["experiments"]["demo"].startswith("Seven matched models")
    assert all(text for lines in known.values() for text in lines.values())
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli.invoke(app, ["list"]).output.splitlines()
    assert max(map(len, lines)) <= 80
    names = {line.split()[0] for line in lines if re.match("  [a-z0-9]", line)}
    assert names == {name for kind in known.values() for name in kind}


@pytest.mark.parametrize("command", [(), ("eval",), ("table",), ("data", "prepare"), ("bench", "kernels")])
def test_help_speaks_of_values_not_of_python_types(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli.invoke(app, [*command, "--help"])
    assert shown.exit_code == 0 and not re.search("<|list\\[|None", shown.output)
    assert "..." not in shown.output.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "--untrained", "cpu-600k/kda"], "suite: decode measures fresh models; submit an experiment"),
        (["decode", "--untrained", "cpu-600k/kda", "--limit", "4"], "--limit: decode takes no samples; leave it out"),
        (["recall", "--untrained", "cpu-600k/kda", "--set", "samples=0"], "suites.recall.samples: "),
        (["recall", "--suite-file", "nowhere.py"], "nowhere.py is missing; give the path of a Python file"),
    ],
)
def test_wrong_use_of_eval_is_one_line(arguments: list[str], message: str) -> None:
    result = cli.invoke(app, ["eval", *arguments])
    assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1


def test_a_limit_sets_the_samples_and_answers_are_kept(tmp_path: Path) -> None:
    arguments = ["eval", "recall", "--untrained", "cpu-600k/kda", "--set", "pairs=[2]", "--json"]
    limited = cli.invoke(app, [*arguments, "--limit", "3", "--answers", str(tmp_path / "answers.jsonl")])
    set_ = cli.invoke(app, [*arguments, "--set", "samples=3"])
    assert limited.exit_code == 0, limited.output
    assert json.loads(limited.stdout) == json.loads(set_.stdout) and json.loads(limited.stdout)[0]["n"] == 3
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(kept) == 6  # the score of each sample, and the word that an untrained model says instead


@pytest.mark.parametrize("suite", ["recall", "language"])
def test_a_model_that_puts_out_nan_fails_the_evaluation(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = load.untrained_lm("cpu-600k/kda")
    broken.model.norm.weight.data.fill_(float("nan"))
    monkeypatch.setattr(load, "untrained_lm", lambda name: broken)
    options = {"recall": ["--set", "pairs=[2]"], "language": ["--set", "tasks=[heldout]", "--set", "heldout_words=50"]}[
        suite
    ]
    result = cli.invoke(app, ["eval", suite, "--untrained", "cpu-600k/kda", "--limit", "2", *options])
    task = {"recall": "mqar@2", "language": "heldout"}[suite]
    assert result.exit_code == 1 and f"error: {task}, sample 0: the model's output is not finite" in result.output
