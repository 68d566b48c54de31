"""Mixers of installed packages and of single files, up to a job that trains one. Crosses all rooms on purpose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.experiments.run_config import read_config
from harness.files import CHECKOUT
from harness.run_folder import RunFolder
from mixers import build_mixer, register_mixer, registry
from mixers.interface import Mixer
from run import app
from slurm.plan import plan

cli = CliRunner()

RUNNING_MEAN = """
import torch
from pydantic import PositiveInt
from torch import nn

from mixers import Cost, Mixer, MixerConfig, register_mixer


class RunningMeanConfig(MixerConfig):
    width: PositiveInt = 32


@register_mixer("running_mean", display="Running mean")
class RunningMean(Mixer):
    config_class = RunningMeanConfig

    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.into = nn.Linear(d_model, config.width, bias=False)
        self.out = nn.Linear(config.width, d_model, bias=False)

    def mix(self, x, state, return_state):
        h = self.into(x)
        state = state or {"sum": h.new_zeros(len(h), h.shape[-1]), "count": h.new_zeros(len(h))}
        sums = state["sum"][:, None] + h.cumsum(1)
        counts = state["count"][:, None] + torch.arange(1, h.shape[1] + 1, device=h.device)
        y = self.out(sums / counts[..., None])
        return y, {"sum": sums[:, -1], "count": counts[:, -1]} if return_state else None

    def cost(self, seq_len):
        return Cost.recurrent(self.parameter_count(), self.parameter_count(), self.config.width + 1, 2)
