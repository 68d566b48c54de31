"""A run's folder is whole: it is read without its originals, from anywhere, packed into one file, and runs no code of
strangers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.data import corpus
from harness.experiments.run_config import read_config
from harness.files import file_sha256
from harness.run_folder import RunFolder
from harness.training import checkpoint
from run import app

pytestmark = pytest.mark.long

cli = CliRunner()
MIXER = """
from mixers import register_mixer
from mixers.gated_deltanet import GatedDeltaNet
from travelling_scale import SCALE


@register_mixer("travelling", display="Travelling")
class Travelling(GatedDeltaNet):
    def mix(self, *args, **kwargs):
        y, state = super().mix(*args, **kwargs)
        return y * SCALE, state
"""
EVAL = ["eval", "recall", "--set", "pairs=[2]", "--set", "samples=8", "--json", "--run"]


def say(*arguments: object) -> str:
    result = cli.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Iterator[Path]:
    """A folder with an experiment that names its data, tokenizer and mixer file by relative paths, and its runs."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))  # nothing was trusted before
        make(folder, small_data)
        yield folder


def make(folder: Path, small_data: Path) -> None:
    shutil.copytree(small_data, folder / "data")
    shutil.copyfile(corpus.TOKENIZER, folder / "tok.json")
    (folder / "mine.py").write_text(MIXER)
    (folder / "travelling_scale.py").write_text("SCALE = 1.5\n")
    content = {
        "name": "travel",
        "preset": "cpu-600k",
        "mixers": [{"mixer": "travelling", "options": {"heads": 2, "head_dim": 32}}],
        "mixer_files": ["mine.py"],
        "data": {
            "source": "data",
            "tokenizer": "tok.json",
            "phases": [{"tokens": 256, "seq_len": 64, "rows": {"text": 1, "mqar": 1}}],
        },
        "train": {"threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 8}},
    }
    (folder / "travel.yaml").write_text(yaml.safe_dump(content))
    say("submit", folder / "travel.yaml", "--cluster", "debug", "--runs", folder / "runs")


def run_of(runs: Path) -> Path:
    (run,) = runs.glob("travelling-*")
    return run


def test_a_replaced_tokenizer_changes_no_number_and_a_damaged_copy_is_named(home: Path) -> None:
    run = run_of(home / "runs")
    before = say(*EVAL, run)
    definition = json.loads((home / "tok.json").read_text("utf-8"))
    vocabulary = definition["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    vocabulary |= {names[-1]: vocabulary[names[-2]], names[-2]: vocabulary[names[-1]]}
    original = (home / "tok.json").read_bytes()
    (home / "tok.json").write_text(json.dumps(definition), "utf-8")
    assert say(*EVAL, run) == before
    kept = run / "tokenizer" / "tokenizer.json"
    sound = kept.read_bytes()
    kept.write_text(json.dumps(definition), "utf-8")
    result = cli.invoke(app, [*EVAL, str(run)])
    assert result.exit_code == 2 and "tokenizer.json: not the tokenizer that the run was trained with" in result.stderr
    kept.write_bytes(sound)
    (home / "tok.json").write_bytes(original)


def test_a_run_is_read_elsewhere_without_its_originals(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = say(*EVAL, run_of(home / "runs"))
    there = tmp_path / "another" / "home"
    ignored = shutil.ignore_patterns("data", "tok.json")
    shutil.copytree(home, there, ignore=ignored)
    monkeypatch.chdir(tmp_path)
    run = run_of(there / "runs")
    assert say(*EVAL, run) == numbers
    generate = ["generate", "The king", "--max-new-tokens", 2, "--run"]
    assert say(*generate, run) == say(*generate, run_of(home / "runs"))
    assert (Path(say("export", "--run", run, "--out", there / "out").strip()) / "travelling_scale.py").is_file()
    for command in (["submit", "--cluster", "debug"], ["collect"]):
        printed = say(command[0], there / "travel.yaml", *command[1:], "--runs", there / "runs")
        assert "everything is done" in printed or "records of 1 runs" in printed
    submit = ["submit", there / "travel.yaml", "--runs", there / "runs", "--cluster", "debug", "--set"]
    say(*submit, "suites.recall.samples=4")
    refused = cli.invoke(app, [*map(str, submit), "seeds=[7]"])
    assert refused.exit_code == 2 and "run data prepare with this folder" in refused.stderr


def test_a_run_is_packed_into_the_same_bytes_and_gives_the_same_numbers_when_unpacked(
    home: Path, tmp_path: Path
) -> None:
    run = run_of(home / "runs")
    packed = [Path(say("runs", "pack", run, "--out", tmp_path / name).strip()) for name in ("a.tar", "b.tar")]
    assert packed[0].read_bytes() == packed[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]
    there = Path(say("runs", "unpack", packed[0], "--runs", tmp_path / "runs").strip())
    assert there == tmp_path / "runs" / run.name and say(*EVAL, there) == say(*EVAL, run)
    records = RunFolder(run).records("recall").parent
    assert {file.name for file in records.iterdir()} == {file.name for file in (there / "records").iterdir()}
    assert "optimizer" not in checkpoint.load(checkpoint.latest(there))
    again = cli.invoke(app, ["runs", "unpack", str(packed[0]), "--runs", str(tmp_path / "runs")])
    assert again.exit_code == 2 and "exists; delete it, or give another --runs" in again.stderr


def test_code_in_a_strangers_run_does_not_run_unless_it_is_trusted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "foreign"
    shutil.copytree(run_of(home / "runs"), run)
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path / "cache"))  # of somebody who has never run this code
    for command in (["generate", "--run", str(run), "The"], [*EVAL, str(run)]):
        refused = cli.invoke(app, command)
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
        assert "mine.py: code that you have not run before" in refused.stderr and "--trust" in refused.stderr
    say(*EVAL, run, "--trust")
    say(*EVAL, run)  # trusted by now
    with (run / "mixer" / "travelling_scale.py").open("a") as file:
        file.write("from pathlib import Path\nPath('called').touch()\n")
    damaged = cli.invoke(app, [*EVAL, str(run)])
    assert damaged.exit_code == 2 and "travelling_scale.py: missing or damaged" in damaged.stderr
    inputs = RunFolder(run).read_inputs()
    inputs["mixer_files"]["travelling_scale.py"] = file_sha256(run / "mixer" / "travelling_scale.py")
    RunFolder(run).write_inputs(inputs)  # the stranger knows how to write a hash
    edited = cli.invoke(app, [*EVAL, str(run)])
    assert edited.exit_code == 2 and "code that you have not run before" in edited.stderr
    assert not (tmp_path / "called").exists() and read_config(run).mixer == "travelling"
