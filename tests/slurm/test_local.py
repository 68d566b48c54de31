"""Runs on this machine, with real processes: done once, resumed after a kill, given up, interrupted."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.records.store import load
from harness.run_folder import RunFolder
from harness.training.train import train
from run import app
from slurm.local import stop_requests
from slurm.plan import plan
from slurm.state import at_work, exclusively
from suites.units import TRAIN
from tests.slurm.experiments import RUN, data_config, experiment, wait_for
from tests.suites.built_in import built_in_only

pytestmark = pytest.mark.long

cli = CliRunner()


def test_submit_trains_and_evaluates_once_and_the_table_comes_out(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    before = dict(os.environ)
    first = cli.invoke(app, ["submit", str(path), "--cluster", "local", "--runs", str(runs)])
    assert first.exit_code == 0, first.output
    assert dict(os.environ) == before  # what jobs are told, this process forgets
    second = cli.invoke(app, ["submit", str(path), "--cluster", "local", "--runs", str(runs)])
    assert second.exit_code == 0 and "nothing submitted: everything is done" in second.output
    frame = load(runs)
    assert set(frame["mixer"]) == {"gated_deltanet", "attention"}
    assert set(frame["n"]) == {12} and frame["git_commit"].notna().all()
    status = cli.invoke(app, ["status", str(path), "--runs", str(runs), "--json"])
    assert [row["state"] for row in json.loads(status.output)] == ["done", "done"]
    collected = cli.invoke(app, ["collect", str(path), "--runs", str(runs)])
    assert collected.exit_code == 0, collected.output
    shown = cli.invoke(app, ["table", str(path), "--runs", str(runs)])
    assert shown.exit_code == 0, shown.output
    assert "Gated DeltaNet" in shown.output and "Transformer" in shown.output
    folder = runs / "collected" / "tiny"
    assert (folder / "table.md").read_text().strip() in shown.output
    assert len(pd.read_parquet(folder / "records.parquet")) == 2


def test_another_suite_or_other_options_are_run_without_training_again(tmp_path: Path, small_data: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ["--cluster", "debug", "--runs", str(runs), "--set", "mixers=[attention]"]
    path = experiment(tmp_path, small_data)
    assert cli.invoke(app, ["submit", str(path), *arguments]).exit_code == 0
    more = [*arguments, "--set", "suites.recall.samples=20"]
    dry = cli.invoke(app, ["submit", str(path), *more, "--dry-run"])
    assert dry.output.splitlines()[-3:][0].endswith("steps  recall")
    assert dry.output.splitlines()[-2:] == ["nothing to train", "nothing submitted"]
    assert cli.invoke(app, ["submit", str(path), *more]).exit_code == 0
    # What was asked for first stays beside it.
    counts = {n for path in runs.glob("*/records/*.jsonl") for n in load([path])["n"]}
    assert len(counts) == 2 and 20 in counts


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_a_job_that_is_killed_or_told_to_leave_starts_again_and_ends_with_the_same_weights(
    tmp_path: Path, small_data: Path, number: signal.Signals
) -> None:
    # Some 150 steps of about 20 ms: long enough to be killed in the middle.
    recipe = {"lr": 1e-3, "checkpoint_every": 5, "threads": 1}
    data = data_config(small_data, steps=150)
    path = experiment(tmp_path, small_data, mixers=["gated_deltanet"], train=recipe, data=data)
    runs = tmp_path / "runs"
    (run,) = plan(load_experiment(path), runs)
    command = [*RUN, "submit", str(path), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for((run.folder / "checkpoints" / "index.json").exists)
    os.kill(json.loads((run.folder / "state" / "train.json").read_text())["pid"], number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (ended,) = [event for event in RunFolder(run.folder).read_attempts(TRAIN) if event["event"] == "ended"]
    assert ended["outcome"] == ("failed" if number == signal.SIGKILL else "left")
    summary = RunFolder(run.folder).read_summary()
    assert summary is not None
    assert summary.weights_sha256 == train(run.config, tmp_path / "uninterrupted").weights_sha256
    kept = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert kept["seed"] == run.config.seed


def test_a_run_that_fails_twice_alike_is_given_up_the_others_are_finished_and_retry_tries_again(
    tmp_path: Path, small_data: Path
) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    broken, sound = plan(load_experiment(path), runs)
    broken.folder.mkdir(parents=True)
    (broken.folder / "checkpoints").symlink_to("/proc/sys")  # where not even root can make a file
    options = ["--cluster", "local", "--runs", str(runs)]
    result = cli.invoke(app, ["submit", str(path), *options])
    assert result.exit_code == 1
    assert f"failed: {broken.config.run_id}: train: " in result.output and "cannot be written" in result.output
    assert RunFolder(sound.folder).read_summary() is not None
    assert sum(event["event"] == "started" for event in RunFolder(broken.folder).read_attempts(TRAIN)) == 2
    collected = cli.invoke(app, ["collect", str(path), "--runs", str(runs)])
    assert f"incomplete: {broken.config.run_id}" in collected.output
    rows = json.loads(cli.invoke(app, ["status", str(path), "--runs", str(runs), "--json"]).output)
    assert {row["run"]: row["state"] for row in rows} == {broken.config.run_id: "failed", sound.config.run_id: "done"}
    assert "checkpoints" in cli.invoke(app, ["logs", broken.config.run_id, "--runs", str(runs)]).output
    again = cli.invoke(app, ["submit", str(path), *options])
    assert again.exit_code == 1 and "failed twice in the same way; `retry` tries again" in again.output
    assert sum(event["event"] == "started" for event in RunFolder(broken.folder).read_attempts(TRAIN)) == 2
    (broken.folder / "checkpoints").unlink()
    retried = cli.invoke(app, ["retry", str(path), "--failed", *options])
    assert retried.exit_code == 0, retried.output
    assert RunFolder(broken.folder).read_summary() is not None


def test_an_interrupted_submit_stops_its_jobs_and_status_says_so(tmp_path: Path, small_data: Path) -> None:
    data = data_config(small_data, steps=2000)
    path = experiment(tmp_path, small_data, mixers=["gated_deltanet"], data=data)
    runs = tmp_path / "runs"
    (run,) = plan(load_experiment(path), runs)
    # As a shell starts it in the background: with ^C ignored, which processes hand on.
    command = ["bash", "-c", 'trap "" INT; exec "$@"', "bash", *RUN, "submit", str(path), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for((run.folder / "checkpoints" / "index.json").exists)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted; the same command continues" in output
    status = cli.invoke(app, ["status", str(path), "--runs", str(runs)])
    assert "stopped" in status.output
    assert not at_work(run.folder, TRAIN)


def test_two_submits_at_once_train_every_run_once_and_both_wait_for_the_end(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, data=data_config(small_data, steps=60))
    runs = tmp_path / "runs"
    command = [*RUN, "submit", str(path), "--runs", str(runs)]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in "ab"]
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    for run in plan(load_experiment(path), runs):
        assert not run.missing
        for unit in (TRAIN, run.place("recall")):
            assert [event["event"] for event in RunFolder(run.folder).read_attempts(unit)] == ["started"]


def test_a_run_that_another_process_works_on_is_not_touched(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, mixers=["attention"])
    (run,) = plan(load_experiment(path), tmp_path / "runs")
    options = ["--run", "attention", "--runs", str(tmp_path / "runs")]
    with exclusively(run.folder, TRAIN):
        result = cli.invoke(app, ["train", str(path), *options])
    assert result.exit_code == 1
    assert "another process is working on train of this run; wait for it or stop it" in result.output
    assert RunFolder(run.folder).read_summary() is None


def test_the_first_interrupt_asks_to_stop_and_the_second_raises() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


ODD = """
import signal, sys
from suites.interface import Suite, SuiteConfig
from suites.registry import register_suite


