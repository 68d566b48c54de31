"""Registration of suites: names, files, packages, and the metrics that come with them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import create_model

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT
from harness.records.metrics import METRICS, Metric
from harness.records.units import suite_of
from mixers.identity import Neutral
from suites import registry
from suites.interface import Suite, SuiteConfig
from suites.registry import evaluations, register_suite
from suites.units import SuiteFile
from tests.suites.built_in import built_in_only

LENGTHS = """
from harness.records.metrics import Metric
from harness.records.record import Measurement
from suites.interface import Suite, SuiteConfig, silent
from suites.registry import register_suite


@register_suite("lengths", title="how long texts are")
class Lengths(Suite):
    metrics = {"letters": Metric("letters", higher_is_better=True)}

    class Config(SuiteConfig):
        text: str = "abc"

    def run(self, lm, config, progress=silent):
        return [Measurement(self.name, "text", "letters", len(config.text), None, 1)]
"""


@pytest.fixture(autouse=True)
def _registry_of_its_own() -> Iterator[None]:
    with built_in_only():
        yield


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.py"
    path.write_text(LENGTHS)
    return path


def test_a_file_is_run_once_for_the_same_content(suite_file: Path, tmp_path: Path) -> None:
    assert registry.load_file(suite_file) == ["lengths"]
    loaded = registry.suite("lengths")
    (tmp_path / "copy.py").write_text(LENGTHS)
    assert registry.load_files([tmp_path / "copy.py", suite_file]) == ["lengths", "lengths"]
    assert registry.suite("lengths") is loaded and METRICS["letters"] == Metric("letters", higher_is_better=True)
    (found,) = loaded.run(None, registry.suite_config("lengths", {"text": "four"}))
    assert (found.suite, found.value) == ("lengths", 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "registers no suite; decorate a class with @register_suite"),
        (LENGTHS.replace('"lengths"', '"ruler"'), "the name 'ruler' is already taken by Ruler"),
        (LENGTHS.replace('"lengths"', '"lengths@8"'), "cannot name a file of records"),
        (LENGTHS.replace('"lengths"', '"train"'), "'train' cannot name a file of records"),
        (LENGTHS.replace("def run", "def ran"), "Lengths must implement either run or measure"),
        (LENGTHS.replace("SuiteConfig):", "object):"), "Lengths.Config is missing; give it a subclass of SuiteConfig"),
        (LENGTHS.replace('"letters": ', '"acc": '), "'acc' is declared already, as Metric"),
        (LENGTHS + "\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_file_that_adds_no_sound_suite_is_refused_and_leaves_nothing(
    tmp_path: Path, content: str, message: str
) -> None:
    path, suites, metrics = tmp_path / "suite.py", set(registry.entries()), dict(METRICS)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"suite_file: {path}: .*{message}"):
        registry.load_file(path)
    assert set(registry.entries()) == suites and metrics == METRICS


def test_a_missing_file_and_an_unknown_suite_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suite_file: .*none.py is missing; give the path of a Python file"):
        registry.load_file(tmp_path / "none.py")
    with pytest.raises(ValueError, match="unknown name 'rulers'; known: language, ruler, .*decode; --suite-file"):
        registry.suite("rulers")
    with pytest.raises(ValueError, match=r"suites.recall.pair: unknown field.*options: pairs, rewrites"):
        registry.suite_config("recall", {"pair": [1]})


def test_an_evaluation_knows_its_file_which_must_not_change(suite_file: Path) -> None:
    registry.load_file(suite_file)
    (evaluation,) = registry.evaluations("lengths", {}).values()
    assert evaluation.suite_file.path == str(suite_file) and evaluation.options == {"text": "abc"}
    registry.require_file(evaluation.suite_file)
    assert registry.evaluations("recall", {})["recall"].suite_file is None
    suite_file.write_text(LENGTHS + "\n# edited\n")
    with pytest.raises(ValueError, match="has changed since the evaluation was planned; put back the content with"):
        registry.require_file(evaluation.suite_file)
    with pytest.raises(ValueError, match="it has changed since this process loaded it: start a new one"):
        registry.load_file(suite_file)
    with pytest.raises(ValueError, match="which defines this evaluation's suite, is missing; put it back"):
        registry.require_file(SuiteFile(str(suite_file.parent / "gone.py"), "0" * 64))


def test_units_of_a_suite_bear_its_name() -> None:
    class Config(SuiteConfig):
        pass

    def units(self: Suite, config: Config) -> dict[str, Config]:
        return {"other@8": config}

    members = {"Config": Config, "run": lambda self, lm, config, progress: [], "units": units}
    register_suite("mine", title="mine")(type("Mine", (Suite,), members))
    with pytest.raises(ValueError, match="suites.mine: unit 'other@8' is not its own"):
        registry.evaluations("mine", {})


def test_installed_packages_add_suites_and_a_broken_one_is_named_and_left_out(tmp_path: Path) -> None:
    for package, content, point in (
        ("registers", LENGTHS, "any = registers"),
        (
            "yields",
            LENGTHS.replace('@register_suite("lengths", title="how long texts are")\n', ""),
            "by_class = yields:Lengths",
        ),
        ("broken", LENGTHS.replace("lengths", "half") + "\nimport no_such_module\n", "any = broken"),
    ):
        (tmp_path / f"{package}.py").write_text(content)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mixerbench.suites]\n{point}\n")
    code = "from suites.registry import entries; print(sorted(entries()))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'lengths'" in done.stdout and "'by_class'" in done.stdout and "'half'" not in done.stdout
    assert "suites of broken left out: mixerbench.suites entry point any = broken: ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("experiment", "unit", "key"),
    [
        ("demo", "recall", "f5b43a83bc848630"),
        ("demo", "language", "dd0ec6d050aab963"),
        ("table3", "ruler@1024", "8ad9f8f3cd89b596"),
        ("table4", "retrieval", "5f9333d5fa2e7e6c"),
        ("figure2", "throughput", "7ebb30efeacfcbd5"),
    ],
)
def test_the_keys_of_committed_evaluations_are_frozen_so_that_nothing_is_measured_twice(
    experiment: str, unit: str, key: str
) -> None:
    suite = suite_of(unit)
    units = evaluations(suite, load_experiment(experiment).suites[suite])
    assert units[unit].key("0" * 64).startswith(key)


def test_a_new_version_of_a_protocol_is_another_evaluation_and_an_old_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = evaluations("recall", {"pairs": [2]})["recall"]
    monkeypatch.setattr(type(registry.suite("recall")), "protocol_versions", lambda self, config: {"mqar": 2})
    after = evaluations("recall", {"pairs": [2]})["recall"]
    assert after.key("0") != before.key("0") and after.options == before.options | {"protocol_versions": {"mqar": 2}}
    assert registry.stored_config("recall", after.options).pairs == [2]
    with pytest.raises(ValueError, match=r"suites.recall: .* planned for protocol versions {}, .* {'mqar': 2}; submit"):
        registry.stored_config("recall", before.options)


def test_a_new_option_at_its_neutral_value_changes_no_key_and_another_default_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = evaluations("recall", {"pairs": [2]})["recall"]
    config = registry.suite("recall").Config
    for default, same in (("as before", True), ("better", False)):
        field = (Annotated[str, Neutral("as before")], default)
        monkeypatch.setattr(type(registry.suite("recall")), "Config", create_model("New", __base__=config, style=field))
        after = evaluations("recall", {"pairs": [2]})["recall"]
        assert (after.key("0") == before.key("0")) is same
        assert registry.stored_config("recall", before.options).style == "as before"
