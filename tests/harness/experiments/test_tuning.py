"""Tuning: grids, the identity of tuned runs, and choices that do not flatter what is reported."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.experiments.expand import Expansion, expand
from harness.experiments.load import load_experiment
from harness.experiments.run_config import RunConfig
from harness.experiments.tuning import Candidate, Trial, choose
from tests.harness.experiments.experiment_files import write

CHOOSE = {"suite": "recall", "task": "mqar", "metric": "acc", "lengths": [4]}
TUNING = {"grid": {"train.lr": [1e-3, 1e-2], "train.clip": [0.5, 1.0]}, "seeds": [10, 11], "choose": CHOOSE}


def tuned(folder: Path, tuning: dict = TUNING, **changes: object) -> Expansion:
    given = {"suites": {"recall": {}}, "seeds": [0, 1, 2], "tuning": tuning} | changes
    return expand(load_experiment(write(folder, **given)), 4096, "0" * 64, {"recall": {"split": "validation"}})


def test_every_model_tries_every_combination_on_every_seed_of_the_trials(tmp_path: Path) -> None:
    found = tuned(tmp_path, TUNING | {"share": 0.5})
    models = {run.label for run in found.runs}
    assert len(found.trials) == len(models) * 4 * 2 and {run.seed for run in found.runs} == {0, 1, 2}
    for run in found.runs:
        assert run.tuned is not None and run.tuned.values is None and run.tuned.trials == 8
        grid = [candidate.values for candidate in run.tuned.candidates]
        assert grid == [{"train.lr": lr, "train.clip": clip} for clip in (0.5, 1.0) for lr in (1e-3, 1e-2)]
        for candidate in run.tuned.candidates:
            trials = [found.trials[run_id] for run_id in candidate.trials]
            assert [trial.seed for trial in trials] == [10, 11]
            for trial in trials:
                values = {"train.lr": trial.train.lr, "train.clip": trial.train.clip}
                assert values == candidate.values and trial.mixer == run.mixer and trial.tuned is None
                assert trial.data.tokens == pytest.approx(run.data.tokens / 2, rel=0.01)


def test_the_id_of_a_tuned_run_is_known_before_its_values_and_depends_on_how_they_are_chosen(tmp_path: Path) -> None:
    run = tuned(tmp_path).runs[0]
    chosen = run.chosen({"train.lr": 1e-2, "train.clip": 0.5})
    assert chosen.run_id == run.run_id and (chosen.train.lr, chosen.train.clip) == (1e-2, 0.5)
    assert RunConfig.stored(yaml.safe_load(yaml.safe_dump(chosen.model_dump(mode="json")))) == chosen
    others = [
        tuned(tmp_path, TUNING | {"seeds": [10, 12]}),
        tuned(tmp_path, TUNING | {"share": 0.5}),
        tuned(tmp_path, TUNING | {"choose": CHOOSE | {"lengths": [8]}}),
        tuned(tmp_path, TUNING | {"grid": {"train.lr": [1e-3, 1e-2, 3e-2], "train.clip": [0.5, 1.0]}}),
    ]
    untuned = expand(load_experiment(write(tmp_path, suites={"recall": {}})), 4096, "0" * 64).runs[0]
    assert len({found.runs[0].run_id for found in others} | {run.run_id, untuned.run_id}) == len(others) + 2


def test_runs_that_differ_in_seed_share_a_choice_and_a_scale_can_choose_for_the_others(tmp_path: Path) -> None:
    scales = {"preset": None, "presets": ["cpu-600k", "cpu-1m"]}
    own = tuned(tmp_path, **scales)
    carried = tuned(tmp_path, TUNING | {"preset": "cpu-1m"}, **scales)
    for found, choices in ((own, 2), (carried, 1)):
        first = [run for run in found.runs if run.label == found.runs[0].label]
        assert len(first) == 6 and len({run.run_id for run in first}) == 6
        assert len({run.tuned.key for run in first if run.tuned is not None}) == choices
    assert {trial.preset for trial in carried.trials.values()} == {"cpu-1m"}
    assert len(own.trials) == 2 * len(carried.trials)


def test_values_at_the_edge_of_what_was_tried_are_named(tmp_path: Path) -> None:
    tuning = TUNING | {"grid": {"train.lr": [1e-3, 3e-3, 1e-2], "train.init_gain": [0.7, "upstream"]}}
    run = tuned(tmp_path, tuning).runs[0]
    for lr, edges in ((1e-3, ["train.lr"]), (3e-3, []), (1e-2, ["train.lr"])):
        chosen = run.chosen({"train.lr": lr, "train.init_gain": 0.7}).tuned
        assert chosen is not None and chosen.at_edge == edges


def test_an_option_of_the_mixer_is_tuned_on_matched_models(tmp_path: Path) -> None:
    tuning = TUNING | {"grid": {"options.conv_width": [2, 4]}}
    found = tuned(tmp_path, tuning, mixers=["gdn2"])
    run = found.runs[0]
    assert run.tuned is not None
    sizes = [found.trials[candidate.trials[0]].model.mixer_options["conv_width"] for candidate in run.tuned.candidates]
    assert sizes == [2, 4]
    assert run.chosen({"options.conv_width": 2}).model == found.trials[run.tuned.candidates[0].trials[0]].model


@pytest.mark.parametrize(
    "tuning, message",
    [
        ({"seeds": [1, 10]}, r"tuning.seeds: \[1\] are seeds of the experiment, too"),
        ({"seeds": [10]}, "tuning.seeds: .*at least 2"),
        ({"seeds": [10, 10]}, r"tuning: seeds: \[10, 10\] names one twice"),
        ({"grid": {"lr": [1]}}, "tuning.grid: 'lr' is no field; name it train.FIELD or options.FIELD"),
        ({"grid": {"train.lr": [1e-3, 1e-3]}}, "tuning.grid: train.lr: .* names one value twice"),
        ({"grid": {"train.lr": [0.0]}}, "tuning.grid: train.lr: .*greater than 0"),
        ({"grid": {"train.rate": [0.1]}}, "tuning.grid: train.rate: unknown field"),
        ({"grid": {"options.conv_sise": [3]}}, "tuning.grid: .*conv_sise"),
        ({"choose": CHOOSE | {"suite": "ruler"}}, "tuning.choose.suite: 'ruler' is not among .*recall"),
        ({"choose": CHOOSE | {"metric": "accuracy"}}, "tuning.choose.metric: 'accuracy' is not declared"),
        ({"preset": "35m"}, "tuning.preset: '35m' is not of the experiment"),
    ],
)
def test_what_cannot_be_tuned_is_named(tmp_path: Path, tuning: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned(tmp_path, TUNING | tuning)


def test_what_a_model_or_a_variant_sets_itself_is_not_tuned_as_well(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ablations: 'fast' sets train.lr, which tuning.grid tries"):
        tuned(tmp_path, ablations=[{"label": "fast", "train": {"lr": 1e-2}}])
    with pytest.raises(ValueError, match="sets options.conv_width, which tuning.grid tries"):
        given = {"mixers": [{"mixer": "gdn2", "options": {"conv_width": 3}}]}
        tuned(tmp_path, TUNING | {"grid": {"options.conv_width": [2, 4]}}, **given)


def candidates(scores: list[list[float | None]], losses: list[float] | None = None) -> tuple[list[Candidate], dict]:
    made, outcomes = [], {}
    for index, row in enumerate(scores):
        runs = [f"{index}-{seed}" for seed in range(len(row))]
        made.append(Candidate(values={"train.lr": float(index)}, trials=runs))
        loss = None if losses is None else losses[index]
        outcomes |= {run: Trial(run, score, loss) for run, score in zip(runs, row, strict=True)}
    return made, outcomes


@pytest.mark.parametrize(
    "metric, scores, losses, best",
    [
        ("acc", [[0.2, 0.4], [0.9, 0.1], [0.4, 0.4]], None, 1),
        ("perplexity", [[20, 40], [90, 10], [40, 41]], None, 0),
        ("acc", [[0.2, 0.2], [0.9, None]], None, 0),  # half of it diverged
        ("acc", [[None, None], [0.0, None]], None, 1),
        ("acc", [[None, None], [None, None]], None, 0),
        ("acc", [[0.2, 0.2], [0.9, math.nan]], None, 0),
        ("acc", [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [0.3, 0.1, 0.2], 1),
        ("acc", [[1.0, 1.0], [1.0, 1.0]], None, 0),
    ],
)
def test_the_best_mean_wins_and_what_diverged_is_worse_than_everything(
    metric: str, scores: list, losses: list[float] | None, best: int
) -> None:
    made, outcomes = candidates(scores, losses)
    assert choose(made, outcomes, metric) is made[best]


def test_a_score_is_flattered_by_having_been_chosen_and_one_on_other_seeds_is_not() -> None:
    """2,000 experiments with 9 equally good candidates, two trials each, scores of mean 50 and deviation 5 points.

    The best of nine means of two lies 1.485 deviations of such a mean above its expectation (the largest of nine normal
    numbers), which is 5.25 points. Both averages below have a standard error of 0.05 and 0.08 points; 0.35 is four.
    """
    rng = np.random.default_rng(0)
    same, apart = [], []
    for _ in range(2000):
        scores = rng.normal(50, 5, (9, 2))
        made, outcomes = candidates(scores.tolist())
        chosen = made.index(choose(made, outcomes, "acc"))
        same.append(scores[chosen].mean())
        apart.append(rng.normal(50, 5, 2).mean())  # the chosen one on seeds of its own: all are equally good
    assert np.mean(same) - 50 == pytest.approx(1.485 * 5 / math.sqrt(2), abs=0.35)
    assert np.mean(apart) == pytest.approx(50, abs=0.35)
