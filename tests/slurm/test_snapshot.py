"""Snapshots of a submission: its jobs run the code and the files that were submitted."""

import os
import subprocess
import sys
from pathlib import Path

from harness.experiments.load import load_experiment
from harness.files import cache_dir
from harness.run_folder import RunFolder
from slurm.plan import plan
from tests.slurm.experiments import break_checkout, copy_checkout, data_config, experiment, wait_for


def test_editing_the_checkout_does_not_change_a_job_that_waits(tmp_path: Path, small_data: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    path = experiment(tmp_path, small_data, data=data_config(small_data, steps=100))
    command = [sys.executable, str(checkout / "run.py"), "submit", str(path), "--parallel", "1"]
    environment = os.environ | {"MIXERBENCH_CACHE": str(cache_dir())}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    first, second = plan(load_experiment(path), tmp_path / "runs")
    wait_for((first.folder / "state" / "train.json").exists)
    assert not (second.folder / "state").exists()
    break_checkout(checkout)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert RunFolder(second.folder).read_summary() is not None
