"""Every command line of the documents, executed on a tiny experiment or listed with the reason why not; their links."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from harness.data.tokenizer import load_tokenizer
from harness.experiments.data import DataConfig, Phase, RecallPhase, StateTrackingPhase
from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.schema import Ablation, Expected, Experiment, MixerSpec, TrainConfig
from harness.experiments.truths import Chance, Order, Threshold
from harness.experiments.tuning import Choice, Tuning
from harness.figures import FIGURES
from harness.lm.export import to_llama
from harness.lm.load import load_trained
from harness.records.metrics import BUILT_IN
from harness.records.store import COLUMNS
from harness.training.batches import data_sha256
from run import app
from suites import registry
from tests.documented import CHECKOUT, DOCUMENTS, Command, commands

cli = CliRunner()
CLUSTER = "starts a Slurm; the fixture slurm_cluster of tests/slurm does the same"
NOT_EXECUTED = {
    "make demo": "takes a quarter of an hour or more",
    "make test": "is this",
    "make test-long": "is this, with the marker long",
    "make test-slurm": "is tests/slurm, with the marker slurm",
    "make test-pages": "is tests/pages, with the marker pages",
    "make gpu PYTHON=…": "needs a GPU",
    "make gpu-short PYTHON=…": "needs a GPU; tests/suites/bench/test_gpu_short.py rehearses it",
    "pytest -m gpu": "needs a GPU",
    "pip install --no-deps --no-build-isolation mamba-ssm==2.3.2.post1": "installs; `make venv` does the same",
    "bash tests/slurm/cluster/install.sh": "installs, as root",
    "python3 tests/slurm/cluster/minislurm.py up /tmp/s1": CLUSTER,
    "python3 tests/slurm/cluster/minislurm.py down /tmp/s1": CLUSTER,
    "python -m tests.slurm.cluster.killed_sweep OUT --stand-ins": "minutes; see tests/slurm/cluster/test_sweeps.py",
    "python -m tests.layout": "writes the code map anew; tests/test_layout.py compares it with the tree",
    "python run.py bench ledger": "compiles for GPUs; tests/suites/bench/test_ledger.py tests its counting",
    "python run.py bench kernels --static": "minutes; tests/suites/bench/test_static_kernels.py compiles a part",
    "python run.py bench kernels --repeats 15": "as without an option, but longer",
    "python run.py bench lm": "half a minute at least; tests/suites/bench/test_lm.py times less of it",
    "python run.py bench lm --samples 64": "the same",
    "python run.py status EXPERIMENT --watch": "does not end",
    "mixerbench --install-completion": "writes to the shell's configuration; test_command_line.py completes a name",
}
ON_A_CLUSTER = [command for command in commands() if "--cluster PROFILE" in command.text]
"""tests/slurm/cluster/test_documents.py executes these."""

OF_EXPERIMENTS = ("submit", "retry", "train", "status", "cancel", "collect", "table", "figure", "report", "prefetch")
SMALLER = {
    ("submit",): ["--cluster", "debug"],
    ("check",): ["--long-tokens", "2048"],
    ("eval", "copy"): ["--set", "lengths=[4]", "--set", "samples=2"],
    ("eval", "recall"): ["--set", "pairs=[2]", "--set", "samples=2"],
    ("eval", "ruler"): ["--set", "tasks=[s_niah_1]", "--set", "lengths=[320]", "--set", "steps=unit"],
    ("generate",): ["--max-new-tokens", "4"],
    ("bench", "kernels"): ["--repeats", "3"],
    ("bench", "throughput"): ["--mixers", "attention", "--batch", "1", "--length", "32", "--steps", "1"],
    ("bench", "sweep"): ["--runs", "5"],
    ("bench", "tables"): ["--records", "2000"],
    ("bench", "loader"): ["--rows", "2", "--steps", "2", "--workers", "1"],
    ("bench", "optimizer"): ["--preset", "cpu-600k", "--steps", "2"],
}
"""Options appended to a documented command to make it short."""


def runnable() -> list[Command]:
    """The commands to execute here, each once; not those that read a data set of the Hub, which tests do without."""
    left = {c.text: c for c in commands() if c.text not in NOT_EXECUTED and c not in ON_A_CLUSTER}
    return [command for command in left.values() if "HuggingFaceFW/" not in command.text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """Where the commands are executed: experiments, one of them submitted and collected, and what its readers name."""
    folder = tmp_path_factory.mktemp("docs")
    phase = {"tokens": 512, "seq_len": 64, "rows": {"text": 2, "mqar": 2}}
    tiny = {
        "name": "tiny",
        "presets": ["cpu-600k"],
        "mixers": ["attention"],
        "data": {"source": str(small_data), "phases": [phase]},
        "train": {"threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 4}},
        "truths": [{"threshold": "mqar_acc", "of": ["attention"], "at": [2], "at_least": 0}],
        "scales": {"125m": {"description": "of the same size"}},
    }
    shapes = {"shapes": [{"batch": 1, "length": 32}], "steps": 1, "windows": 2, "warm_up": 1}
    speed = {"name": "speed", "preset": "cpu-600k", "mixers": ["attention"], "train": {"dtype": "fp32"}}
    speed |= {"suites": {"throughput": shapes}, "scales": {"cpu": {"description": "of the same size"}}}
    for name, content in (("tiny.yaml", tiny), ("speed.yaml", speed)):
        (folder / name).write_text(yaml.safe_dump(content))
    runs = ["--runs", str(folder / "runs")]
    # With a job's log, which processes of this machine have and this one has not.
    for command in (["submit", "tiny.yaml", "--cluster", "local"], ["submit", "speed.yaml", "--cluster", "debug"]):
        assert cli.invoke(app, [command[0], str(folder / command[1]), *command[2:], *runs]).exit_code == 0
    for name, scale in (("tiny", []), ("tiny", ["--scale", "125m"]), ("speed", ["--scale", "cpu"])):
        result = cli.invoke(app, ["collect", str(folder / f"{name}.yaml"), *scale, *runs])
        assert result.exit_code == 0, result.output
    packed = cli.invoke(app, ["runs", "pack", str(folder / "runs" / run_id(folder)), "--out", str(folder / "run.tar")])
    assert packed.exit_code == 0, packed.output
    model, _ = load_trained(folder / "runs" / run_id(folder))
    tokenizer = load_tokenizer()
    to_llama(model, tokenizer.bos_token_id, 256).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    texts = [json.dumps({"text": f"A short text, the {i}th of many."}) for i in range(300)]
    (folder / "texts.jsonl").write_text("\n".join(texts))
    (code,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (folder / "average.py").write_text(code)
    (code,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "suites.md").read_text("utf-8"), re.DOTALL)
    (folder / "copy.py").write_text(code)
    return folder


def run_id(folder: Path) -> str:
    """Id of the one run of tiny.yaml."""
    tiny = load_experiment(folder / "tiny.yaml")
    (run,) = expand(tiny, len(load_tokenizer()), data_sha256(tiny.data)).runs
    return run.run_id


def concrete(words: list[str], folder: Path, out: Path) -> list[str]:
    """A documented command with this folder's names for those that it leaves open, and what makes it short."""
    words = list(words)
    if words[0] in OF_EXPERIMENTS and "--paper" not in words:
        words[1] = "speed.yaml" if words[1] == "figure2" else "tiny.yaml"
    if words[0] == "compare":
        words[1:3] = ["tiny.yaml", "tiny"]
    names = {"FOLDER_OR_FILE": "texts.jsonl", "pretrained=FOLDER": "pretrained=llama", "FOLDER": str(out)}
    if words[0] != "params":
        names |= {"125m/gdn2": "cpu-600k/attention"}
    if words[0] in ("check", "bench"):
        names |= {"125m": "cpu-600k"}
    words = [names.get(word, re.sub(r"\bRUN\b", run_id(folder), word)) for word in words]
    smaller = SMALLER.get(tuple(words[:1]), SMALLER.get(tuple(words[:2]), []))
    return words if smaller and smaller[0] == "--cluster" and "--cluster" in words else [*words, *smaller]


