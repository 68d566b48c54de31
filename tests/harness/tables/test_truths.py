"""Every verdict of every form of truth, on hand-made records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.experiments.schema import Experiment
from harness.records.stats import mean_stderr
from harness.records.store import load_samples
from harness.tables.comparison import comparison, printed
from harness.tables.truths import judge, judge_paper
from harness.tables.verdicts import Verdict
from tests.harness.tables.table_records import TOKENS, expectation, record, run_row, store

LABELS = {"gdn2": "Gated DeltaNet-2", "mamba2": "Mamba-2", "attention": "Transformer"}
ITEMS = 200


def experiment(*truths: dict[str, Any], **changes: Any) -> Experiment:
    content = {"name": "small", "preset": "cpu-1m", "mixers": list(LABELS), "seeds": [0, 1, 2], "truths": list(truths)}
    return Experiment.model_validate(content | changes)


def mqar(mixer: str, seed: int, value: float, length: int | None = 4, **changes: Any):
    """A record of mqar with per-sample scores: 0/1, `value` of them 1, the easiest items the same for all."""
    scores = (np.random.default_rng(0).permutation(ITEMS) < value * ITEMS).astype(float)
    own = {"suite": "recall", "mixer": mixer, "layout": "attention" if mixer == "attention" else "recurrent"}
    own |= {"length": length, "seed": seed, "samples": tuple(scores), "settings": {"items": "a"}} | changes
    return record(own.pop("label", LABELS[mixer]), "mqar", "acc", *mean_stderr(scores), ITEMS, **own)


def judged(folder: Path, stated: Experiment, records: list) -> Verdict:
    frame = store(folder, records)
    (verdict,) = judge(stated, frame, load_samples(folder))
    return verdict


SOLVED = {"threshold": "mqar_acc", "of": ["attention"], "at": [4, 8], "at_least": 99}


def solved(**values: float) -> list:
    """Records of attention at 4 and 8 pairs, seeds 0 to 2; values by `<pairs>_<seed>`, 1 if not given."""
    return [
        mqar("attention", seed, values.get(f"at{pairs}_{seed}", 1.0), pairs) for pairs in (4, 8) for seed in (0, 1, 2)
    ]


def test_a_threshold_is_met_if_every_seed_meets_it_at_every_length(tmp_path: Path) -> None:
    verdict = judged(tmp_path, experiment(SOLVED | {"why": "Zoology"}), solved(at8_1=0.99))
    assert (verdict.outcome, verdict.why) == ("met", "Zoology")
    assert verdict.numbers == (
        "Transformer (attention) @4: 100, 100, 100 (seeds 0, 1, 2; 200 questions); "
        "Transformer (attention) @8: 100, 99, 100 (seeds 0, 1, 2; 200 questions)"
    )


def test_a_threshold_is_not_met_if_one_measured_seed_misses_it_whatever_is_missing(tmp_path: Path) -> None:
    verdict = judged(tmp_path, experiment(SOLVED | {"questions": 3000}), solved(at8_1=0.98)[:-1])
    assert verdict.outcome == "not met"
    assert "@8: 100, 98 misses (seeds 0, 1; 200 questions), no record of seed 2" in verdict.numbers


def test_a_threshold_without_all_seeds_or_enough_questions_is_undecided(tmp_path: Path) -> None:
    missing = judged(tmp_path / "a", experiment(SOLVED), solved()[:-2])
    assert missing.outcome == "undecided" and missing.numbers.endswith("no record of seeds 1, 2")
    few = judged(tmp_path / "b", experiment(SOLVED | {"questions": 201}), solved())
    assert few.outcome == "undecided" and "fewer questions than the truth asks for" in few.numbers
    counted = [replace(r, settings={"questions": 800}) for r in solved()]
    assert judged(tmp_path / "c", experiment(SOLVED | {"questions": 800}), counted).outcome == "met"


def test_an_upper_bound_is_in_the_unit_of_the_metric_and_nothing_above_meets_it(tmp_path: Path) -> None:
    bound = {"threshold": "novels_ppl", "of": ["gdn2"], "at_most": 40}
    for folder, value, outcome in (("a", 39.5, "met"), ("b", 40.5, "not met"), ("c", 1e9, "not met")):
        own = record(LABELS["gdn2"], "novels", "word_perplexity", value, 1.0, mixer="gdn2")
        assert judged(tmp_path / folder, experiment(bound, seeds=[0]), [own]).outcome == outcome


def test_a_truth_holds_at_its_presets_and_at_all_of_them_if_it_names_none(tmp_path: Path) -> None:
    small = [replace(r, preset="cpu-600k", run=f"{r.run}-small") for r in solved(at4_0=0.5)]
    both = {"preset": None, "presets": ["cpu-600k", "cpu-1m"]}
    verdict = judged(tmp_path / "a", experiment(SOLVED, **both), solved() + small)
    assert verdict.outcome == "not met" and "(attention) cpu-600k @4: 50 misses" in verdict.numbers
    assert (
        judged(tmp_path / "b", experiment(SOLVED | {"presets": ["cpu-1m"]}, **both), solved() + small).outcome == "met"
    )


def test_a_mixer_names_its_rows_without_ablations_which_a_label_names(tmp_path: Path) -> None:
    label = "Gated DeltaNet-2, scalar"
    records = [mqar("gdn2", seed, 1.0) for seed in range(3)]
    records += [mqar("gdn2", seed, 0.5, label=label) for seed in range(3)]
    ablations = {"ablations": [{"label": "scalar", "options": {"erase_gate": "scalar"}, "mixers": ["gdn2"]}]}
    for folder, name, outcome in (("a", "gdn2", "met"), ("b", label, "not met")):
        stated = experiment(SOLVED | {"of": [name], "at": [4]}, **ablations)
        assert judged(tmp_path / folder, stated, records).outcome == outcome


def test_each_layout_of_a_row_must_meet_a_truth(tmp_path: Path) -> None:
    stated = experiment(SOLVED | {"of": ["gdn2"], "at": [4]}, layouts=["recurrent", "hybrid"])
    recurrent = [mqar("gdn2", seed, 1.0) for seed in range(3)]
    verdict = judged(tmp_path / "a", stated, recurrent)
    assert (
        verdict.outcome == "undecided" and "Gated DeltaNet-2 (hybrid) @4: no record of seeds 0, 1, 2" in verdict.numbers
    )
    hybrid = [mqar("gdn2", seed, 1.0, layout="hybrid") for seed in range(3)]
    assert judged(tmp_path / "b", stated, recurrent + hybrid).outcome == "met"


def test_rows_of_a_mixer_whose_file_is_not_loaded_go_by_the_labels_of_their_records(tmp_path: Path) -> None:
    stated = experiment(SOLVED | {"of": ["mine"], "at": [4]}, mixers=["gdn2", "mine"], mixer_files=["mine.py"])
    records = [mqar("gdn2", seed, 0.5) for seed in range(3)]
    records += [replace(mqar("gdn2", seed, 1.0, label="My mixer"), mixer="mine") for seed in range(3)]
    assert judged(tmp_path, stated, records).outcome == "met"


ABOVE = {"order": "mqar_acc", "below": "mamba2", "above": "gdn2", "at": [4]}


def ordered(gdn2: tuple[float, ...], mamba2: tuple[float, ...]) -> list:
    return [mqar(m, seed, v) for m, vs in (("gdn2", gdn2), ("mamba2", mamba2)) for seed, v in enumerate(vs)]


@pytest.mark.parametrize(
    ("gdn2", "mamba2", "outcome"),
    [
        ((0.9, 0.91, 0.92), (0.5, 0.52, 0.51), "met"),
        ((0.5, 0.52, 0.51), (0.9, 0.91, 0.92), "not met"),
        ((0.5, 0.9, 0.7), (0.6, 0.5, 0.8), "undecided"),
    ],
)
def test_an_order_is_decided_by_the_interval_over_seeds_and_paired_items(
    tmp_path: Path, gdn2: tuple, mamba2: tuple, outcome: str
) -> None:
    verdict = judged(tmp_path, experiment(ABOVE), ordered(gdn2, mamba2))
    assert verdict.outcome == outcome
    assert verdict.numbers.startswith("Gated DeltaNet-2 (recurrent) @4 − Mamba-2 (recurrent) @4: ")
    assert verdict.numbers.endswith("(t over seeds and paired items; 3 seeds, n 200)")


def test_an_order_of_fewer_than_three_seeds_or_without_records_is_undecided(tmp_path: Path) -> None:
    two = judged(tmp_path / "a", experiment(ABOVE, seeds=[0, 1]), ordered((1.0, 1.0), (0.1, 0.1)))
    assert two.outcome == "undecided" and "2 seeds; an interval over seeds needs 3" in two.numbers
    none = judged(tmp_path / "b", experiment(ABOVE), ordered((1.0, 1.0, 1.0), ()))
    assert none.outcome == "undecided" and "Mamba-2 (recurrent) @4: no record of seeds 0, 1, 2" in none.numbers


def test_an_order_of_rows_that_were_measured_differently_is_undecided(tmp_path: Path) -> None:
    records = ordered((1.0, 1.0, 1.0), (0.1, 0.1, 0.1))
    other = [replace(r, settings={"items": "b"}) if r.mixer == "mamba2" else r for r in records]
    verdict = judged(tmp_path, experiment(ABOVE), other)
    assert verdict.outcome == "undecided" and "settings.items differs" in verdict.numbers


def test_rows_are_compared_within_a_layout_and_with_attention_in_any(tmp_path: Path) -> None:
    records = [mqar("gdn2", s, 0.9, layout=layout) for layout in ("recurrent", "hybrid") for s in range(3)]
    records += [mqar("attention", s, 1.0) for s in range(3)]
    both = {"layouts": ["recurrent", "hybrid"]}
    verdict = judged(tmp_path / "a", experiment(ABOVE | {"below": "gdn2", "above": "attention"}, **both), records)
    assert verdict.outcome == "met" and verdict.numbers.count("−") == 2
    apart = [{"mixer": "gdn2", "layout": "hybrid"}, "mamba2"]
    verdict = judged(tmp_path / "b", experiment(ABOVE, mixers=apart), records)
    assert (verdict.outcome, verdict.numbers) == ("undecided", "no two of the rows share a layout")


GUESSES = {"chance": "mqar_acc", "of": ["mamba2"], "at": [4], "level": 50, "within": 10}


@pytest.mark.parametrize(
    ("values", "truth", "outcome"),
    [
        ((0.5, 0.51, 0.49), {}, "met"),
        ((0.9, 0.91, 0.92), {}, "not met"),
        ((0.5, 0.51, 0.49), {"within": 1}, "undecided"),  # three errors of a mean of 200 items are wider than a point
        ((0.5, 0.9, 0.3), {}, "undecided"),
    ],
)
def test_chance_is_decided_by_the_interval_of_the_mean_over_seeds(
    tmp_path: Path, values: tuple, truth: dict, outcome: str
) -> None:
    verdict = judged(tmp_path, experiment(GUESSES | truth), [mqar("mamba2", s, v) for s, v in enumerate(values)])
    assert verdict.outcome == outcome
    assert verdict.numbers.startswith("Mamba-2 (recurrent) @4: mean ") and verdict.numbers.endswith("(3 seeds, n 200)")


def test_chance_is_what_the_records_state_if_the_truth_gives_no_level(tmp_path: Path) -> None:
    stated = experiment({key: value for key, value in GUESSES.items() if key != "level"})
    records = [mqar("mamba2", seed, 0.25, settings={"chance": 0.25}) for seed in range(3)]
    verdict = judged(tmp_path / "a", stated, records)
    assert verdict.outcome == "met" and ", chance 25 (" in verdict.numbers
    unstated = judged(tmp_path / "b", stated, [mqar("mamba2", seed, 0.25) for seed in range(3)])
    assert unstated.outcome == "undecided" and "give the truth a level" in unstated.numbers


def test_chance_without_all_seeds_or_with_two_is_undecided(tmp_path: Path) -> None:
    records = [mqar("mamba2", seed, 0.5) for seed in range(2)]
    assert "no record of seed 2" in judged(tmp_path / "a", experiment(GUESSES), records).numbers
    two = judged(tmp_path / "b", experiment(GUESSES, seeds=[0, 1]), records)
    assert two.outcome == "undecided" and "needs 3" in two.numbers


def test_a_column_or_length_without_records_is_undecided_and_the_measured_ones_are_listed(tmp_path: Path) -> None:
    column = judged(tmp_path / "a", experiment(SOLVED | {"threshold": "mqar"}), solved())
    assert (column.outcome, column.numbers) == ("undecided", "no record of a column mqar; there are mqar_acc")
    length = judged(tmp_path / "b", experiment(SOLVED | {"at": [4, 16]}), solved())
    assert length.outcome == "undecided" and "no row was measured at 16; there are 4, 8" in length.numbers
    none = judged(tmp_path / "c", experiment(SOLVED | {"at": []}), solved())
    assert none.outcome == "undecided" and "no row was measured at no length; there are 4, 8" in none.numbers


def test_records_of_other_seeds_do_not_count(tmp_path: Path) -> None:
    assert judged(tmp_path, experiment(SOLVED), [*solved(), mqar("attention", 7, 0.1)]).outcome == "met"


def test_a_column_that_several_suites_measure_is_undecided(tmp_path: Path) -> None:
    twice = [*solved(), *(replace(r, suite="mine") for r in solved())]
    verdict = judged(tmp_path, experiment(SOLVED), twice)
    assert verdict.outcome == "undecided" and "several suites, mine, recall" in verdict.numbers


def test_the_papers_numbers_are_judged_by_their_tolerance_where_the_runs_are_at_its_scale(tmp_path: Path) -> None:
    records = [record(label, "piqa", "acc", 0.72, 0.01, 1838) for label in ("gdn2", "kda", "mamba2")]
    frame = store(tmp_path, [replace(records[0], stand_in=None), *records[1:]])
    runs = pd.DataFrame([run_row(r.label, r.mixer, "recurrent", 0) for r in records[:2]])
    runs = pd.concat([runs, pd.DataFrame([run_row("mamba2", "mamba2", "recurrent", 0, tokens_seen=TOKENS - 1)])])
    expected = expectation("table2", piqa_acc=0.5, boolq_acc=1.0)
    table = comparison(frame, runs=runs, expected=expected)
    found = [(v.outcome, v.truth.partition(" is ")[0], v.numbers) for v in judge_paper(table, expected, printed)]
    assert found == [
        ("not met", "piqa_acc of gdn2 (recurrent)", "72, −0.8 (1 seed, n 1,838)"),  # 72.8 is printed
        ("met", "piqa_acc of kda (recurrent)", "72, −0.09 (1 seed, n 1,838)"),
        ("undecided", "piqa_acc of mamba2 (recurrent)", "not trained at the paper's scale"),
        ("undecided", "boolq_acc", "not measured"),
    ]
