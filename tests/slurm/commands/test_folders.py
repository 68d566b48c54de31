"""The commands on folders of runs, as a user calls them."""

import json
from pathlib import Path

from typer.testing import CliRunner

from harness.training import checkpoint
from run import app
from slurm.state import started, write_status
from suites.units import TRAIN

cli = CliRunner()


def test_runs_are_listed_with_their_size_and_checkpoints_of_trained_ones_are_removed(tmp_path: Path) -> None:
    trained, unfinished = (tmp_path / name for name in ("run-1", "run-2"))
    for run in (trained, unfinished):
        started(run, TRAIN, "log")
        for step in (1, 2):
            checkpoint.save(run, step, {"step": step})
    (trained / "train.json").write_text("{}")
    rows = json.loads(cli.invoke(app, ["runs", "list", "--runs", str(tmp_path), "--json"]).output)
    assert [(row["run"], row["trained"]) for row in rows] == [("run-1", True), ("run-2", False)]
    assert all(row["bytes"] > 0 for row in rows)

    def left(keep: str) -> list[int]:
        result = cli.invoke(app, ["runs", "prune", "--keep", keep, "--runs", str(tmp_path)])
        assert result.exit_code == 0 and result.output.endswith(" MB freed\n"), result.output
        return [len(list((run / "checkpoints").glob("step_*"))) for run in (trained, unfinished)]

    write_status(trained, TRAIN, "queued", job="7")  # Slurm is silent here: it may be waiting
    assert left("none") == [2, 2]
    write_status(trained, TRAIN, "done")
    assert left("last") == [1, 2] and left("none") == [0, 2]
    assert cli.invoke(app, ["runs", "prune", "--keep", "some", "--runs", str(tmp_path)]).exit_code == 2


def test_disk_space_is_told_by_kind_the_largest_run_first(tmp_path: Path) -> None:
    small, large = (tmp_path / name for name in ("run-1", "run-2"))
    for run, step in ((small, 1), (large, 1), (large, 2)):
        started(run, TRAIN, "log")
        checkpoint.save(run, step, {"step": step})
    records = small / "records" / "recall.jsonl"
    records.parent.mkdir()
    records.write_bytes(b"x" * 700)
    (tmp_path / "code" / "abc").mkdir(parents=True)
    (tmp_path / "code" / "abc" / "a.py").write_bytes(b"x" * 300)
    found = json.loads(cli.invoke(app, ["runs", "du", "--runs", str(tmp_path), "--json"]).output)
    assert [row["run"] for row in found["runs"]] == ["run-2", "run-1"]
    for row in found["runs"]:
        files = [file for file in (tmp_path / row["run"]).rglob("*") if file.is_file()]
        assert row["bytes"] == sum(file.stat().st_size for file in files)
        assert row["bytes"] == sum(row[kind] for kind in ("checkpoints", "metrics", "records", "answers", "others"))
    assert found["runs"][1]["records"] == 700 and found["runs"][0]["records"] == 0
    assert found["beside"] == [{"name": "code", "bytes": 300}]
    shown = cli.invoke(app, ["runs", "du", "--runs", str(tmp_path)]).output.splitlines()
    assert [line.split()[0] for line in shown] == ["MB", "run-2", "run-1", "all", "code"]
    wrong = cli.invoke(app, ["runs", "du", "--runs", str(tmp_path / "none")])
    assert wrong.exit_code == 2 and "none is no folder; give the one where runs live" in wrong.output