@register_suite("odd", title="Odd")
class Odd(Suite):
    class Config(SuiteConfig):
        pass

    def run(self, lm, config, progress):
        {action}
        return []
"""


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", "interrupted; the same command continues"),
        ("signal.raise_signal(signal.SIGTERM)", "interrupted; the same command continues"),
        ("sys.exit()", "odd: code that it ran called sys.exit(None)"),
        ("raise BaseException('very odd')", "odd: very odd"),
    ],
)
def test_a_suite_that_ends_the_process_ends_a_debug_submit_in_one_line(
    action: str, said: str, tmp_path: Path, small_data: Path
) -> None:
    (tmp_path / "odd.py").write_text(ODD.format(action=action))
    suites = {"suites": {"odd": {}}, "suite_files": ["odd.py"], "mixers": ["attention"]}
    path = experiment(tmp_path, small_data, data=data_config(small_data, steps=1), **suites)
    with built_in_only():
        result = cli.invoke(app, ["submit", str(path), "--cluster", "debug", "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 1 and "(Pdb)" not in result.output
    (line,) = result.stderr.splitlines()
    assert said in line
    assert not os.environ.get("SUBMITIT_EXECUTOR")


@pytest.mark.parametrize("largest", [100, 100_000])
def test_a_full_disk_ends_a_debug_submit_in_one_line_and_the_same_command_continues(
    largest: int, tmp_path: Path, small_data: Path
) -> None:
    path = experiment(tmp_path, small_data, data=data_config(small_data, steps=1), mixers=["attention"])
    command = ["submit", str(path), "--cluster", "debug", "--runs", str(tmp_path / "runs")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow past this, as a full disk would: a plan, or a tokenizer and weights.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        refused = cli.invoke(app, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.exit_code == 1 and "(Pdb)" not in refused.output
    (line,) = refused.stderr.splitlines()
    assert "cannot be written" in line and "free space" in line
    again = "retry" if largest > 100 else "submit"  # it had begun, and failed twice alike
    more = ["--failed"] if again == "retry" else []
    done = cli.invoke(app, [again, *command[1:], *more])
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.rglob("*.partial"))
