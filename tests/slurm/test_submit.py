"""The local half of the orchestrator, with real processes: done once, continued after a kill, errors beforehand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from harness.config import load_experiment
from harness.records import load
from harness.train import read_summary, train
from run import app
from slurm.jobs import at_work, exclusively
from slurm.plan import plan

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, str(ROOT / "run.py")]
cli = CliRunner()


def data_config(data: Path, steps: int) -> dict:
    phase = {"tokens": steps * 4 * 64, "seq_len": 64, "rows": {"text": 2, "mqar": 2}}
    return {"source": str(data), "phases": [phase]}


def experiment(folder: Path, shards: Path, **changes: object) -> Path:
    content = {
        "name": "tiny",
        "preset": "cpu-600k",
        "mixers": ["gated_deltanet", "attention"],
        "data": data_config(shards, steps=4),
        "train": {"lr": 1e-3, "checkpoint_every": 2, "threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 12}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_submit_trains_and_evaluates_once_and_the_table_comes_out(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    first = cli.invoke(app, ["submit", str(path), "--cluster", "local", "--runs", str(runs)])
    assert first.exit_code == 0, first.output
    second = cli.invoke(app, ["submit", str(path), "--cluster", "local", "--runs", str(runs)])
    assert second.exit_code == 0 and "nothing submitted: everything is done" in second.output
    frame = load(runs)
    assert set(frame["mixer"]) == {"gated_deltanet", "attention"}
    assert set(frame["n"]) == {12} and frame["git_commit"].notna().all()
    status = cli.invoke(app, ["status", str(path), "--runs", str(runs), "--json"])
    assert all(not row["missing"] for row in json.loads(status.output))
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
    assert dry.output.split()[-3:] == ["recall", "nothing", "submitted"]
    assert cli.invoke(app, ["submit", str(path), *more]).exit_code == 0
    assert set(load(runs)["n"]) == {20}


def test_a_killed_job_is_finished_by_calling_again_with_the_same_weights(tmp_path: Path, small_data: Path) -> None:
    # Some 150 steps of about 20 ms: long enough to be killed in the middle.
    recipe = {"lr": 1e-3, "checkpoint_every": 5, "threads": 1}
    data = data_config(small_data, steps=150)
    path = experiment(tmp_path, small_data, mixers=["gated_deltanet"], train=recipe, data=data)
    runs = tmp_path / "runs"
    (work,) = plan(load_experiment(path), runs)
    command = [*RUN, "submit", str(path), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    index = work.folder / "checkpoints" / "index.json"
    deadline = time.time() + 120
    while not index.exists() and time.time() < deadline:
        time.sleep(0.05)
    assert index.exists(), "no checkpoint within two minutes"
    os.kill(json.loads((work.folder / "status.json").read_text())["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "the process died; its log is" in output
    assert read_summary(work.folder) is None
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    summary = read_summary(work.folder)
    assert summary is not None
    assert summary.weights_sha256 == train(work.config, tmp_path / "uninterrupted").weights_sha256


def test_one_run_that_fails_is_reported_and_the_others_are_finished(tmp_path: Path, small_data: Path) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    broken, sound = plan(load_experiment(path), runs)
    broken.folder.mkdir(parents=True)
    (broken.folder / "checkpoints").write_text("a file where a folder must be")
    result = cli.invoke(app, ["submit", str(path), "--cluster", "local", "--runs", str(runs)])
    assert result.exit_code == 1
    assert f"failed: {broken.config.run_id}:" in result.output and "checkpoints" in result.output
    assert read_summary(sound.folder) is not None
    collected = cli.invoke(app, ["collect", str(path), "--runs", str(runs)])
    assert f"incomplete: {broken.config.run_id}" in collected.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixers=[gdn9]"], "mixer: unknown name 'gdn9'; known: attention"),
        (["data.source=nowhere"], "data.source: no index.json in nowhere; make it with"),
        (["data.tokenizer=nowhere.json"], "nowhere.json"),
        (["data.phases=[{tokens: 9, seq_len: 10000000, rows: {text: 1}}]"], "seq_len"),
        (["suites.recall.pears=[1]"], "suites.recall.pears: "),
        (["suites.recal={}"], "suites: unknown name 'recal'; known: language, ruler, retrieval, recall"),
        (["suites.recall.pairs=[1000]"], "suites.recall: pairs: 1000 is outside 1 to"),
        (["suites.ruler={lengths: [150], haystack: corpus}"], "suites.ruler: "),
        (["train.lr=fast"], "train.lr: "),
    ],
)
def test_wrong_use_ends_in_one_line_and_exit_code_2_before_anything_is_written(
    tmp_path: Path, small_data: Path, overrides: list[str], message: str
) -> None:
    path, runs = experiment(tmp_path, small_data), tmp_path / "runs"
    options = [part for override in overrides for part in ("--set", override)]
    result = cli.invoke(app, ["submit", str(path), "--runs", str(runs), *options])
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line]
    assert line.startswith("error: ") and message in line
    assert not runs.exists()


def test_an_interrupted_submit_stops_its_jobs_and_status_says_so(tmp_path: Path, small_data: Path) -> None:
    data = data_config(small_data, steps=2000)
    path = experiment(tmp_path, small_data, mixers=["gated_deltanet"], data=data)
    runs = tmp_path / "runs"
    (work,) = plan(load_experiment(path), runs)
    # As a shell starts it in the background: with ^C ignored, which processes hand on.
    command = ["bash", "-c", 'trap "" INT; exec "$@"', "bash", *RUN, "submit", str(path), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 120
    while not (work.folder / "checkpoints" / "index.json").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted; the same command continues" in output
    status = cli.invoke(app, ["status", str(path), "--runs", str(runs)])
    assert "stopped" in status.output
    assert not at_work(work.folder)


def test_two_submits_of_one_run_at_once_train_it_once(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, mixers=["attention"], data=data_config(small_data, steps=60))
    runs = tmp_path / "runs"
    (work,) = plan(load_experiment(path), runs)
    with exclusively(work.folder):
        result = cli.invoke(app, ["submit", str(path), "--cluster", "local", "--runs", str(runs)])
        assert result.exit_code == 1
        assert "another process is working on this run; wait for it or stop it" in result.output
    assert read_summary(work.folder) is None


def test_params_gives_every_mixer_and_layout_as_json() -> None:
    result = cli.invoke(app, ["params", "--preset", "release-1.3b", "--json"])
    rows = json.loads(result.output)
    assert len(rows) == 13
    for row in rows:
        assert row["non_embedding_params"] > 1.29e9 and row["flops_per_token"] > 7.7e9
        assert {"embedding_params", "state_floats_per_layer", "mlp_widths"} <= set(row)
    assert cli.invoke(app, ["params", "--preset", "2b"]).exit_code == 2
