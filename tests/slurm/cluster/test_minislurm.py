"""The Slurm cluster of the other tests: it schedules, requeues and accounts, and cleans up after itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.files import CHECKOUT
from tests.slurm.cluster.minislurm import MiniSlurm, running

pytestmark = pytest.mark.slurm


def submit(cluster: MiniSlurm, folder: Path, script: str, *options: str) -> str:
    logs = f"--output={folder}/%j.log"
    return cluster.run("sbatch", "--parsable", logs, *options, "--wrap", script, cwd=folder).strip()


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)  # a zombie has none


def test_tasks_of_an_array_wait_for_their_own_predecessor_also_when_it_is_requeued(
    slurm_cluster: MiniSlurm, tmp_path: Path
) -> None:
    # The middle task of the first array waits when it starts first and writes only when it starts again.
    first = """
        if [ $SLURM_ARRAY_TASK_ID = 1 ] && [ ! -e started ]; then touch started; sleep 600; fi
        echo first $SLURM_ARRAY_TASK_ID ${SLURM_RESTART_COUNT:-0} >> order
    """
    before = submit(slurm_cluster, tmp_path, first, "--array=0-2", "--requeue")
    second = "echo second $SLURM_ARRAY_TASK_ID >> order"
    after = submit(slurm_cluster, tmp_path, second, "--array=0-2", f"--dependency=aftercorr:{before}")
    order = tmp_path / "order"
    slurm_cluster.wait(
        lambda: (tmp_path / "started").exists() and order.exists() and order.read_text().count("second") == 2,
        "the tasks whose predecessors have ended",
    )
    assert {row["id"]: row["reason"] for row in slurm_cluster.squeue()}[f"{after}_1"] == "Dependency"
    slurm_cluster.run("scontrol", "requeue", f"{before}_1")
    slurm_cluster.wait(lambda: order.read_text().count("second") == 3, "the requeued task and its successor")
    lines = order.read_text().splitlines()
    assert lines[-2:] == ["first 1 1", "second 1"]
    everything = {f"{job}_{i}": "COMPLETED" for job in (before, after) for i in range(3)}
    slurm_cluster.wait(
        lambda: slurm_cluster.sacct(before) | slurm_cluster.sacct(after) == everything, "sacct to know of the end"
    )


def test_some_tasks_of_an_array_wait_for_their_own_predecessors(slurm_cluster: MiniSlurm, tmp_path: Path) -> None:
    before = submit(slurm_cluster, tmp_path, "[ $SLURM_ARRAY_TASK_ID != 3 ] || sleep 600", "--array=0-3")
    writes = "echo $SLURM_ARRAY_TASK_ID >> order"
    after = submit(slurm_cluster, tmp_path, writes, "--array=1,3%1", f"--dependency=aftercorr:{before}")

    def left() -> list[str]:
        return [row["id"] for row in slurm_cluster.squeue() if row["id"].startswith(f"{after}_")]

    slurm_cluster.wait(lambda: left() == [f"{after}_3"], "the task whose predecessor has ended")
    assert (tmp_path / "order").read_text() == "1\n"
    slurm_cluster.run("scancel", before, after)


def test_a_job_over_two_nodes_has_the_gpus_it_asked_for(slurm_cluster: MiniSlurm) -> None:
    shown = slurm_cluster.run(
        "srun", "-N2", "--gpus-per-node=2", "bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    )
    assert sorted(shown.splitlines()) == ["n1 0,1", "n2 0,1"]


def test_jobs_survive_a_restart_of_the_controller(slurm_cluster: MiniSlurm, tmp_path: Path) -> None:
    job = submit(slurm_cluster, tmp_path, "while [ ! -e go ]; do sleep 0.1; done; touch done")
    slurm_cluster.wait(lambda: row_of(slurm_cluster, job)["state"] == "RUNNING", "the job to start")
    slurm_cluster.restart_controller()
    assert row_of(slurm_cluster, job)["state"] == "RUNNING"
    (tmp_path / "go").touch()
    slurm_cluster.wait((tmp_path / "done").exists, "the job to end")


def row_of(cluster: MiniSlurm, job: str) -> dict[str, str]:
    return next(row for row in cluster.squeue() if row["id"] == job)


def test_without_accounting_jobs_run_and_sacct_says_that_it_is_off(
    slurm_without_accounting: MiniSlurm, tmp_path: Path
) -> None:
    submit(slurm_without_accounting, tmp_path, "touch done")
    slurm_without_accounting.wait((tmp_path / "done").exists, "the job to end")
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        slurm_without_accounting.sacct("1")


def test_a_cluster_ends_with_its_jobs_also_those_that_do_not_want_to(tmp_path: Path) -> None:
    with running(accounting=False) as cluster:
        submit(cluster, tmp_path, "trap '' TERM; (setsid sleep 600 &) ; touch started; while true; do sleep 600; done")
        cluster.wait((tmp_path / "started").exists, "the job to start")
        pids = cluster.processes()
        assert len(pids) >= 9  # munged, slurmctld and its helper, two slurmd, slurmstepd, the job and its two
    assert gone(pids) and not cluster.processes()
    assert not cluster.base.exists()


def test_a_cluster_ends_when_its_process_is_killed(tmp_path: Path) -> None:
    source = """if True:
        import time
        from tests.slurm.cluster.minislurm import running
        with running(accounting=False) as cluster:
            print(cluster.base, flush=True)
            time.sleep(600)
    """
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    owner = subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True)
    cluster = MiniSlurm(Path(owner.stdout.readline().strip()))
    pids = cluster.processes()
    assert pids
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    end = time.monotonic() + 60
    while cluster.base.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert gone(pids) and not cluster.base.exists()
