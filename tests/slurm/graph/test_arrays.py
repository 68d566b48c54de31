"""The job arrays of an experiment: tasks, dependencies, packed evaluations, and runs that others train."""

from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from slurm.graph.arrays import Array, Sweep, collects, graph, prepares
from slurm.graph.work import Pending, Work
from slurm.plan import RunPlan, plan
from slurm.profile import Profile
from suites.registry import evaluations
from suites.units import TRAIN
from tests.slurm.experiments import experiment

SUITES = {"recall": {"samples": 8}, "ruler": {"lengths": [256, 512], "haystack": "corpus"}}
UNITS = ["recall", "ruler@256", "ruler@512"]


@pytest.fixture
def plans(tmp_path: Path, small_data: Path) -> list[RunPlan]:
    path = experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2, 3, 4], suites=SUITES)
    return plan(load_experiment(path), tmp_path / "runs")


def arrays(pending: list[Pending], limit: int = 1000, pack: bool = False) -> dict[str, Array]:
    profile = Profile.model_validate({"evaluate": {"pack": pack}})
    sweep = Sweep("demo", Path("sub"), Path("runs"), "command", limit, profile, {})
    work = Work([], pending, [], [], [])
    made = graph(work, sweep, prepares(sweep, work), collects(sweep))
    assert [array.name for array in made][0] == "prepare" and [array.name for array in made][-1] == "collect"
    known: set[str] = set()
    for array in made:  # nothing waits for what is submitted after it
        assert {name.partition("_")[0] for _, name in array.after} <= known | {"12"}
        known.add(array.name)
    return {array.name: array for array in made}


def test_a_suite_is_evaluated_by_length_with_the_tasks_that_have_it() -> None:
    paper = evaluations("ruler", {"samples": 3})
    assert list(paper) == ["ruler@1024", "ruler@2048", "ruler@4096", "ruler@8192"]
    assert paper["ruler@1024"].options["tasks"] == ["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"]
    longest = paper["ruler@8192"].options
    assert longest["tasks"] == ["s_niah_1", "s_niah_2"] and longest["lengths"] == [8192]
    assert list(evaluations("recall", {})) == ["recall"]


def test_evaluations_wait_task_by_task_for_the_training_of_their_run(plans: list[RunPlan]) -> None:
    found = arrays([Pending(p, p.missing) for p in plans])
    assert list(found) == ["prepare", "train-0", "recall-0", "ruler@256-0", "ruler@512-0", "collect"]
    assert found["train-0"].after == [("afterok", "prepare")]
    folders = {index: task.folder for index, task in found["train-0"].tasks.items()}
    for name in ("recall-0", "ruler@256-0", "ruler@512-0"):
        assert found[name].after == [("aftercorr", "train-0")]
        assert {index: task.folder for index, task in found[name].tasks.items()} == folders
    assert {kind for kind, _ in found["collect"].after} == {"afterany"} and len(found["collect"].after) == 5


def test_packed_evaluations_are_one_array_with_those_units_that_a_run_lacks(plans: list[RunPlan]) -> None:
    pending = [Pending(p, p.missing) for p in plans[:3]] + [Pending(plans[3], ["ruler@256"]), Pending(plans[4], UNITS)]
    found = arrays(pending, pack=True)
    assert list(found) == ["prepare", "train-0", "evaluations-0", "evaluations-trained-0", "collect"]
    assert found["evaluations-0"].after == [("aftercorr", "train-0")]
    for name, runs in (("evaluations-0", pending[:3]), ("evaluations-trained-0", pending[3:])):
        for run, task in zip(runs, found[name].tasks.values(), strict=True):
            places = [run.plan.place(unit) for unit in run.units if unit != TRAIN]
            assert [(job.folder, job.unit) for job in task.parts] == [(run.plan.folder, place) for place in places]


def test_arrays_are_no_longer_than_the_cluster_allows(plans: list[RunPlan]) -> None:
    found = arrays([Pending(p, p.missing) for p in plans], limit=2)
    parts = ("0", "0.1", "0.2")
    assert [len(found[f"train-{part}"].tasks) for part in parts] == [2, 2, 1]
    for part in parts:
        assert found[f"recall-{part}"].after == [("aftercorr", f"train-{part}")]


def test_a_run_that_lacks_a_unit_has_no_task_for_it(plans: list[RunPlan]) -> None:
    units = [[TRAIN, *UNITS], [TRAIN, "recall"], [TRAIN, *UNITS]]
    found = arrays([Pending(p, some) for p, some in zip(plans, units, strict=False)])
    assert list(found["recall-0"].tasks) == [0, 1, 2] and list(found["ruler@256-0"].tasks) == [0, 2]


def test_what_is_trained_is_only_evaluated_and_what_another_job_trains_is_waited_for(plans: list[RunPlan]) -> None:
    pending = [
        Pending(plans[0], plans[0].missing),
        Pending(plans[1], ["ruler@256"]),
        Pending(plans[2], ["recall"], "12_3"),
    ]
    found = arrays(pending)
    assert [job.folder for job in found["train-0"].tasks.values()] == [plans[0].folder]
    assert [job.folder for job in found["ruler@256-trained-0"].tasks.values()] == [plans[1].folder]
    assert found["ruler@256-trained-0"].after == [("afterok", "prepare")]
    assert found["recall-after-12-0"].after == [("afterok", "prepare"), ("afterok", "12_3")]


def test_runs_that_another_sweep_trains_stay_an_array_in_step_with_its_tasks(plans: list[RunPlan]) -> None:
    pending = [Pending(run, UNITS, f"12_{index}") for run, index in zip(plans, (3, 0, 7), strict=False)]
    for pack, names in ((False, UNITS), (True, ["evaluations"])):
        found = arrays(pending, pack=pack)
        assert list(found) == ["prepare", *(f"{name}-after-12-0" for name in names), "collect"]
        for name in names:
            array = found[f"{name}-after-12-0"]
            assert array.after == [("afterok", "prepare"), ("aftercorr", "12")]
            folders = {index: task.parts[0].folder for index, task in array.tasks.items()}
            assert list(folders.items()) == [(0, plans[1].folder), (3, plans[0].folder), (7, plans[2].folder)]