"""


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry.entries()))
    monkeypatch.setattr(registry, "_files", {})


@pytest.fixture
def mixer_file(tmp_path: Path) -> Path:
    path = tmp_path / "running_mean.py"
    path.write_text(RUNNING_MEAN)
    return path


def distribution(folder: Path, name: str, module: str, entry_points: str) -> None:
    """Write the files that pip installs for a package with one module."""
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mixerbench.mixers]\n{entry_points}\n")


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, *path)))}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_installed_packages_add_mixers_and_a_broken_one_is_named_and_left_out(tmp_path: Path) -> None:
    distribution(tmp_path, "registers", RUNNING_MEAN, "any = registers")
    bare = RUNNING_MEAN.replace('@register_mixer("running_mean", display="Running mean")\n', "")
    distribution(tmp_path, "yields", bare, "mean_by_class = yields:RunningMean")
    function = bare + "\n\ndef add():\n    register_mixer('by_call', display='By call')(RunningMean)\n"
    distribution(tmp_path, "calls", function, "any = calls:add")
    half = RUNNING_MEAN.replace("running_mean", "half") + "\nimport no_such_module\n"
    distribution(tmp_path, "broken", half, "any = broken")
    code = (
        "import sys; from mixers import build_mixer; from mixers.registry import entries\n"
        "print(sorted(set(entries()) - {'gdn2'}), build_mixer('mean_by_class', 8, {'width': 4}).parameter_count())\n"
        "assert not any(name.partition('.')[0] == 'fla' for name in sys.modules)"
    )
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "'by_call'" in result.stdout and "'mean_by_class'" in result.stdout and "'running_mean'" in result.stdout
    assert "'half'" not in result.stdout and result.stdout.endswith("] 64\n")
    assert "mixers of broken left out: mixerbench.mixers entry point any = broken: ModuleNotFoundError" in result.stderr


def test_a_file_is_run_once_for_the_same_content(mixer_file: Path, tmp_path: Path) -> None:
    assert registry.load_file(mixer_file) == ["running_mean"]
    loaded = registry.get("running_mean").cls
    copy = tmp_path / "copy.py"
    copy.write_text(RUNNING_MEAN)
    assert registry.load_file(copy) == ["running_mean"] == registry.load_file(mixer_file)
    assert registry.get("running_mean").cls is loaded
    assert registry.file_of("running_mean").path == str(mixer_file) and registry.file_of("gdn2") is None
    assert build_mixer("running_mean", 8, {"width": 4}).parameter_count() == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "registers no mixer; decorate a class with @register_mixer"),
        (RUNNING_MEAN.replace("running_mean", "gdn2"), "the name 'gdn2' is already taken by GatedDeltaNet2"),
        (RUNNING_MEAN + "\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_file_that_adds_no_new_mixer_is_refused_and_leaves_nothing(
    tmp_path: Path, content: str, message: str
) -> None:
    path, before = tmp_path / "mixer.py", dict(registry.entries())
    path.write_text(content)
    with pytest.raises(ValueError, match=f"mixer_file: {path}: .*{message}"):
        registry.load_file(path)
    assert registry.entries() == before
    with pytest.raises(ValueError, match=r"mixer_file: .*absent.py is missing; give the path"):
        registry.load_file(tmp_path / "absent.py")


def test_an_edited_file_needs_a_new_process(mixer_file: Path) -> None:
    registry.load_file(mixer_file)
    mixer_file.write_text(RUNNING_MEAN + "# edited\n")
    with pytest.raises(ValueError, match="already taken by RunningMean; it has changed since this process loaded it"):
        registry.load_file(mixer_file)


def test_a_name_that_cannot_be_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mixer: 'a/b' cannot name a run's folder; use letters"):
        register_mixer("a/b", display="A")(Mixer)


def experiment(folder: Path, shards: Path, **changes: object) -> Path:
    phase = {"tokens": 3 * 2 * 32, "seq_len": 32, "rows": {"text": 1, "mqar": 1}}
    content = {
        "name": "own",
        "preset": "cpu-600k",
        "mixers": [{"mixer": "running_mean", "options": {"width": 64}}],
        "mixer_files": ["running_mean.py"],
        "data": {"source": str(shards), "phases": [phase]},
        "train": {"threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 8}},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_the_content_of_a_file_and_not_its_place_is_part_of_the_run(
    mixer_file: Path, tmp_path: Path, small_data: Path
) -> None:
    (work,) = plan(load_experiment(experiment(tmp_path, small_data)), tmp_path / "runs")
    file = work.config.mixer_file
    moved = work.config.model_copy(update={"mixer_file": file.model_copy(update={"path": "/elsewhere.py"})})
    edited = work.config.model_copy(update={"mixer_file": file.model_copy(update={"sha256": "0" * 64})})
    assert moved.run_id == work.config.run_id != edited.run_id


@pytest.mark.long
def test_a_mixer_in_a_file_is_trained_in_a_job_and_its_run_outlives_changes_of_the_file(
    mixer_file: Path, tmp_path: Path, small_data: Path
) -> None:
    path, runs = experiment(tmp_path, small_data), ["--runs", str(tmp_path / "runs")]
    submitted = cli.invoke(app, ["submit", str(path), "--cluster", "local", *runs])
    assert submitted.exit_code == 0, submitted.output
    (folder,) = (tmp_path / "runs").glob("running_mean-*")
    assert RunFolder(folder).read_summary().steps == 3 and list(folder.glob("records/recall+*.done"))
    assert read_config(folder).mixer_file.path == str(mixer_file)
    (row,) = json.loads(cli.invoke(app, ["status", str(path), *runs, "--json"]).output)
    assert (row["run"], row["state"]) == (folder.name, "done")
    generate = [str(CHECKOUT / "run.py"), "generate", "--run", str(folder), "It is", "--max-new-tokens", "4"]
    generated = subprocess.run([sys.executable, *generate], capture_output=True, text=True, timeout=120)
    assert generated.returncode == 0, generated.stderr
    for change in (lambda: mixer_file.write_text(RUNNING_MEAN + "# edited\n"), mixer_file.unlink):
        change()
        again = cli.invoke(app, generate[1:])
        assert again.exit_code == 0 and again.stdout == generated.stdout


def test_a_file_can_be_given_on_the_command_line(mixer_file: Path, tmp_path: Path, small_data: Path) -> None:
    path = experiment(tmp_path, small_data, mixer_files=[])
    given = ["--mixer-file", str(mixer_file)]
    runs = ["--runs", str(tmp_path / "runs")]
    unknown = cli.invoke(app, ["submit", str(path), "--dry-run", *runs])
    assert unknown.exit_code == 2 and "unknown name 'running_mean'" in unknown.output
    assert "running_mean-recurrent-s0" in cli.invoke(app, ["submit", str(path), "--dry-run", *runs, *given]).output
    assert "running_mean" in cli.invoke(app, ["list", *given]).output
    shown = cli.invoke(app, ["params", "--preset", "cpu-600k", *given])
    assert "running_mean" in shown.output and "has no options for it; add them in its file" in shown.output
    trained = cli.invoke(app, ["train", str(path), "--run", "running_mean", *runs, *given])
    assert trained.exit_code == 0, trained.output
    missing = cli.invoke(app, ["list", "--mixer-file", "nowhere.py"])
    assert missing.exit_code == 2 and "nowhere.py is missing" in missing.output
