"""Small files that are empty, cut off, of another type or binary: one line names the file and the remedy, or the same
command mends it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from run import app

cli = CliRunner()
DAMAGES = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "binary": lambda content: b"\x80\xff\x00" + content[::-1],
    "a list": lambda content: b"[3]\n",
    "no fields": lambda content: b"{}\n",
}
SUBMIT, COLLECT = ["submit", "EXPERIMENT", "--cluster", "debug"], ["collect", "EXPERIMENT"]
EVAL = ["eval", "recall", "--set", "pairs=[2]", "--set", "samples=4", "--run", "RUN"]
READERS = {
    "RUN/config.yaml": [EVAL],
    "RUN/train.json": [["status", "damaged"], COLLECT, EVAL],
    "RUN/inputs.json": [EVAL],
    "RUN/tokenizer/tokenizer.json": [EVAL],
    "RUN/state/train.json": [["status", "damaged"], [*SUBMIT, "--set", "suites.recall.samples=5", "--dry-run"]],
    "RUN/state/train.jsonl": [["status", "damaged"]],
    "RUN/metrics.jsonl": [COLLECT],
    "RUN/checkpoints/index.json": [EVAL],
    "RUN/records/recall*.jsonl": [SUBMIT],  # measured again
    "RUNS/submissions/*/plan.json": [["status", "damaged"]],
    "RUNS/collected/damaged/records.parquet": [["table", "EXPERIMENT"]],
    "RUNS/collected/damaged/samples.json": [["table", "EXPERIMENT"]],
    "RUNS/collected/damaged/runs.json": [["table", "EXPERIMENT"]],
    "RUNS/collected/damaged/curves.parquet": [["figure", "EXPERIMENT", "--what", "curves"]],
    "DATA/index.json": [["data", "prepare", "PROSE", "--out", "DATA"]],
    "DATA/verified.json": [["data", "prepare", "PROSE", "--out", "DATA"]],
}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Iterator[dict[str, str]]:
    """Folders of a small comparison that is done, collected and tabulated, by the names that READERS give them."""
    folder = tmp_path_factory.mktemp("damage")
    content = {
        "name": "damaged",
        "preset": "cpu-600k",
        "mixers": ["attention"],
        "data": {
            "source": str(small_data),
            "phases": [{"tokens": 128, "seq_len": 64, "rows": {"text": 1, "mqar": 1}}],
        },
        "train": {"threads": 1},
        "suites": {"recall": {"pairs": [2], "samples": 4}},
    }
    (folder / "damaged.yaml").write_text(yaml.safe_dump(content))
    found = {"EXPERIMENT": str(folder / "damaged.yaml"), "RUNS": str(folder / "runs"), "DATA": str(small_data)}
    found["PROSE"] = str(small_data.parent / "prose.jsonl")
    for command in (SUBMIT, COLLECT, ["table", "EXPERIMENT"]):
        result = call(command, found)
        assert result.exit_code == 0, result.output
    (run,) = (folder / "runs").glob("attention-*")
    yield found | {"RUN": str(run)}


def call(command: list[str], names: dict[str, str]) -> Result:
    arguments = [names.get(argument, argument) for argument in command]
    return cli.invoke(app, arguments if command[0] == "eval" else [*arguments, "--runs", names["RUNS"]])


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_mended_or_named_with_a_remedy(name: str, names: dict[str, str]) -> None:
    first, _, rest = name.partition("/")
    path = max(Path(names[first]).glob(rest), key=lambda path: len(path.name) * (".samples." not in path.name))
    sound = path.read_bytes()
    for damage, spoil in DAMAGES.items():
        for command in READERS[name]:
            path.write_bytes(spoil(sound))
            result = call(command, names)
            path.write_bytes(sound)
            said = f"{path.name}, {damage}, {command[:2]}: {result.output}"
            if result.exit_code != 0:
                assert result.exit_code in (1, 2) and result.stderr.count("\n") == 1, said
                assert path.name in result.stderr and result.stderr.startswith("error: "), said
                assert ";" in result.stderr and "Error:" not in result.stderr, said
