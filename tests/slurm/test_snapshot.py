"""Snapshots of a submission: its jobs run the code and the files that were submitted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT, cache_dir
from harness.run_folder import RunFolder, Submission
from slurm.plan import plan
from slurm.snapshot import environment, keep_files, open_submission, snapshot
from tests.slurm.experiments import break_checkout, copy_checkout, data_config, experiment, wait_for
from tests.suites.built_in import built_in_only


@pytest.mark.long
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


def test_the_code_is_copied_once_per_content_without_what_git_ignores(tmp_path: Path) -> None:
    checkout, runs = tmp_path / "checkout", tmp_path / "runs"
    (checkout / "harness").mkdir(parents=True)
    (checkout / "run.py").write_text("print(1)\n")
    (checkout / "harness" / "new.py").write_text("x = 1\n")
    (checkout / "harness" / "secret.txt").write_text("no\n")
    (checkout / ".gitignore").write_text("secret.txt\n")
    for command in (["init", "-q"], ["add", "run.py", ".gitignore"]):
        subprocess.run(["git", "-C", str(checkout), *command], check=True)
    first = snapshot(runs, checkout)
    files = {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()}
    assert {"run.py", "harness/new.py"} <= files and "harness/secret.txt" not in files
    assert snapshot(runs, checkout) == first
    (checkout / "run.py").write_text("print(2)\n")
    second = snapshot(runs, checkout)
    assert second != first and (first / "run.py").read_text() == "print(1)\n"
    assert environment(second)["PYTHONPATH"].split(os.pathsep)[0] == str(second)


@pytest.mark.parametrize("git", ["missing", "refuses"])
def test_where_git_does_not_answer_every_file_counts(tmp_path: Path, git: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    (checkout / ".git").mkdir(parents=True)
    (checkout / "harness" / "__pycache__").mkdir(parents=True)
    (checkout / "harness" / "new.py").write_text("x = 1\n")
    (checkout / "harness" / "__pycache__" / "new.pyc").write_text("bytes\n")
    programs.mkdir()
    if git == "refuses":
        (programs / "git").write_text(
            "#!/bin/sh\necho 'fatal: detected dubious ownership in repository' >&2\nexit 128\n"
        )
        (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs) if git == "missing" else f"{programs}{os.pathsep}{os.environ['PATH']}")
    copy = snapshot(tmp_path / "runs", checkout)
    assert [str(path.relative_to(copy)) for path in copy.rglob("*.py*")] == ["harness/new.py"]


def test_a_mixer_file_is_copied_with_the_modules_beside_it(tmp_path: Path, small_data: Path) -> None:
    (tmp_path / "snapshot_part.py").write_text("DISPLAY = 'Split'\n")
    (tmp_path / "split.py").write_text(
        "from mixers import register_mixer\nfrom mixers.gated_deltanet import GatedDeltaNet\n"
        "from snapshot_part import DISPLAY\n"
        "@register_mixer('snapshot_split', display=DISPLAY)\nclass Split(GatedDeltaNet):\n    pass\n"
    )
    mixer = {"mixer": "snapshot_split", "options": {"heads": 2, "head_dim": 32}}
    path = experiment(tmp_path, small_data, mixers=[mixer], mixer_files=["split.py"])
    loaded = load_experiment(path)
    _, (run,) = keep_files(loaded, plan(loaded, tmp_path / "runs"), tmp_path / "runs")
    copy = Path(run.config.mixer_file.path)
    assert sorted(file.name for file in copy.parent.iterdir()) == ["snapshot_part.py", "split.py"]
    (tmp_path / "snapshot_part.py").write_text("DISPLAY = 'Edited'\n")
    _, (edited,) = keep_files(loaded, plan(loaded, tmp_path / "runs"), tmp_path / "runs")
    assert Path(edited.config.mixer_file.path).parent != copy.parent


def test_two_submissions_in_one_second_have_folders_of_their_own(tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data)
    loaded = load_experiment(path)
    plans = plan(loaded, tmp_path / "runs")
    folders = [open_submission(loaded, plans, tmp_path / "runs", "local") for _ in "abc"]
    assert len(set(folders)) == 3
    for folder in folders:
        assert load_experiment(Submission(folder).experiment) == loaded
        assert [run["run"] for run in Submission(folder).read_plan()["runs"]] == [run.config.run_id for run in plans]


def test_a_mixer_file_is_copied_and_refused_when_it_changes_meanwhile(tmp_path: Path, small_data: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from mixers import register_mixer\nfrom mixers.gated_deltanet import GatedDeltaNet\n"
        "@register_mixer('snapshot_mine', display='Mine')\nclass Mine(GatedDeltaNet):\n    pass\n"
    )
    mixer = {"mixer": "snapshot_mine", "options": {"heads": 2, "head_dim": 32}}
    path = experiment(tmp_path, small_data, mixers=[mixer], mixer_files=[str(file)])
    loaded = load_experiment(path)
    plans = plan(loaded, tmp_path / "runs")
    experiment_kept, (run,) = keep_files(loaded, plans, tmp_path / "runs")
    copy = Path(run.config.mixer_file.path)
    assert copy.parent.parent == tmp_path / "runs" / "code" and copy.read_text() == file.read_text()
    assert experiment_kept.mixer_files == [str(copy)] and run.config.run_id == plans[0].config.run_id
    file.write_text("changed")
    with pytest.raises(ValueError, match="mine.py has changed while it was being submitted; submit again"):
        keep_files(loaded, plans, tmp_path / "runs")


def test_jobs_that_wait_keep_the_files_of_their_suites(tmp_path: Path, small_data: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "suites.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "copy.py").write_text(code)
    suites = {"copy": {"lengths": [4]}, "recall": {}}
    path = experiment(tmp_path, small_data, suites=suites, suite_files=["copy.py"])
    with built_in_only():
        loaded = load_experiment(path)
        plans = plan(loaded, tmp_path / "runs")
        kept, kept_plans = keep_files(loaded, plans, tmp_path / "runs")
    (copy,) = kept.suite_files
    assert Path(copy).parents[1] == tmp_path / "runs" / "code" and Path(copy).read_text() == code
    for before, after in zip(plans, kept_plans, strict=True):
        assert after.units["copy@4"].suite_file.path == copy and after.units["recall"] == before.units["recall"]
        assert after.units["copy@4"].key("0") == before.units["copy@4"].key("0")
    with built_in_only():
        assert [p.missing for p in plan(kept, tmp_path / "runs")] == [p.missing for p in plans]
    (tmp_path / "copy.py").write_text(code + "\n# edited\n")
    with (
        built_in_only(),
        pytest.raises(ValueError, match="suite_file: .*copy.py has changed while it was being submit"),
    ):
        keep_files(loaded, plans, tmp_path / "runs")
