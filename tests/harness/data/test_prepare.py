"""From texts to shards: the files written, resuming, the command, and errors."""

from __future__ import annotations

import json
import resource
from itertools import islice
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import harness.data.prepare
import harness.data.workers
from harness.data import corpus
from harness.data.prepare import finish, plan, prepare, work_folder
from harness.data.shards import TokenData
from harness.data.tokenise import Preparation
from harness.data.tokenizer import load_tokenizer
from harness.data.workers import do_parts
from run import app
from tests.harness.data.preparations import THIRDS, expected, file_contents, finished_shards, inodes, jsonl, streams

TEXTS = [f"Document {i} tells of {word}.\n\nIt ends." for i in range(20) for word in ("kings", "ships", "wax")]
HALVES = {"validation_fraction": 0.2, "test_fraction": 0.2}


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with texts as txt, jsonl and parquet, and a file that is none of these."""
    root = tmp_path / "texts"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    (root / "notes.md").write_text("not read", encoding="utf-8")
    write_jsonl(root / "b.jsonl", [{"text": text} for text in TEXTS[1:30]] + [{"text": ""}, {"text": None}])
    pyarrow.parquet.write_table(pyarrow.table({"n": range(30), "text": TEXTS[30:]}), root / "sub" / "c.parquet")
    return root


def decoded(data: TokenData, split: str) -> list[str]:
    """The documents of a split, read back from its stream."""
    tokenizer = data.tokenizer()
    text = tokenizer.decode(data.tokens(split)[:].tolist())
    assert not text or text.startswith(tokenizer.bos_token)
    return text.split(tokenizer.bos_token)[1:]


def test_every_document_of_txt_jsonl_and_parquet_lands_once_in_one_split(folder, tmp_path):
    data = prepare(folder, out_dir=tmp_path / "out", **HALVES)
    by_split = {split: decoded(data, split) for split in corpus.SPLITS}
    assert sorted(sum(by_split.values(), [])) == sorted(TEXTS)
    assert all(by_split.values()), "with these fractions every split has documents"
    counts = data.index["documents"]
    assert counts == {"read": 62, "empty": 2, **{split: len(texts) for split, texts in by_split.items()}}
    assert data.index["tokens"] == {split: len(data.tokens(split)) for split in corpus.SPLITS}
    assert data.index["settings"]["source"]["files_not_read"] == ["notes.md"]


def test_copies_of_a_text_stay_in_one_split(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS * 3])
    data = prepare(source, out_dir=tmp_path / "out", **HALVES)
    train, validation, test = (set(decoded(data, split)) for split in corpus.SPLITS)
    assert not train & validation and not train & test and not validation & test


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    first, second = (prepare(folder, out_dir=tmp_path / name, **HALVES) for name in ("one", "two"))
    assert first.index == second.index
    for shard in first.index["shards"]:
        assert (first.folder / shard["name"]).read_bytes() == (second.folder / shard["name"]).read_bytes()


def test_shards_of_any_size_hold_the_same_stream(folder, tmp_path):
    whole = prepare(folder, out_dir=tmp_path / "whole", **HALVES)
    cut = prepare(folder, out_dir=tmp_path / "cut", shard_tokens=50, **HALVES)
    assert len(cut.index["shards"]) > 10
    for split in corpus.SPLITS:
        assert cut.tokens(split)[:].tolist() == whole.tokens(split)[:].tolist()


def test_the_embedded_corpus_keeps_its_own_splits(tmp_path):
    data = prepare("embedded", out_dir=tmp_path / "out", max_tokens=20_000)
    for split in ("validation", "test"):
        assert decoded(data, split) == [document.text for document in corpus.documents(split)]
    train = decoded(data, "train")
    assert train == [document.text for document in islice(corpus.documents("train"), len(train))]
    assert data.index["documents"]["empty"] == 0 and data.index["dtype"] == "<u2"


def test_a_second_call_uses_what_is_there_and_another_text_or_setting_gets_another_folder(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path / "cache"))
    first = prepare(folder)
    stamp = (first.folder / "index.json").stat().st_mtime_ns
    assert prepare(folder).folder == first.folder and (first.folder / "index.json").stat().st_mtime_ns == stamp
    assert prepare(folder, test_fraction=0.3).folder != first.folder
    (folder / "a.txt").write_text("changed", encoding="utf-8")
    assert prepare(folder).folder != first.folder


def test_a_damaged_output_is_prepared_again(folder, tmp_path):
    data = prepare(folder, out_dir=tmp_path / "out")
    for name, damaged in ((data.index["shards"][0]["name"], b"\0\0"), ("index.json", b"{")):
        (data.folder / name).write_bytes(damaged)
        lines: list[str] = []
        again = prepare(folder, out_dir=tmp_path / "out", progress=lines.append)
        assert again.index == data.index and name in lines[0] and "the data are prepared again" in lines[0]


def test_an_output_folder_that_holds_other_things_is_left_alone(folder, tmp_path):
    prepare(folder, out_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="holds data of another fractions; choose another or remove it"):
        prepare(folder, out_dir=tmp_path / "out", test_fraction=0.3)
    with pytest.raises(ValueError, match="exists and was not made by data prepare"):
        prepare(folder, out_dir=folder)
    assert (folder / "a.txt").read_text(encoding="utf-8") == TEXTS[0]


def test_a_failure_half_way_leaves_nothing(tmp_path):
    rows = [{"text": text} for text in TEXTS * 20] + [{"body": "x"}]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=f"no 'text' in line {len(rows)} of .*; its fields: body; .*--text-field"):
        prepare(source, out_dir=tmp_path / "out", shard_tokens=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "a.jsonl"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS * 50])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file can grow beyond this; the tokenizer's hits the limit first, and the kernel itself raises the error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ValueError, match=r"^out_dir: no room to write \S+ \(File too large\); free space"):
            prepare(source, out_dir=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "a.jsonl"]


def test_max_tokens_stops_after_the_document_that_reaches_it_and_says_so(folder, tmp_path):
    data = prepare(folder, out_dir=tmp_path / "out", max_tokens=200)
    longest = max(len(load_tokenizer().encode(text)) for text in TEXTS)
    assert 200 <= len(data.tokens("train")) < 200 + longest
    assert data.index["whole_source"] is False
    assert prepare(folder, out_dir=tmp_path / "all").index["whole_source"] is True


def test_a_vocabulary_beyond_two_bytes_takes_four(folder, tmp_path):
    definition = json.loads(corpus.TOKENIZER.read_text(encoding="utf-8"))
    vocab = definition["model"]["vocab"]
    vocab.update({f"unused{i}": i for i in range(len(vocab), 2**16 + 1)})
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    data = prepare(folder, tmp_path / "tokenizer.json", tmp_path / "out")
    assert data.index["dtype"] == "<u4" and data.vocab_size == 2**16 + 1
    assert data.tokens("train")[:].tolist() == prepare(folder, out_dir=tmp_path / "two").tokens("train")[:].tolist()


def test_the_text_field_can_be_named(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS])
    data = prepare(source, out_dir=tmp_path / "out", text_field="body", validation_fraction=0, test_fraction=0)
    assert decoded(data, "train") == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"line 2 of \S+ is not JSON"),
        ("a.jsonl", b"[1]\n", r"line 1 of \S+ is list, not an object"),
        ("a.jsonl", b'{"text": 5}\n', r"'text' holds int in line 1 .*--text-field"),
        ("a.jsonl", b'{"text": " "}\n\n', r"gave 1 documents, 1 of them empty, and none for the train split"),
        ("a.jsonl", b"", r"gave 0 documents"),
        ("a.txt", b"\xff\xfe", r"\S+ is not UTF-8 .*convert it"),
        ("a.parquet", b"PAR1", r"\S+ is not a parquet file"),
        (
            "a.csv",
            b"x",
            r"is not, and does not hold, a file whose name ends in .txt, .jsonl, .ndjson, .json, .parquet, also",
        ),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        prepare(tmp_path / name, out_dir=tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_parquet_file_without_the_field_lists_its_columns(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"n": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no 'text' in \S+; its fields: n, body; .*--text-field"):
        prepare(tmp_path / "a.parquet", out_dir=tmp_path / "out")


def test_wrong_arguments_are_named_with_their_value(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cases = [
        (("missing/texts.jsonl",), {}, "source: no file or folder missing/texts.jsonl"),
        (("owner/name",), {}, "owner/name, and HF_HUB_OFFLINE is set"),
        ((folder,), {"hub_config": "en"}, "hub_config: 'en' is for data sets of the Hub"),
        ((folder,), {"test_fraction": 1.0}, "test_fraction: 1.0 leaves no train split"),
        ((folder,), {"test_fraction": 0.995}, "validation_fraction, test_fraction: .* leave no train split"),
        ((folder,), {"max_tokens": 0}, "max_tokens: 0 is not a number of tokens"),
        (("embedded",), {"test_fraction": 0.1}, "test_fraction: the source 'embedded' has its own splits"),
        ((folder, tmp_path / "no.json"), {}, "tokenizer: no file"),
    ]
    for positional, named, message in cases:
        with pytest.raises(ValueError, match=message):
            prepare(*positional, out_dir=tmp_path / "out", **named)


@pytest.mark.parametrize("step", ["rename", "write_json", "_publish", "_retire"])
def test_assembling_resumes_wherever_it_is_interrupted(
    source: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", 0
    assert plan(source, out_dir=out, **THIRDS) == (out, None)
    do_parts(Preparation(work_folder(out)), 1)
    before = finished_shards(out)
    rename = Path.rename

    def interrupted(path: Path, *arguments: object) -> Path:
        nonlocal calls
        calls += 1
        if step == "rename" and calls <= 5:
            return rename(path, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if step == "rename":
            patch.setattr(Path, "rename", interrupted)
        else:
            patch.setattr(harness.data.prepare, step, interrupted)
        finish(out, 1)
    assert out.exists() == (step == "_retire")
    finish(out, 1)
    prepare(source, out_dir=tmp_path / "whole", processes=1, **THIRDS)
    assert file_contents(out) == file_contents(tmp_path / "whole") and inodes(out) == set(before.values())
    assert not work_folder(out).exists()


def test_shards_already_moved_are_made_again_when_a_file_changes(
    source: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness.data.prepare, "_publish", mock.Mock(side_effect=KeyboardInterrupt))
        prepare(source, out_dir=out, processes=1, **THIRDS)
    jsonl(source / "d.jsonl", texts[200:250])
    assert streams(prepare(source, out_dir=out, processes=1, **THIRDS)) == expected(texts[:160] + texts[200:350])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"^source: line 90 of \S+d.jsonl is not JSON"),
        ('{"text": [5]}', r"'text' holds list in line 90 of"),
    ],
)
def test_a_bad_text_is_one_line_and_only_its_file_is_read_again_once_corrected(
    source: Path, texts: list[str], tmp_path: Path, processes: int, line: str, message: str
) -> None:
    out, bad = tmp_path / "out", source / "d.jsonl"
    lines = bad.read_text().splitlines()
    bad.write_text("\n".join([*lines[:89], line, *lines[90:]]))
    with pytest.raises(ValueError, match=message) as error:
        prepare(source, out_dir=out, processes=processes, **THIRDS)
    assert "\n" not in str(error.value) and not out.exists()
    before = {
        path: inode
        for path, inode in finished_shards(out).items()
        if "d.jsonl" not in str(plan_of(out, Path(path).parent.name)["identity"])
    }
    assert before
    jsonl(bad, texts[160:250])
    assert streams(prepare(source, out_dir=out, processes=processes, **THIRDS)) == expected(texts[:350])
    assert set(before.values()) <= inodes(out)


def plan_of(out: Path, key: str) -> dict:
    """The plan of one part."""
    (part,) = [part for part in Preparation(work_folder(out)).plan["parts"] if part["key"] == key]
    return part


def test_finished_parts_of_other_settings_are_kept_and_named_and_unfinished_ones_are_not(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan(source, out_dir=out, max_tokens=5, **THIRDS)
    plan(source, out_dir=out, **THIRDS)  # nothing was done for the first plan
    preparation = Preparation(work_folder(out))
    preparation.write(0, preparation.keys[0], None, lambda: None)
    with pytest.raises(
        ValueError, match=rf"{preparation.folder} holds 1 of \d+ parts of another max_tokens; give the argum"
    ):
        prepare(source, out_dir=out, max_tokens=5, **THIRDS)
    with (
        preparation.claim(1),
        pytest.raises(ValueError, match="another process prepares .* with another fractions; wait, or"),
    ):
        prepare(source, out_dir=out)
    before, text = finished_shards(out), (source / "d.jsonl").read_bytes()
    (source / "d.jsonl").write_bytes(text[:-1])
    with pytest.raises(ValueError, match="of another max_tokens"):
        plan(source, out_dir=out, max_tokens=5, **THIRDS)
    (source / "d.jsonl").write_bytes(text)
    prepare(source, out_dir=out, processes=1, **THIRDS)
    assert before and set(before.values()) <= inodes(out)


def test_the_command_accounts_for_every_document(source: Path, tmp_path: Path) -> None:
    command = ["data", "prepare", str(source), "--out", str(tmp_path / "out"), "--processes", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    counts = TokenData(tmp_path / "out").index["documents"]
    assert result.stdout.splitlines()[-1] == (
        f"documents: 353 read = {counts['train']} train + {counts['validation']} validation + {counts['test']} test "
        "+ 3 empty"
    )
    cut = [*command[:4], str(tmp_path / "cut"), "--max-tokens", "1000", "--processes", "1"]
    assert "; max_tokens 1,000 left others unread" in CliRunner().invoke(app, cut).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source, dataset: neither given"),
        (["embedded", "--dataset", "owner/name"], "source, dataset: both given"),
        (["--dataset", "./texts"], "dataset: './texts' is not a name on the Hub"),
        (["embedded", "--processes", "0"], "--processes: 0 cannot be; give at least 1"),
        (["embedded", "--jobs", "2"], "--jobs: 2 jobs cannot be; give at least 1, with --cluster PROFILE"),
        (["embedded", "--cluster", "slurm", "--jobs", "0"], "--jobs: 0 jobs cannot be"),
        (["embedded", "--cluster", "moon"], "--cluster: no profile moon"),
        (["embedded", "--cluster", "local"], "--cluster: local is this machine"),
        (["embedded", "--cluster", "slurm", "--processes", "2"], "none with --cluster"),
    ],
)
def test_wrong_use_of_the_command_is_one_line(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["data", "prepare", *words])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("error: ") and message in line
