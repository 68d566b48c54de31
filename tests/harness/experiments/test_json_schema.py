"""The JSON schema of experiment files, and the documentation of fields that the command line prints."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from harness.experiments.json_schema import experiment_schema, field_rows, render
from harness.experiments.names import EXPERIMENTS
from harness.experiments.schema import Experiment, TrainConfig
from mixers.registry import entries as mixers
from slurm.profile import Profile
from suites.registry import entries as suites


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return experiment_schema(
        {name: suite.Config for name, suite in suites().items()},
        {name: entry.cls.config_class for name, entry in mixers().items()},
    )


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_of_the_project_are_valid_under_the_schema(path: Path, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"trian": {}}, "trian"),
        ({"preset": "cpu-600"}, "cpu-600"),
        ({"train": {"lr": -1}}, "-1"),
        ({"suites": {"recall": {"pairs": [0]}}}, "0"),
        ({"truths": [{"chance": "mqar_acc", "of": ["gdn2"], "within": 0}]}, "0"),
        ({"mixers": [{"mixer": "gdn2", "options": {"heads": 2, "erase_range": 3}}]}, "erase_range"),
    ],
)
def test_an_editor_marks_what_loading_would_refuse(changes: dict[str, Any], where: str, schema: dict[str, Any]) -> None:
    good = {"name": "tiny", "preset": "cpu-600k", "mixers": ["gdn2", {"mixer": "mine", "options": {"any": 1}}]}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError, match=where):
        jsonschema.validate(good | changes, schema)


def test_every_field_of_experiments_profiles_mixers_and_suites_is_documented() -> None:
    kinds = [Experiment, Profile, *(suite.Config for suite in suites().values())]
    ours = (entry.cls for entry in mixers().values() if entry.cls.__module__.startswith("mixers."))  # not other tests'
    kinds += [cls.config_class for cls in ours]
    assert not [f"{kind.__name__}.{row.name}" for kind in kinds for row in field_rows(kind) if not row.description]


def test_the_text_names_each_field_with_type_default_and_documentation() -> None:
    text = render(TrainConfig)
    assert "lr: float, default 0.0004\n    Peak learning rate" in text
    assert "dtype: auto | fp32 | bf16, default auto" in text
    assert "tracker: wandb | trackio or none, default none" in text
    nested = render(Experiment)
    assert "truths: list of mapping, default []" in nested
    assert "truths[].at_least: float or none" in nested and "truths[].below: text, required" in nested
    assert "data.phases[].seq_len: int, required\n    Tokens per row." in nested
    assert "data.phases[].mqar[].pairs: int, required\n" in nested  # of the other kind of phase
    assert "train: mapping, as follows" in nested
