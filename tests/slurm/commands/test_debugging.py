"""`debug` as a user calls it: it does one unit in sight, or names what stands in its way."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.run_folder import RunFolder
from run import app
from slurm.plan import RunPlan, plan
from slurm.snapshot import open_submission
from slurm.state import exclusively, write_status
from suites.units import TRAIN
from tests.slurm.conftest import FakeSlurm
from tests.slurm.experiments import experiment

cli = CliRunner()


@pytest.fixture
def run(tmp_path: Path, small_data: Path) -> RunPlan:
    """A run that was submitted, and that nobody has begun."""
    loaded = load_experiment(experiment(tmp_path, small_data, mixers=["attention"]))
    plans = plan(loaded, tmp_path / "runs")
    open_submission(loaded, plans, tmp_path / "runs", "slurm")
    return plans[0]


def debug(run: RunPlan, *options: str, code: int = 0) -> str:
    result = cli.invoke(app, ["debug", run.config.run_id, "--runs", str(run.folder.parent), *options])
    assert result.exit_code == code, result.output
    return result.output


def test_one_unit_after_another_is_done_here_also_inside_a_job_that_is_not_ours(
    run: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # an interactive session
    write_status(run.folder, TRAIN, "failed", "loss nan")
    assert "finished: train" in debug(run) and RunFolder(run.folder).read_summary() is not None
    assert "finished: recall" in debug(run, "--unit", "recall")
    assert RunFolder(run.folder).read_status(run.place("recall")).state == "done"
    assert "lacks nothing; measure a suite again with `retry EXPERIMENT --suite NAME`" in debug(run, code=2)


def test_a_failure_is_shown_with_its_traceback(run: RunPlan) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoints").symlink_to("/proc/sys")  # where not even root can make a file
    said = debug(run, code=1)
    assert "Traceback" in said and "/checkpoints" in said and "not finished: train" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unit", "recall"], "--unit: recall waits for the training of attention-"),
        (["--unit", "ruler"], "does not lack 'ruler'; give one of: train, recall"),
        (["--set-profile", "partition=x"], "--set-profile: debug has no profile; give --cluster PROFILE"),
        (["--cluster", "local"], "--cluster: local is this machine; give debug or PROFILE"),
        (["--runs", "/nowhere"], "run: no submission in /nowhere has a run"),
    ],
)
def test_wrong_use_is_refused_in_one_line(run: RunPlan, options: list[str], message: str) -> None:
    (line,) = debug(run, *options, code=2).splitlines()
    assert line.startswith("error: ") and message in line


def test_a_unit_at_work_is_left_alone(run: RunPlan) -> None:
    with exclusively(run.folder, TRAIN):
        assert f"run: at work on train of {run.config.run_id}; wait for it, or cancel it first" in debug(run, code=2)


def test_a_job_gets_the_resources_of_an_evaluation_and_does_the_unit(
    run: RunPlan, tmp_path: Path, fake_slurm: FakeSlurm, capfd: pytest.CaptureFixture
) -> None:
    fake_slurm.answer("srun", 'while case "$1" in --*) true;; *) false;; esac; do shift; done; exec "$@"')
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "environment: {WORD: two words}\nsetup: [echo set up]\nsrun_args: [--container-image=a]\n"
        "evaluate: {cpus_per_task: 3, mem_gb: 9, minutes: 50, sbatch: {gres: gpu:a100:1, exclusive: true}}\n"
    )
    said = debug(run, "--cluster", str(profile), "--set-profile", "evaluate.minutes=40")
    (call,) = (line for line in fake_slurm.calls("srun") if "bash -c" in line)
    assert call[: call.index("bash -c")].split() == [
        *(f"--job-name=debug:{run.config.run_id}@mixerbench", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=3"),
        *("--mem=9GB", "--time=40", "--gres=gpu:a100:1", "--exclusive", "--container-image=a"),
    ]
    assert said.startswith("srun --job-name=debug:") and "two words" in said
    assert "set up\n" in (shown := capfd.readouterr().out) and "finished: train" in shown
    assert RunFolder(run.folder).read_summary() is not None
