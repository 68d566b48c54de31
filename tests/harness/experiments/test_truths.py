"""Truths in an experiment file: their three forms, and errors that name field, value and options."""

from pathlib import Path
from typing import Any

import pytest

from harness.experiments.load import load_experiment
from harness.experiments.truths import Chance, Order, Threshold
from tests.harness.experiments.experiment_files import write

THRESHOLD = {"threshold": "mqar_acc", "of": ["attention"], "at": [4, 8], "at_least": 99, "questions": 3000}
ORDER = {"order": "mqar_acc", "below": "attention", "above": "gdn2", "at": [32], "presets": ["cpu-1m"]}
CHANCE = {"chance": "parity_acc", "of": ["gdn2"], "at": [80], "level": 50, "within": 5}


def test_the_key_of_its_column_chooses_the_form_of_a_truth(tmp_path: Path) -> None:
    truths = load_experiment(write(tmp_path, truths=[THRESHOLD, ORDER, CHANCE])).truths
    assert [type(truth) for truth in truths] == [Threshold, Order, Chance]
    assert [truth.words for truth in truths] == [
        "mqar_acc of attention is at least 99 at 4, 8, measured on at least 3,000 questions",
        "mqar_acc of gdn2 is above that of attention at 32 (cpu-1m)",
        "parity_acc of gdn2 is within 5 of chance, 50 at 80",
    ]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"of": ["gdn2"], "at_least": 1}, r"truths.0: has no form; name its column under one of threshold, order, ch"),
        ("mqar_acc", r"truths.0: has no form"),
        (THRESHOLD | {"at_most": 3}, r"truths.0.threshold: at_least, at_most: got 99.0 and 3.0; give exactly one"),
        ({"threshold": "mqar_acc", "of": ["gdn2"]}, r"at_least, at_most: got None and None; give exactly one"),
        (THRESHOLD | {"of": []}, r"truths.0.threshold.of: "),
        (THRESHOLD | {"at": [0]}, r"truths.0.threshold.at.0: .*\(got 0\)"),
        (THRESHOLD | {"order": "mqar_acc"}, r"truths.0.threshold.order: unknown field"),
        (ORDER | {"below": "gdn2"}, r"below, above: both are 'gdn2'; name two rows"),
        (CHANCE | {"within": 0}, r"truths.0.chance.within: .*greater than 0"),
        (THRESHOLD | {"of": ["kda"]}, r"truths.0.of: 'kda' is not in the experiment; it has gdn2, attention, Gated De"),
        (ORDER | {"above": "gdn"}, r"truths.0.above: 'gdn' is not in the experiment; it has gdn2"),
        (ORDER | {"presets": ["cpu-2m"]}, r"truths.0.presets: 'cpu-2m' is not in the experiment; it has cpu-1m"),
    ],
)
def test_a_wrong_truth_is_refused_with_its_field_value_and_the_options(
    tmp_path: Path, truth: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path, truths=[truth]))


def test_rows_are_named_by_mixer_or_label_and_ablations_by_label(tmp_path: Path) -> None:
    scalar = {"label": "scalar", "options": {"erase_gate": "scalar"}, "mixers": ["gdn2"]}
    named = ["gdn2", "Gated DeltaNet-2", "Gated DeltaNet-2, scalar", "softmax", "attention"]
    mixers = ["gdn2", {"mixer": "attention", "label": "softmax"}]
    path = write(tmp_path, mixers=mixers, ablations=[scalar], truths=[THRESHOLD | {"of": named}])
    assert load_experiment(path).truths[0].of == named
    for unknown in ("softmax, scalar", "Transformer"):
        with pytest.raises(ValueError, match=f"'{unknown}' is not in the experiment"):
            load_experiment(write(tmp_path, mixers=mixers, ablations=[scalar], truths=[THRESHOLD | {"of": [unknown]}]))


def test_a_scale_may_have_truths_of_its_own(tmp_path: Path) -> None:
    wide = {"preset": "cpu-600k", "truths": [ORDER | {"presets": ["cpu-600k"]}]}
    path = write(tmp_path, truths=[ORDER], scales={"wide": wide})
    assert load_experiment(path, scale="wide").truths[0].presets == ["cpu-600k"]


def test_a_bound_holds_on_its_own_side_and_for_no_nan() -> None:
    least, most = (Threshold(threshold="x", of=["a"], **{bound: 9.5}) for bound in ("at_least", "at_most"))
    values = (9.4, 9.5, 9.6, float("nan"))
    assert [least.holds(value) for value in values] == [False, True, True, False]
    assert [most.holds(value) for value in values] == [True, True, False, False]
