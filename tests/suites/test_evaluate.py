"""An evaluation killed in the middle is continued, and its records are those of one that was not."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.code import this_code
from harness.experiments.load import load_experiment
from harness.records.store import load
from harness.run_folder import RunFolder
from run import app
from slurm.plan import plan
from suites.evaluate import evaluate
from suites.interface import Progress, silent
from suites.registry import evaluations
from tests.harness.lm.runs import finished_run, model_config
from tests.slurm.experiments import RUN, call, experiment

cli = CliRunner()
SUITES = {"recall": {"pairs": [2, 4, 8], "samples": 400}}


@pytest.mark.long
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
            assert not RunFolder(work.folder).done(work.place("recall")).exists()
            written = found[0].read_bytes()
            assert 0 < written.count(b"\n") < 1200
        result = cli.invoke(app, ["submit", str(path), "--cluster", "debug", "--runs", str(runs)])
        assert result.exit_code == 0, result.output
        if name == "killed":  # what was answered is not asked again
            first, second = RunFolder(work.folder).read_history(work.place("recall"))
            assert (first["reached"], second["reached"]) == (0, written.count(b"\n"))
        assert RunFolder(work.folder).all_answers(work.place("recall")) == []  # the unit is done
        frame = load(work.folder)
        tables.append(frame[["task", "metric", "length", "value", "stderr", "n"]])
    pd.testing.assert_frame_equal(*tables)


def test_a_run_trains_on_rows_of_needles_and_its_table_says_so(tmp_path: Path, small_data: Path) -> None:
    phase = {"tokens": 2 * 4 * 300, "seq_len": 300, "rows": {"s_niah_1": 2, "mk_niah_1": 1, "text": 1}}
    data = {"source": str(small_data), "phases": [phase]}
    options = {"tasks": ["s_niah_1"], "lengths": [256], "samples": 2, "max_new_tokens": 12, "steps": "unit"}
    experiment(tmp_path, small_data, mixers=["attention"], data=data, suites={"ruler": options})
    call(tmp_path, "submit", "--cluster", "debug")
    call(tmp_path, "collect")
    shown = call(tmp_path, "table")
    reason = "trained on rows in the format of S-NIAH-1, MK-NIAH-1, so not zero-shot"
    assert f"[a] not the paper's measurement: S-NIAH-1 (stand-in) @256: {reason}" in shown
    assert "2 s_niah_1" in shown  # the note on the mixture


def test_answers_by_other_code_are_asked_anew_and_the_same_code_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path / "run", model_config("gated_deltanet", "recurrent"))
    (asked,) = evaluations("recall", {"pairs": [2], "samples": 600}).values()
    run, place = RunFolder(tmp_path / "run"), asked.place("recall")

    def killed(line: str) -> None:
        if "requests" in line:  # the first chunk is answered
            raise KeyboardInterrupt

    def attempt(progress: Progress) -> int:
        """Evaluate; returns the number of answers that the attempt found."""
        with contextlib.suppress(KeyboardInterrupt):
            evaluate(run.path, "recall", asked, "label", "test", progress)
        return run.read_history(place)[-1]["reached"]

    assert attempt(killed) == 0 and len(run.all_answers(place)) == 1
    assert attempt(killed) >= 512  # a chunk of requests
    code = replace(this_code(), sha256="e" * 64)
    monkeypatch.setattr(sys.modules["harness.records.provenance"], "this_code", lambda: code)
    assert attempt(silent) == 0
    (sha,) = set(load(run.path)["code_sha256"])
    assert sha == "e" * 64 and run.all_answers(place) == []
    monkeypatch.undo()
    run.records(place).unlink()
    assert attempt(silent) == 0  # the unit was done, and its answers with it
