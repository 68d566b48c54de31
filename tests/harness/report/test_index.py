"""The index of a folder of runs names every experiment: its summary, its report, or the command that makes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.files import CHECKOUT
from harness.report.index import write_index
from harness.run_folder import Submission, submissions_folder
from run import app
from tests.harness.tables.table_records import hostile_collection
from tests.harness.tables.test_escaping import Page

cli = CliRunner()


def submit(runs: Path, name: str) -> None:
    submission = Submission(submissions_folder(runs) / f"{name}-20260101")
    submission.path.mkdir(parents=True)
    plan = {"experiment": name, "cluster": "local", "host": "h", "pid": 1, "time": "2026-01-01", "runs": []}
    submission.write_plan(plan)


def test_every_experiment_is_named_with_its_summary_and_the_way_to_its_report(tmp_path: Path) -> None:
    for name in ("demo", "recall"):
        shutil.copytree(CHECKOUT / "results" / name, tmp_path / "collected" / name)
    (tmp_path / "collected" / "demo" / "report.html").write_text("")
    submit(tmp_path, "demo")
    submit(tmp_path, "later")
    result = cli.invoke(app, ["index", "--runs", str(tmp_path)])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "collected" / "index.html")
    page = (tmp_path / "collected" / "index.html").read_text()
    assert page.count("<h3>In short</h3>") == 2 and "2 collected, 1 not collected" in page
    assert 'href="demo/report.html"' in page and "run.py report recall" in page and "run.py collect later" in page
    rows = [text for text in Page(page).texts() if text in ("demo", "recall", "later")]
    assert rows == ["demo", "recall", "later"]


def test_foreign_texts_are_texts_and_a_damaged_collection_is_named_with_its_reason(tmp_path: Path) -> None:
    hostile_collection(tmp_path / "collected" / "<b>x")
    shutil.copytree(CHECKOUT / "results" / "demo", tmp_path / "collected" / "broken")
    (tmp_path / "collected" / "broken" / "runs.json").write_text("[")
    page = write_index(tmp_path).read_text()
    assert "<b>x" not in page and "&lt;b&gt;x" in page
    assert "Cannot be read" in page and "runs.json" in page


def test_a_folder_without_experiments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no experiment was submitted or collected there; give another --runs"):
        write_index(tmp_path)
