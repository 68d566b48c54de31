"""Units of evaluation: what identifies them, and which of them a run lacks."""

import json
from pathlib import Path

from harness.files import write_atomic
from harness.run_folder import RunFolder
from suites.units import TRAIN, Evaluation, SuiteFile, missing, place, results

UNITS = {"recall": Evaluation({"samples": 8}), "ruler@256": Evaluation({"lengths": [256]})}


def trained(folder: Path, weights: str) -> RunFolder:
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps({"weights_sha256": weights}))
    return RunFolder(folder)


def test_an_evaluation_is_its_options_and_weights_and_the_content_of_a_suite_file() -> None:
    plain = Evaluation({"samples": 8})
    # A key as the .done files of earlier runs have it.
    assert plain.key("0") == "79bd8bb9ef0c9e05fe79a1701742b23abb49802aabc9c1e7a8500540d09acd0c"
    assert plain.key("0") != plain.key("1") != Evaluation({"samples": 9}).key("1")
    here, there = SuiteFile("/here/copy.py", "a" * 64), SuiteFile("/there/copy.py", "a" * 64)
    edited = SuiteFile("/here/copy.py", "b" * 64)
    keys = [Evaluation({"samples": 8}, suite_file=file).key("0") for file in (here, there, edited)]
    assert keys[0] == keys[1] != keys[2] and plain.key("0") not in keys


def test_weights_do_not_count_for_a_fresh_model() -> None:
    fresh = Evaluation({"steps": 1}, fresh=True)
    assert fresh.key("0") == fresh.key(None) == Evaluation({"steps": 1}).key(None)


def leave(run: RunFolder, unit: str, evaluation: Evaluation, weights_sha256: str) -> None:
    write_atomic(run.records(evaluation.place(unit)), b"{}\n")
    run.write_done(evaluation.place(unit), evaluation.key(weights_sha256))


def test_evaluations_with_other_options_stand_side_by_side_in_a_run(tmp_path: Path) -> None:
    run, other = trained(tmp_path, "0"), {"recall": Evaluation({"samples": 50})}
    mine = {"recall": UNITS["recall"]}
    leave(run, "recall", mine["recall"], "0")
    assert (missing(tmp_path, mine), missing(tmp_path, other)) == ([], ["recall"])
    leave(run, "recall", other["recall"], "0")
    assert missing(tmp_path, mine) == missing(tmp_path, other) == []
    assert results(tmp_path, "recall", mine["recall"], "0") == place("recall", mine)
    assert place("recall", mine) != place("recall", other) and place(TRAIN, mine) == TRAIN


def test_a_run_lacks_training_and_every_unit_at_first_and_then_what_was_measured_on_other_weights(
    tmp_path: Path,
) -> None:
    assert missing(tmp_path / "new", UNITS) == [TRAIN, "recall", "ruler@256"]
    run = trained(tmp_path / "run", "0")
    leave(run, "recall", UNITS["recall"], "0")
    assert missing(run.path, UNITS) == ["ruler@256"]
    leave(run, "ruler@256", Evaluation({"lengths": [512]}), "0")
    assert missing(run.path, UNITS) == ["ruler@256"]
    trained(tmp_path / "run", "1")
    assert missing(run.path, UNITS) == ["recall", "ruler@256"]


def test_fresh_models_are_not_trained_unless_another_suite_needs_it(tmp_path: Path) -> None:
    decode = {"decode": Evaluation({}, fresh=True)}
    assert missing(tmp_path, decode) == ["decode"]
    assert missing(tmp_path, decode | UNITS) == [TRAIN, "decode", "recall", "ruler@256"]
    assert missing(tmp_path, {}) == [TRAIN]
