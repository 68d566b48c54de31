"""Waves of a sweep: none is larger than the queue has room for, and nothing is lost or done before its turn."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from slurm.graph.arrays import Sweep, collects, graph, prepares
from slurm.graph.waves import BESIDES, split, waves
from slurm.graph.work import Pending, Work
from slurm.plan import RunPlan, plan, selections, trials
from slurm.profile import Profile
from suites.units import TRAIN
from tests.slurm.experiments import experiment
from tests.slurm.test_trials import tuned

UNITS = ["recall", "ruler@256", "ruler@512"]


@pytest.fixture
def run(tmp_path: Path, small_data: Path) -> RunPlan:
    suites = {"recall": {"samples": 8}, "ruler": {"lengths": [256, 512], "haystack": "corpus"}}
    path = experiment(tmp_path, small_data, mixers=["attention"], suites=suites)
    return plan(load_experiment(path), tmp_path / "runs")[0]


def many(run: RunPlan, count: int, units: list[str]) -> list[Pending]:
    """Copies of a run in folders of their own, each with these units to do."""
    return [Pending(replace(run, folder=run.folder / str(n)), units) for n in range(count)]


def size(work: Work, pack: bool) -> int:
    return sum(len(each.bundles(pack)) for each in work.pending) + bool(work.choices)


def units(works: list[Work]) -> list[tuple[Path, str]]:
    """The units of works, in their order."""
    return [(each.plan.folder, unit) for work in works for each in work.pending for unit in each.units]


def test_three_hundred_runs_pass_a_limit_of_fifty_jobs_with_sixty_calls(run: RunPlan) -> None:
    work = Work([], many(run, 300, [TRAIN, *UNITS]), [], [], [])
    found = waves(work, 50 - BESIDES, pack=True)
    assert sorted(units(found)) == sorted(units([work]))
    sweep = Sweep(
        "demo", Path("sub"), Path("runs"), "c", 1001, Profile.model_validate({"evaluate": {"pack": True}}), {}
    )
    last, calls = collects(sweep), 0
    for number, wave in enumerate(found):
        arrays = graph(wave, sweep, "7" if number else prepares(sweep, work), last, number)
        assert sum(len(array.tasks) for array in arrays) + (number > 0) <= 50  # the job that submits it counts, too
        assert all(("afterok", "7") in array.after for array in arrays if number and array.stage == "train")
        calls += len(arrays)
    assert len(found) == 13 and calls == 40


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 9, 1000])
def test_waves_fit_lose_nothing_and_train_before_they_evaluate(run: RunPlan, most: int, pack: bool) -> None:
    work = Work([], [*many(run, 4, [TRAIN, *UNITS]), *many(run, 7, UNITS)[4:]], [], [], [])
    found = waves(work, most, pack)
    assert all(0 < size(wave, pack) <= most for wave in found)
    assert sorted(units(found)) == sorted(units([work]))
    for folder in {folder for folder, _ in units(found)}:
        done = [unit for where, unit in units(found) if where == folder]
        assert TRAIN not in done[1:]
    if most >= 4:  # enough for a whole run
        trained = [each.units for wave in found for each in wave.runs if TRAIN in each.units]
        assert trained == [[TRAIN, *UNITS]] * 4


def test_without_a_limit_there_is_one_wave(run: RunPlan) -> None:
    work = Work([], many(run, 3, [TRAIN, *UNITS]), [], [], ["said"])
    assert waves(work, None, pack=False) == [work]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8, 9, 1000])
def test_a_tuned_sweep_tries_then_chooses_then_trains(tmp_path: Path, small_data: Path, most: int) -> None:
    plans = plan(load_experiment(tuned(tmp_path, small_data)), tmp_path / "runs")
    tried, runs = ([Pending(each, each.missing) for each in some] for some in (trials(plans), plans))
    work = Work(tried, runs, selections(plans), ["12_3"], [])
    found = waves(work, most, pack=True)
    assert units(found) == units([work]) and all(0 < size(wave, True) <= most for wave in found)
    (choosing,) = (number for number, wave in enumerate(found) if wave.choices)
    assert found[choosing].held == ["12_3"]
    assert not any(wave.trials for wave in found[choosing + 1 :]) and not any(w.runs for w in found[:choosing])


def test_what_is_left_of_a_wave_keeps_its_order(run: RunPlan) -> None:
    work = Work([], many(run, 3, [TRAIN, *UNITS]), [], [], ["said"])
    now, later = split(work, 5, pack=True)
    assert (now.runs, later.runs) == (work.runs[:2], work.runs[2:]) and (now.left_out, later.left_out) == (["said"], [])