@pytest.fixture(scope="module")
def executed() -> set[tuple[str, ...]]:
    """Commands that have done what they say, as `concrete` wrote them: many documented ones differ in a name alone."""
    return set()


LONG = ("python run.py bench kernels",)


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.long if c.text in LONG else (), id=c.text) for c in runnable()],
)
def test_a_documented_command_does_what_it_says(
    command: Command,
    folder: Path,
    executed: set[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline_data: Path,
) -> None:
    assert command.ours is not None, f"{command.document}: list why it is not executed"
    if (words := tuple(concrete(command.ours, folder, Path("out")))) in executed:
        return
    monkeypatch.chdir(folder)
    if command.ours[0] == "check":  # without the interpreter kernels are for GPUs, as they are for a reader
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if command.ours[0] == "prefetch":  # its manifest lies in the cache
        monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path / "cache"))
    result = cli.invoke(app, concrete(command.ours, folder, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    executed.add(words)


@pytest.mark.parametrize("command", [c for c in commands() if c.ours and c not in runnable()], ids=lambda c: c.text)
def test_a_documented_command_that_is_not_executed_here_has_its_options(command: Command) -> None:
    group, words = typer.main.get_command(app), command.ours
    if words[0].startswith("--"):  # to parse an option of the program itself would execute it
        assert any(words[0] in parameter.opts for parameter in group.params)
        return
    while isinstance(group, click.Group):
        group, words = group.commands[words[0]], words[1:]
    group.make_context("run.py", list(words))


def test_what_is_listed_as_not_executed_is_documented_and_make_has_every_target() -> None:
    documented = {command.text for command in commands()}
    assert set(NOT_EXECUTED) <= documented
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert {text.split()[1] for text in documented if text.startswith("make ")} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_the_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        path, _, heading = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_file(), f"{link}: no such file"
        assert not heading or heading in headings(target), f"{link}: no such heading"


def headings(document: Path) -> set[str]:
    """As a forge makes them anchors."""
    lines = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_files_that_the_documents_name_exist() -> None:
    for document in DOCUMENTS:
        named = re.findall(r"`((?:harness|mixers|suites|slurm|tests|results)/[\w./-]+)`", document.read_text("utf-8"))
        lacking = [name for name in named if not (CHECKOUT / name).exists() and not name.startswith("results/")]
        assert not lacking, f"{document.name}: {lacking}"


def test_every_field_of_an_experiment_and_of_a_record_every_metric_figure_and_suite_is_documented() -> None:
    schema = (CHECKOUT / "docs" / "experiments.md").read_text(encoding="utf-8")
    models = (Experiment, MixerSpec, DataConfig, Phase, RecallPhase, TrainConfig, Ablation, Expected, Tuning, Choice)
    models += (StateTrackingPhase, Threshold, Order, Chance)
    assert not [name for model in models for name in model.model_fields if not re.search(rf"\b{name}\b", schema)]
    results = (CHECKOUT / "docs" / "results.md").read_text(encoding="utf-8")
    results += (CHECKOUT / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    assert not [name for name in (*COLUMNS, *BUILT_IN) if f"`{name}`" not in results]
    assert not [name for name in FIGURES if f"`{name}`" not in results]
    evaluation = (CHECKOUT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert not [name for name in registry.BUILT_IN if f"| `{name}` |" not in evaluation]


def test_the_experiment_in_the_documents_is_one(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(.*?)```", (CHECKOUT / "docs" / "experiments.md").read_text("utf-8"), re.DOTALL)[1]
    (tmp_path / "mine.yaml").write_text(text)
    for scale in (None, "wide"):
        runs = expand(load_experiment(tmp_path / "mine.yaml", scale=scale), 4096, "0" * 64).runs
        assert [run.label for run in runs[::3]] == [
            "Gated DeltaNet-2",
            "Gated DeltaNet-2, scalar erase gate",
            "Gated DeltaNet with 2 taps",
        ]


def test_the_lines_that_load_records_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "results.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(CHECKOUT)
    exec(code, {})
    assert "Gated DeltaNet" in capsys.readouterr().out
