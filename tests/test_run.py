"""Every command as a user calls it, on one tiny run; and wrong use of each, in one line."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.data.tokenizer import load_tokenizer
from harness.files import CHECKOUT
from harness.lm.export import to_llama
from harness.lm.load import load_trained
from harness.run_folder import RunFolder
from harness.training import checkpoint
from run import app, main

cli = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """A folder with an experiment, and its two runs trained by `train`."""
    folder = tmp_path_factory.mktemp("cli")
    phase = {"tokens": 512, "seq_len": 64, "rows": {"text": 2, "mqar": 2}}
    content = {
        "name": "cli",
        "preset": "cpu-600k",
        "mixers": ["kda", "attention"],
        "data": {"source": str(small_data), "phases": [phase]},
        "train": {"threads": 1},
    }
    (folder / "cli.yaml").write_text(yaml.safe_dump(content))
    for mixer in ("kda", "attention"):
        result = cli.invoke(app, ["train", str(folder / "cli.yaml"), "--run", mixer, "--runs", str(folder / "runs")])
        assert result.exit_code == 0, result.output
        assert "after 512 tokens" in result.output
    return folder


@pytest.mark.long
def test_training_that_is_told_to_end_saves_first_and_the_same_command_goes_on(trained: Path) -> None:
    long = yaml.safe_load((trained / "cli.yaml").read_text()) | {"name": "long"}
    long["data"]["phases"][0]["tokens"] = 256 * 80
    (trained / "long.yaml").write_text(yaml.safe_dump(long))
    arguments = ["train", str(trained / "long.yaml"), "--run", "kda", "--runs"]
    command = [sys.executable, str(CHECKOUT / "run.py"), *arguments, str(trained / "told")]
    # A shell that starts the tests in the background has them, and what they start, ignore interrupts.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT)
    while not any(path.read_text() for path in trained.glob("told/*/metrics.jsonl")):  # step 10
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 1 and "interrupted; the same command continues" in said
    (run,) = trained.glob("told/kda-*")
    saved = checkpoint.load(checkpoint.latest(run))["step"]
    assert 10 <= saved < 80
    for runs in ("told", "untold"):
        assert cli.invoke(app, [*arguments, str(trained / runs)]).exit_code == 0
    (other,) = trained.glob("untold/kda-*")
    assert RunFolder(run).read_summary().weights_sha256 == RunFolder(other).read_summary().weights_sha256


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_output_degrades_where_the_terminal_lacks_characters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    monkeypatch.setattr("sys.argv", ["run.py", "schema", "no → suite"])
    with pytest.raises(SystemExit) as ended:
        main()
    streams[1].flush()
    assert ended.value.code == 2 and b"error: mixer: unknown name 'no " in streams[1].buffer.getvalue()


def run_folder(trained: Path, mixer: str) -> str:
    (found,) = (trained / "runs").glob(f"{mixer}-*")
    return str(found)


def test_eval_measures_a_run_and_the_same_model_under_lm_evals_own_class(trained: Path) -> None:
    options = ["--set", "pairs=[2, 4]", "--set", "samples=6", "--json"]
    attention = run_folder(trained, "attention")
    ours = cli.invoke(app, ["eval", "recall", "--run", attention, *options])
    assert ours.exit_code == 0, ours.output
    model, _ = load_trained(Path(attention))
    tokenizer = load_tokenizer()
    exported = trained / "llama"
    to_llama(model, tokenizer.bos_token_id, 256).save_pretrained(exported)
    tokenizer.save_pretrained(exported)
    theirs = cli.invoke(app, ["eval", "recall", "--lm", "hf", "--lm-args", f"pretrained={exported}", *options])
    assert theirs.exit_code == 0, theirs.output
    a, b = (json.loads(r.stdout[r.stdout.index("[\n") :]) for r in (ours, theirs))
    assert [(m["length"], m["value"], m["n"]) for m in a] == [(m["length"], m["value"], m["n"]) for m in b]


def test_generate_continues_a_text_and_repeats_itself_under_a_seed(trained: Path) -> None:
    command = ["generate", "--run", run_folder(trained, "kda"), "It is a truth", "--max-new-tokens", "8"]
    sampled = [*command, "--temperature", "1", "--seed", "5"]
    first, second = cli.invoke(app, sampled), cli.invoke(app, sampled)
    assert first.exit_code == 0 and first.output == second.output
    assert cli.invoke(app, command).exit_code == 0


def test_data_prepare_makes_shards_from_a_file(tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": f"A short text, the {i}th of many."}) + "\n" for i in range(300)))
    result = cli.invoke(app, ["data", "prepare", str(source), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "index.json").is_file()


def test_doctor_and_list_name_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # under which kernels would serve a CPU too
    report = json.loads(cli.invoke(app, ["doctor", "--json"]).output)
    assert report["version_torch"] and set(report["mixers"]) >= {"gdn2", "mamba3_mimo", "attention"}
    for name, backend in (("gdn2", "triton"), ("gated_deltanet", "fla"), ("mamba2", "mamba-ssm")):
        mixer = report["mixers"][name]
        assert mixer["serving"] in ("torch", backend) and set(mixer["backends"]) == {"torch", backend}
        assert (mixer["serving"] == "torch") == (mixer["backends"][backend] is not None)
    known = json.loads(cli.invoke(app, ["list", "--json"]).output)
    assert "demo" in known["experiments"] and "release-1.3b" in known["presets"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["eval", "recal", "--run", "x"], "suites: unknown name 'recal'; known: language"),
        (["eval", "recall"], "--run, --lm, --untrained: give exactly one of them"),
        (["eval", "recall", "--untrained", "cpu-600k"], "--untrained: expected PRESET/MIXER, such as 125m/gdn2"),
        (["eval", "recall", "--untrained", "cpu-600k/gdn3"], "mixer: preset 'cpu-600k' has no geometry for 'gdn3'"),
        (["eval", "ruler", "--lm", "hf", "--limit", "8", "--set", "samples=4"], "--limit: suites.ruler.samples is set"),
        (["eval", "recall", "--run", "nowhere"], "nowhere: no run lies there"),
        (["eval", "recall", "--lm", "hf"], "--lm hf"),
        (["eval", "recall", "--run", "x", "--set", "pairs=["], "--set: 'pairs=[': not YAML"),
        (["generate", "--run", "nowhere", "Hello"], "nowhere: no run lies there"),
        (["data", "prepare", "nowhere.txt"], "nowhere.txt"),
        (["params", "--preset", "125m", "--length", "0"], "--length: 0 is no length"),
        (["submit", "demo", "--cluster", "moon"], "--cluster: no profile moon; give local, debug, a path, or one of: "),
        (["submit", "demo", "--set", "data=["], "--set: 'data=[': not YAML"),
        (["submit", "nowhere.yaml"], "experiment: no file nowhere.yaml; give a path, or one of: based-mqar, decode, "),
        (["bench", "kernels", "--repeats", "1"], "--repeats: 1 gives no spread"),
        (["table", "demo", "--runs", "nowhere"], "nothing collected there; run collect first"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(command: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(app, command)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line]
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_a_run_of_any_number_of_tokens_is_planned_at_once(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    phases = [{"tokens": 10**18, "seq_len": 64, "rows": {"text": 4}}]
    content = {"name": "long", "preset": "cpu-600k", "mixers": ["attention"], "data": {"phases": phases}}
    path.write_text(yaml.safe_dump(content))
    dry = cli.invoke(app, ["submit", str(path), "--dry-run", "--runs", str(tmp_path / "runs")])
    assert dry.exit_code == 0 and f"{10**18 // 256} steps" in dry.output, dry.output


def test_a_run_that_is_not_trained_to_its_end_is_not_evaluated(trained: Path) -> None:
    folder = Path(run_folder(trained, "kda"))
    summary = (folder / "train.json").read_text()
    (folder / "train.json").unlink()
    try:
        result = cli.invoke(app, ["generate", "--run", str(folder), "Hello"])
        assert result.exit_code == 2 and "not trained to its end" in result.output
    finally:
        (folder / "train.json").write_text(summary)
