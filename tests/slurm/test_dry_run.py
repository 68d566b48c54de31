"""A submission before it is made: what it says, and that it refuses what a submission refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from run import app
from slurm.dry_run import describe, makespan
from slurm.plan import RunPlan
from slurm.profile import load_profile
from suites.units import TRAIN
from tests.slurm.conftest import FakeSlurm
from tests.slurm.experiments import experiment


def test_a_dry_run_says_what_each_process_of_training_holds(tmp_path: Path) -> None:
    loaded = load_experiment("table2")
    (config, *_) = expand(loaded, 32000, "0" * 64).runs
    plans = [RunPlan(config, tmp_path / config.run_id, {}, [TRAIN])]
    template = load_profile("template")
    for sharding, held in (("ddp", "23.2"), ("fsdp", "3.8")):  # 16 bytes a parameter, and see harness.training.estimate
        train = template.train.model_copy(update={"nodes": 2, "gpus_per_node": 8, "tasks_per_node": None})
        profile = template.model_copy(update={"train": train, "sharding": sharding})
        said = describe(loaded, plans, profile, tmp_path)
        assert (
            f" {held} GB of memory for weights, gradients and optimiser of each of 16 processes ({sharding}), act"
            in said
        )
        # 1.4e9 parameters on 1e11 tokens at 0.4 of 989 TFLOP/s: 8.6e20 FLOPs, 603 GPU hours
        assert f"one run of {config.label}, recurrent, {config.preset}: " in said
        assert " h, started again 1 times of 1440 minutes" in said
    single = template.model_copy(update={"train": train.model_copy(update={"nodes": 1, "gpus_per_node": 1})})
    assert "23.2 GB of memory for weights, gradients and optimiser of one process, act" in describe(
        loaded, plans, single, tmp_path
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set-profile", "partition=moon"], "partition: unknown partition 'moon'; use one of: main"),
        (["--set-profile", "train.nodes=3", "--set-profile", "train.gpus_per_node=0"], "train.nodes: 3 is above the 1"),
        (["--set", "suites.ruler={lengths: [150], haystack: corpus}"], "suites.ruler: "),
        (["--set-profile", "train.gpus_per_node=3"], "rows"),
    ],
)
def test_a_dry_run_refuses_what_a_submission_refuses(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm, options: list[str], message: str
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    command = ["submit", str(tmp_path / "tiny.yaml"), "--runs", f"{tmp_path}/runs", "--cluster", "slurm", *options]
    dry, real = [CliRunner().invoke(app, [*command, *more]) for more in (["--dry-run"], [])]
    assert dry.exit_code == real.exit_code == 2 and dry.output == real.output
    assert message in dry.output and not (tmp_path / "slurm" / "script-0").exists()


def test_a_dry_run_says_how_long_training_takes_and_what_it_leaves(tmp_path: Path) -> None:
    loaded = load_experiment("table2")
    configs = expand(loaded, 32000, "0" * 64).runs[:3]
    plans = [RunPlan(config, tmp_path / config.run_id, {}, [TRAIN]) for config in configs]
    template = load_profile("template")

    def hours(**changes: object) -> float:
        said = describe(loaded, plans, template.model_copy(update=changes), tmp_path).splitlines()
        assert any(line.startswith("checkpoints: ") for line in said)
        found = [line.split() for line in said if "wall-clock" in line]
        return float(found[0][2]) if found else 0.0

    alone = [
        float(line.partition(": ")[2].split()[0])
        for line in describe(loaded, plans, template, tmp_path).splitlines()
        if line.startswith("one run of ")
    ]
    assert len(alone) == 3
    assert hours(concurrency=None) == max(alone)
    assert hours(concurrency=1) == pytest.approx(sum(alone), abs=0.2)  # printed with one digit
    # A wave of at most two runs: the third starts when both are over.
    assert hours(concurrency=None, max_jobs=4) == pytest.approx(max(alone[:2]) + alone[2], abs=0.2)
    assert hours(tflops=None) == 0.0  # unknown


@pytest.mark.parametrize(
    ("times", "at_once", "expected"),
    [([], 3, 0), ([5, 1, 1], 2, 5), ([1, 1, 5], 2, 6), ([2, 2, 2], 1, 6), ([3, 4], 9, 4)],
)
def test_jobs_take_as_long_as_those_that_run_at_the_same_time_allow(
    times: list[float], at_once: int, expected: float
) -> None:
    assert makespan(times, at_once) == expected
