"""An evaluation killed in the middle is continued, and its records are those of one that was not."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.records.store import load
from run import app
from slurm.plan import plan
from tests.slurm.experiments import RUN, experiment

cli = CliRunner()
SUITES = {"recall": {"pairs": [2, 4, 8], "samples": 400}}


def test_a_killed_evaluation_is_continued_and_gives_the_same_records(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, mixers=["gated_deltanet"], suites=SUITES)
    tables = []
    for name in ("killed", "whole"):
        runs = tmp_path / name
        (work,) = plan(load_experiment(path), runs)
        if name == "killed":
            command = [*RUN, "submit", str(path), "--cluster", "debug", "--runs", str(runs)]
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.time() + 120
            while not (found := list(work.folder.glob("answers/*.jsonl"))) or found[0].stat().st_size == 0:
                assert time.time() < deadline and process.poll() is None
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not (work.folder / "records" / "recall.done").exists()
            written = found[0].read_bytes()
            assert 0 < written.count(b"\n") < 1200
        result = cli.invoke(app, ["submit", str(path), "--cluster", "debug", "--runs", str(runs)])
        assert result.exit_code == 0, result.output
        if name == "killed":  # what was answered stands as it was
            assert found[0].read_bytes().startswith(written[: written.rindex(b"\n") + 1])
        frame = load(work.folder)
        tables.append(frame[["task", "metric", "length", "value", "stderr", "n"]])
    pd.testing.assert_frame_equal(*tables)
