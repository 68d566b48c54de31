"""Sweeps on a real Slurm: dependencies, interruptions, failures and requeues, across all modules of slurm/."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.experiments.load import load_experiment
from harness.files import cache_dir
from harness.records.store import load
from harness.run_folder import RunFolder, submissions
from harness.training.train import train
from slurm.plan import RunPlan, plan
from slurm.trials import DIVERGED, failure
from suites.units import TRAIN
from tests.slurm.cluster.client import TINY, Client
from tests.slurm.cluster.killed_sweep import HOW, Killer, stand_in, stand_in_results, sweep
from tests.slurm.cluster.minislurm import MiniSlurm, running
from tests.slurm.experiments import break_checkout, copy_checkout, data_config, experiment

pytestmark = pytest.mark.slurm


@pytest.fixture
def client(slurm_cluster: MiniSlurm, tmp_path: Path) -> Client:
    return Client(slurm_cluster, tmp_path)


def long_experiment(client: Client, shards: Path, steps: int = 250, **changes: object) -> Path:
    recipe = {"lr": 1e-3, "checkpoint_every": 5, "threads": 1}
    return experiment(client.folder, shards, data=data_config(shards, steps), **({"train": recipe} | changes))


def outcomes(run: RunPlan, unit: str = TRAIN) -> list[str]:
    return [event.get("outcome", event["event"]) for event in RunFolder(run.folder).read_attempts(unit)]


def weights(run: RunPlan) -> str:
    summary = RunFolder(run.folder).read_summary()
    assert summary is not None, f"{run.config.run_id} is not trained"
    return summary.weights_sha256


def test_a_sweep_that_is_interrupted_in_every_way_ends_as_one_that_is_not(client: Client, small_data: Path) -> None:
    path = long_experiment(client, small_data, mixers=["gated_deltanet", "attention"], seeds=[0, 1, 2])
    runs = plan(load_experiment(path), client.runs)
    output = client.submit(path)
    assert all(name in output for name in ("prepare", "train-0", "recall-0", "collect"))
    requeued, told, killed, stepped, untouched, other = runs
    state = client.wait_for_checkpoint(requeued)
    client.cluster.run("scontrol", "requeue", state["job"])
    state = client.wait_for_checkpoint(told)
    client.cluster.run("scancel", "--signal=USR2", state["job"])
    client.cluster.restart_controller()
    os.kill(client.wait_for_checkpoint(killed)["pid"], signal.SIGKILL)
    os.kill(client.wait_for_checkpoint(stepped)["pid"], signal.SIGUSR2)
    client.finish(600)
    for run in runs:
        assert weights(run) == train(run.config, client.folder / "alone" / run.config.run_id).weights_sha256
        (evaluation,) = [
            event for event in RunFolder(run.folder).read_attempts(run.place("recall")) if event["event"] == "started"
        ]
        assert evaluation["time"] >= (run.folder / "train.json").stat().st_mtime
    assert outcomes(requeued).count("started") == 2 and "failed" not in outcomes(requeued)
    assert outcomes(told).count("left") == 1 and outcomes(stepped).count("left") == 1
    assert outcomes(killed).count("failed") == 1
    assert outcomes(untouched) == outcomes(other) == ["started"]
    assert {row["state"] for row in client.rows(path).values()} == {"done"}
    assert "fits" in client.call("doctor", "--cluster", "profile.yaml")
    frame = pd.read_parquet(client.runs / "collected" / "tiny" / "records.parquet")
    assert set(frame["run"]) == {run.config.run_id for run in runs}
    assert "Gated DeltaNet" in (client.runs / "collected" / "tiny" / "table.md").read_text()
    assert "nothing submitted" in client.submit(path)


def test_runs_whose_node_is_lost_go_on_on_another_one(small_data: Path, tmp_path: Path) -> None:
    with running(accounting=False) as cluster:  # of its own: a failure here leaves it without a node
        client = Client(cluster, tmp_path)
        path = long_experiment(client, small_data, steps=300, mixers=["attention"], seeds=[0, 1])
        runs = plan(load_experiment(path), client.runs)
        client.submit(path)
        first = client.wait_for_checkpoint(runs[0])["node"]
        assert client.wait_for_checkpoint(runs[1])["node"] == first
        (second,) = {"n1", "n2"} - {first}

        def started_on(*nodes: str) -> bool:
            begun = [
                [event["node"] for event in RunFolder(run.folder).read_attempts(TRAIN) if event["event"] == "started"]
                for run in runs
            ]
            return begun == [list(nodes)] * 2

        def shown(state: str, attempts: int, node: str) -> list[str]:
            rows = client.rows(path).values()
            assert [(row["state"], row["attempts"], row["node"]) for row in rows] == [(state, attempts, node)] * 2
            return [row["reason"] for row in rows]

        cluster.run("scontrol", "update", f"nodename={second}", "state=drain", "reason=wait")
        cluster.switch_off(first)
        cluster.give_up(first)
        assert all(f"ended without a word on {first}" in reason for reason in shown("requeued", 1, ""))
        cluster.run("scontrol", "update", f"nodename={second}", "state=resume")
        cluster.wait(lambda: started_on(first, second), f"the runs to start on {second}")
        again = f"started again: ended without a word on {first}"
        assert all(reason.endswith(again) for reason in shown("training", 2, second))
        cluster.bring_back(first)
        # Now the processes hang out of the controller's reach, and their next attempts must wait for them.
        for run in runs:
            os.kill(json.loads((run.folder / "state" / "train.json").read_text())["pid"], signal.SIGSTOP)
        cluster.cut_off(second)
        cluster.give_up(second)
        cluster.wait(
            lambda: sum(row["state"] == "RUNNING" for row in cluster.squeue()) == 2, f"the jobs to start on {first}"
        )
        assert started_on(first, second)
        cluster.bring_back(second)  # where Slurm ends what it has given up
        client.finish()
        for run in runs:
            assert weights(run) == train(run.config, client.folder / "alone" / run.config.run_id).weights_sha256
            assert outcomes(run) == ["started", "lost", "started", "lost", "started"]
            assert outcomes(run, run.place("recall")) == ["started"]
        assert started_on(first, second, first) and {row["state"] for row in client.rows(path).values()} == {"done"}
        frame = pd.read_parquet(client.runs / "collected" / "tiny" / "records.parquet")
        assert set(frame["run"]) == {run.config.run_id for run in runs}


def test_a_tuned_sweep_chooses_the_same_whatever_happens_to_its_trials(client: Client, small_data: Path) -> None:
    recipe = {"checkpoint_every": 5, "threads": 1, "max_skipped": 2}
    tuning = {
        "grid": {"train.lr": [1e4, 1e-3]},  # the first diverges
        "seeds": [10, 11],
        "choose": {"suite": "recall", "task": "mqar", "metric": "acc"},
    }
    path = long_experiment(client, small_data, steps=150, mixers=["attention"], train=recipe, tuning=tuning)
    (run,) = plan(load_experiment(path), client.runs)
    assert run.selection is not None
    diverging, killed = run.selection.trials[:2], run.selection.trials[2]
    output = client.submit(path)
    assert all(name in output for name in ("trials-0", "trials-recall-0", "choose", "train-0", "recall-0", "collect"))
    os.kill(client.wait_for_checkpoint(killed)["pid"], signal.SIGKILL)
    client.finish(600)
    (run,) = plan(load_experiment(path), client.runs)
    assert run.selection is not None and not run.missing and run.config.train.lr == 1e-3
    assert outcomes(killed).count("failed") == 1 and weights(killed)
    assert [failure(trial) is not None and failure(trial)[0] for trial in diverging] == [DIVERGED] * 2
    made = run.selection.file.read()
    assert made is not None and [trial["score"] is None for trial in made["trials"]] == [True, True, False, False]
    assert "1 of 1 runs done, 4 of 4 trials over, 2 of them failed" in client.call("status", str(path))
    assert weights(run) == train(run.config, client.folder / "alone" / run.config.run_id).weights_sha256
    # The job that chose is requeued: it finds the choice made, and makes the same one where it is gone.
    (submission,) = submissions(client.runs, "tiny")
    choose, file = submission.read_jobs()["choose"], run.selection.file.path
    before = file.read_bytes()
    file.unlink()
    client.cluster.run("scontrol", "requeue", choose)
    client.cluster.wait(file.exists, "the choice to be made again")
    assert file.read_bytes() == before
    assert "nothing submitted" in client.submit(path)


def test_a_time_limit_costs_nothing_but_time(client: Client, small_data: Path) -> None:
    client = Client(client.cluster, client.folder, train=TINY | {"minutes": 1})
    # Pauses make a job longer than its limit on a fast machine, and little longer on a slow one.
    (client.folder / "paced.py").write_text(
        "import os, time\nfrom mixers import register_mixer\nfrom mixers.gated_deltanet import GatedDeltaNet\n"
        "@register_mixer('paced', display='Paced')\nclass Paced(GatedDeltaNet):\n"
        "    def mix(self, *arguments):\n        time.sleep(0.3 if 'SLURM_JOB_ID' in os.environ else 0)\n"
        "        return super().mix(*arguments)\n"
    )
    mixer = {"mixer": "paced", "options": {"heads": 2, "head_dim": 32}}
    path = long_experiment(client, small_data, steps=60, mixers=[mixer], mixer_files=["paced.py"])
    (run,) = plan(load_experiment(path), client.runs)
    client.submit(path)
    client.cluster.wait(lambda: "left" in outcomes(run), "the time limit to strike", 300)
    client.cluster.run(
        "scontrol", "update", f"JobId={RunFolder(run.folder).read_attempts(TRAIN)[0]['job']}", "TimeLimit=60"
    )
    client.finish()
    assert "failed" not in outcomes(run)
    assert weights(run) == train(run.config, client.folder / "alone").weights_sha256


def test_a_run_that_always_fails_is_given_up_and_the_others_are_finished(client: Client, small_data: Path) -> None:
    path = experiment(client.folder, small_data)
    broken, sound = plan(load_experiment(path), client.runs)
    broken.folder.mkdir(parents=True)
    (broken.folder / "checkpoints").symlink_to("/proc/sys")  # where not even root can make a file
    client.submit(path)
    client.finish()
    rows = client.rows(path)
    assert rows[broken.config.run_id]["state"] == "failed"
    assert "checkpoints" in rows[broken.config.run_id]["reason"]
    assert outcomes(broken).count("started") == 2 and not RunFolder(broken.folder).read_attempts(broken.place("recall"))
    assert rows[sound.config.run_id]["state"] == "done"
    assert "checkpoints" in client.call("logs", broken.config.run_id, "--runs", str(client.runs))
    again = client.submit(path)
    assert "failed twice in the same way" in again and "nothing submitted" in again
    (broken.folder / "checkpoints").unlink()
    options = ["--cluster", "profile.yaml", "--runs", str(client.runs)]
    client.call("retry", str(path), "--run", broken.config.run_id, *options)
    client.finish()
    assert {row["state"] for row in client.rows(path).values()} == {"done"}


def test_two_submissions_at_once_do_every_run_once_and_cancel_stops_it(client: Client, small_data: Path) -> None:
    path = long_experiment(client, small_data, steps=120)
    options = ["--cluster", "profile.yaml", "--runs", str(client.runs)]
    both = [client.start("submit", str(path), *options) for _ in "ab"]
    said = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("nothing submitted" in text for text in said) == 1
    runs = plan(load_experiment(path), client.runs)
    for run in runs:
        client.wait_for_checkpoint(run)
    assert "job" in client.call("cancel", str(path), "--runs", str(client.runs))
    client.finish()
    stopped = client.rows(path).values()
    assert {row["state"] for row in stopped} == {"stopped"}
    assert all(row["reason"].startswith("stopped at step ") for row in stopped)
    client.submit(path)
    client.finish()
    for run in runs:
        assert outcomes(run).count("started") == 2 and "failed" not in outcomes(run)
        assert outcomes(run, run.place("recall")) == ["started"]
        assert weights(run) == train(run.config, client.folder / "alone" / run.config.run_id).weights_sha256


def test_two_processes_give_the_losses_of_one_with_twice_the_rows(client: Client, small_data: Path) -> None:
    client = Client(client.cluster, client.folder, train=TINY | {"nodes": 2, "tasks_per_node": 1})
    path = experiment(client.folder, small_data, mixers=["gdn2"], data=data_config(small_data, steps=20), suites={})
    (run,) = plan(load_experiment(path), client.runs)
    client.submit(path)
    client.finish()
    summary = RunFolder(run.folder).read_summary()
    assert summary is not None and summary.world_size == 2
    alone = client.folder / "alone"
    train(run.config, alone)
    curves = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run.folder, alone)
    ]
    # The sums of a step's gradient in another order, over 20 steps: fp32 rounding.
    assert len(curves[0]) == 2 and curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_status_is_right_without_accounting(
    slurm_without_accounting: MiniSlurm, small_data: Path, tmp_path: Path
) -> None:
    client = Client(slurm_without_accounting, tmp_path)
    path = long_experiment(client, small_data, steps=400, mixers=["attention"])
    (run,) = plan(load_experiment(path), client.runs)
    client.submit(path)
    assert client.rows(path)[run.config.run_id]["state"] in ("queued", "training")
    pid = client.wait_for_checkpoint(run)["pid"]
    row = client.rows(path)[run.config.run_id]
    assert row["state"] == "training" and row["steps"] == 400 and row["loss"] > 0 and row["attempts"] == 1
    # A job of which nothing is left but what it last said of itself.
    client.cluster.run("scancel", "--signal=KILL", "--batch", row["job"])
    os.kill(pid, signal.SIGKILL)
    client.finish()
    row = client.rows(path)[run.config.run_id]
    assert row["state"] in ("lost", "stopped", "failed") and row["reason"]


def test_a_wrong_profile_is_refused_before_anything_is_submitted(client: Client, small_data: Path) -> None:
    prepare = TINY | {"partition": "moon"}
    client = Client(
        client.cluster, client.folder, prepare=prepare, train=TINY | {"gpus_per_node": 9}, shared=["/nowhere"]
    )
    faults = (
        "prepare.partition: unknown partition 'moon'; use one of: debug",
        "train.gpus_per_node: 9 is above the 2",
        "shared: '/nowhere' does not exist here",
    )
    (line,) = client.submit(experiment(client.folder, small_data), code=2).splitlines()
    checked = client.call("doctor", "--cluster", "profile.yaml", code=1)
    assert line.startswith("error: ") and all(fault in line and fault in checked for fault in faults)
    assert not client.runs.exists() and not client.cluster.squeue()


def test_a_dry_run_shows_the_graph_and_touches_nothing(client: Client, small_data: Path) -> None:
    path = experiment(client.folder, small_data, seeds=[0, 1])
    output = client.submit(path, "--dry-run")
    assert "afterok:prepare" in output and "aftercorr:train-0" in output and "afterany:prepare" in output
    assert "4 runs" in output and "FLOPs" in output
    assert not client.runs.exists() and not client.cluster.squeue()


def test_jobs_submitted_inside_another_job_run_the_code_that_was_submitted(client: Client, small_data: Path) -> None:
    checkout = copy_checkout(client.folder / "checkout")
    path = experiment(client.folder, small_data, mixers=["attention"])
    command = [sys.executable, str(checkout / "run.py"), "submit", str(path)]
    command += ["--cluster", "profile.yaml", "--runs", "runs"]
    said = client.folder / "parent.log"
    exports = f"--export=ALL,SBATCH_PARTITION=moon,MIXERBENCH_CACHE={cache_dir()}"
    inside = f"[ $SLURM_ARRAY_TASK_ID = 0 ] && [ $SLURM_MEM_PER_CPU = 2000 ] && srun {shlex.join(command)}"
    options = ["--array=0", "--mem-per-cpu=2000", f"--output={said}", exports]
    client.cluster.run("sbatch", *options, "--wrap", inside, cwd=client.folder)
    client.cluster.wait(lambda: said.exists() and "shows how far it is" in said.read_text(), "the submission", 240)
    break_checkout(checkout)
    client.finish(600)
    assert set(load(client.runs)["n"]) == {12}


def test_a_sweep_whose_jobs_are_killed_goes_through_a_small_limit_by_itself(client: Client, small_data: Path) -> None:
    client = Client(client.cluster, client.folder, evaluate=TINY | {"pack": True}, python=stand_in(client.folder))
    path = experiment(client.folder, small_data, mixers=["attention"], seeds=list(range(24)))
    runs = plan(load_experiment(path), client.runs)
    killer = Killer(client.cluster, runs, share=0.15)
    journal = stand_in_results(client.folder, runs, killer)
    found = sweep(client, path, killer, limit=6, seconds=500, journal=journal)
    assert not found.lost and not found.doubled and not found.again
    assert {how for *_, how in found.killed} == set(HOW) and len(found.killed) == 7
    assert found.starts == 48 + 7
    # Two runs a wave.
    assert (found.most_queued, found.waves, found.sbatch_calls) == (6, 12, 1 + 3 * 12)
