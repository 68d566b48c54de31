"""Many processes on one preparation: the same bytes whoever does what, whatever is killed, and every document once."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import harness.data.prepare
import harness.data.workers
from harness.data import corpus
from harness.data.prepare import finish, plan, prepare, work_folder
from harness.data.shards import TokenData
from harness.data.sources import documents, open_source
from harness.data.tokenise import Preparation
from harness.data.tokenizer import load_tokenizer
from harness.data.workers import do_parts
from harness.files import CHECKOUT
from run import app
from tests.harness.data.hub import COMMIT, served

THIRDS = {"validation_fraction": 0.2, "test_fraction": 0.1}
PARTS = 20_000  # bytes of a part, in most of these tests


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Paragraphs of Austen's, all different."""
    found = "\n\n".join(d.text for d in corpus.documents("validation", ["austen"])).split("\n\n")
    return list(dict.fromkeys(text for text in found if text.strip()))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", PARTS)


@pytest.fixture
def source(texts: list[str], tmp_path: Path, small_parts: None) -> Path:
    """Nine parts: a text of its own, three jsonl files, one with empty documents, and a parquet file."""
    root = tmp_path / "texts"
    root.mkdir()
    (root / "a.txt").write_text(texts[0], encoding="utf-8")
    jsonl(root / "b.jsonl", texts[1:150])
    jsonl(root / "c.jsonl", [*texts[150:160], "", " \n", None])
    jsonl(root / "d.jsonl", texts[160:250])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[250:350]}), root / "e.parquet", row_group_size=7)
    return root


def jsonl(path: Path, texts: list) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def expected(texts: list[str | None], max_tokens: int | None = None) -> dict[str, list[int]]:
    """The streams of the splits: the documents in order, one by one."""
    tokenizer, streams = load_tokenizer(), {split: [] for split in corpus.SPLITS}
    for text in texts:
        if max_tokens is not None and len(streams["train"]) >= max_tokens:
            break
        if text and text.strip():
            split = corpus.split_of(text, THIRDS["validation_fraction"], THIRDS["test_fraction"])
            streams[split] += [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    return streams


def streams(data: TokenData) -> dict[str, list[int]]:
    return {split: data.tokens(split)[:].tolist() for split in corpus.SPLITS}


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(source: Path, out: Path, processes: int, parts: int = PARTS, **options: object) -> subprocess.Popen[str]:
    """A preparation in a process of its own."""
    code = (
        f"import harness.data.sources; harness.data.sources.PART_BYTES = {parts}\n"
        f"from harness.data.prepare import prepare\n"
        f"prepare({str(source)!r}, out_dir={str(out)!r}, processes={processes}, **{THIRDS | options!r})"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, **pipes)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def done(out: Path) -> dict[str, int]:
    """Inodes of the shards of parts that are done: a shard that is written again has another."""
    found = {}
    for result in work_folder(out).glob("*/part.json"):
        if not result.parent.suffix:
            found |= {str(path): path.stat().st_ino for path in result.parent.glob("*.bin")}
    return found


def inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.glob("*.bin")}


def idle(out: Path) -> bool:
    """Whether nobody works on a preparation."""
    preparation = Preparation(work_folder(out))
    preparation.refresh()
    return not preparation.busy()


def test_any_number_of_processes_writes_what_one_document_after_the_other_gives(
    source: Path, texts: list[str], tmp_path: Path
) -> None:
    made = {n: prepare(source, out_dir=tmp_path / str(n), processes=n, **THIRDS) for n in (1, 2, 3)}
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    assert streams(made[1]) == expected(texts[:350])
    counts = made[1].index["documents"]
    assert (
        counts["read"] == 353 and counts["empty"] == 3 and counts["read"] == 3 + sum(counts[s] for s in corpus.SPLITS)
    )
    assert len(made[1].index["shards"]) > 20, "of many parts"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".1.lock", ".2.lock", ".3.lock", "1", "2", "3", "texts"]


@pytest.mark.parametrize(("processes", "moment"), [(1, 4), (2, 1), (2, 5)])
def test_a_killed_preparation_goes_on_behind_the_parts_that_are_done(
    source: Path, tmp_path: Path, processes: int, moment: int
) -> None:
    out = tmp_path / "out"
    process = start(source, out, processes)
    wait_for(lambda: len(list(work_folder(out).glob("*/part.json"))) >= moment)
    process.kill()
    process.communicate()
    wait_for(lambda: idle(out))  # its workers end with it
    before = done(out)
    assert not out.exists() and before
    prepare(source, out_dir=out, processes=1, **THIRDS)
    assert set(before.values()) <= inodes(out), "what was done has not been done again"
    prepare(source, out_dir=tmp_path / "whole", processes=1, **THIRDS)
    assert content(out) == content(tmp_path / "whole")
    assert not work_folder(out).exists()


@pytest.mark.parametrize("step", ["rename", "write_json", "_publish", "_retire"])
def test_putting_together_goes_on_wherever_it_is_interrupted(
    source: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", 0
    assert plan(source, out_dir=out, **THIRDS) == (out, None)
    do_parts(Preparation(work_folder(out)), 1)
    before = done(out)
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
    assert content(out) == content(tmp_path / "whole") and inodes(out) == set(before.values())
    assert not work_folder(out).exists()


def test_shards_that_were_moved_when_a_file_changed_are_made_again(
    source: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness.data.prepare, "_publish", mock.Mock(side_effect=KeyboardInterrupt))
        prepare(source, out_dir=out, processes=1, **THIRDS)
    jsonl(source / "d.jsonl", texts[200:250])
    assert streams(prepare(source, out_dir=out, processes=1, **THIRDS)) == expected(texts[:160] + texts[200:350])


def test_preparations_at_the_same_time_divide_the_work(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = [start(source, out, processes) for processes in (1, 2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    prepare(source, out_dir=tmp_path / "whole", processes=1, **THIRDS)
    assert content(out) == content(tmp_path / "whole") and not work_folder(out).exists()


@pytest.fixture
def slow(texts: list[str], tmp_path: Path) -> Path:
    """Two parts of a second or two, of which a process is easily caught in the middle, and a short one."""
    return jsonl(tmp_path / "slow.jsonl", [f"{i} {text}" for i in range(24) for text in texts])


SLOW = 3_500_000


def at_work(out: Path) -> list[Path]:
    return list(work_folder(out).glob("*.partial/*.bin"))


def test_a_worker_that_is_killed_ends_the_whole_which_names_its_part_and_keeps_the_others(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", SLOW)
    out = tmp_path / "out"

    def kill() -> None:
        wait_for(lambda: len({path.parent for path in at_work(out)}) == 2)
        lock = at_work(out)[0].parent.with_suffix(".lock")
        os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)

    lines: list[str] = []
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RuntimeError, match=r"part [12] of \d of slow: its process was ended by SIGKILL; run the same"):
        prepare(slow, out_dir=out, processes=2, progress=lines.append, **THIRDS)
    killer.join()
    assert not out.exists() and idle(out)
    assert any("the other processes finish their parts first" in line for line in lines)
    assert len(list(work_folder(out).glob("*/part.json"))) == 1  # that of the other
    assert any("of 2 parts" in line or "of 3 parts" in line for line in lines if "tokens/s" in line)
    data = prepare(slow, out_dir=out, processes=2, **THIRDS)
    assert data.index["documents"]["read"] == len(slow.read_text().splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes(slow: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start(slow, out, 2, SLOW)
    wait_for(lambda: at_work(out))
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0 and not out.exists()
    wait_for(lambda: idle(out), 10)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_document_is_in_one_part_however_lines_and_row_groups_lie(data: st.DataObject) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    rows = data.draw(st.lists(text, max_size=30), "jsonl")
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n"])
    raw = "".join(json.dumps({"text": r}, ensure_ascii=False) + data.draw(ends, "end") for r in rows)
    if rows and data.draw(st.booleans(), "no final newline"):
        raw = raw.rstrip()
    columns = data.draw(st.lists(text, min_size=1, max_size=20), "parquet")
    group = data.draw(st.integers(1, 7), "rows a group")
    size = data.draw(st.integers(1, 300), "bytes a part")
    with tempfile.TemporaryDirectory() as name, mock.patch("harness.data.sources.PART_BYTES", size):
        folder = Path(name)
        (folder / "a.jsonl").write_bytes(raw.encode())
        pyarrow.parquet.write_table(pyarrow.table({"text": columns}), folder / "b.parquet", row_group_size=group)
        (folder / "c.txt").write_text("the last", encoding="utf-8")
        parts = open_source(folder, None, "text", None, None, None).parts
        assert [text for part in parts for text, _ in documents(part)] == [*rows, *columns, "the last"]


def limits(texts: list[str]) -> Iterator[int]:
    """Numbers of train tokens at, before and behind the end of a document, in several parts, and of all."""
    sizes = [len(expected([text])["train"]) for text in texts]
    ends = list(accumulate(sizes))
    for index in (0, 200):
        yield from (ends[index] - 1, ends[index], ends[index] + 1)
    yield from (ends[-1], ends[-1] + 1)


def test_max_tokens_is_exact(source: Path, texts: list[str], tmp_path: Path) -> None:
    used = texts[:160] + ["", " \n", None] + texts[160:350]
    whole = expected(used)
    for limit in limits(texts[:350]):
        alone = prepare(source, out_dir=tmp_path / f"{limit}", processes=1, max_tokens=limit, **THIRDS)
        assert streams(alone) == expected(used, limit)
        assert alone.index["whole_source"] == (streams(alone) == whole)
        # All parts are done before it is known where the limit falls, the last ones first.
        out = tmp_path / f"{limit}-late"
        plan(source, out_dir=out, max_tokens=limit, **THIRDS)
        preparation = Preparation(work_folder(out))
        for index in reversed(range(len(preparation.parts))):
            preparation.write(index, preparation.keys[index], limit, lambda: None)
        finish(out, 1)
        assert content(out) == content(tmp_path / f"{limit}")


@pytest.mark.parametrize("processes", [2, 3])
def test_max_tokens_is_exact_for_several_processes(
    source: Path, texts: list[str], tmp_path: Path, processes: int
) -> None:
    limit = len(expected(texts[:200])["train"]) - 3
    data = prepare(source, out_dir=tmp_path / "out", processes=processes, max_tokens=limit, **THIRDS)
    assert data.index["whole_source"] is False
    prepare(source, out_dir=tmp_path / "alone", processes=1, max_tokens=limit, **THIRDS)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"^source: line 90 of \S+d.jsonl is not JSON"),
        ('{"text": [5]}', r"'text' holds list in line 90 of"),
    ],
)
def test_a_bad_text_is_one_line_and_once_corrected_only_its_file_is_read_again(
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
        for path, inode in done(out).items()
        if "d.jsonl" not in str(plan_of(out, Path(path).parent.name)["identity"])
    }
    assert before
    jsonl(bad, texts[160:250])
    assert streams(prepare(source, out_dir=out, processes=processes, **THIRDS)) == expected(texts[:350])
    assert set(before.values()) <= inodes(out)


def plan_of(out: Path, key: str) -> dict:
    (part,) = [part for part in Preparation(work_folder(out)).plan["parts"] if part["key"] == key]
    return part


def test_parts_of_other_settings_are_kept_and_named_and_unfinished_ones_are_not(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan(source, out_dir=out, max_tokens=5, **THIRDS)
    plan(source, out_dir=out, **THIRDS)  # nothing was done for the other one
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
    before, text = done(out), (source / "d.jsonl").read_bytes()
    (source / "d.jsonl").write_bytes(text[:-1])
    with pytest.raises(ValueError, match="of another max_tokens"):
        plan(source, out_dir=out, max_tokens=5, **THIRDS)
    (source / "d.jsonl").write_bytes(text)
    prepare(source, out_dir=out, processes=1, **THIRDS)
    assert before and set(before.values()) <= inodes(out)


def test_a_file_that_changes_during_the_work_is_an_error(source: Path, texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan(source, out_dir=out, **THIRDS)
    jsonl(source / "d.jsonl", texts[160:249])
    with pytest.raises(ValueError, match=r"d.jsonl has changed since this preparation began; run the same command"):
        finish(out, 1)
    assert streams(prepare(source, out_dir=out, processes=1, **THIRDS)) == expected(texts[:249] + texts[250:350])


def test_a_full_disk_is_one_clear_line_from_every_process(slow: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", SLOW)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # more than the tokenizer, less than a shard
    try:
        with pytest.raises(ValueError, match=r"^out_dir: no room to write \S+ \(File too large\); free space"):
            prepare(slow, out_dir=tmp_path / "out", processes=2, **THIRDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "slow.jsonl"]


def test_what_is_there_starts_no_process(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(source, out_dir=tmp_path / "out", processes=1)
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(harness.data.workers, "do_free_parts", mock.Mock(side_effect=AssertionError))
    assert prepare(source, out_dir=tmp_path / "out").index == first.index


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_data_set_of_the_hub_is_read_file_by_file(texts: list[str], tmp_path: Path, processes: str) -> None:
    """The real client against a server of this machine; a folder of the data set's name does not stand in its way."""
    (tmp_path / "hub").mkdir()
    for index in range(3):
        table = pyarrow.table({"text": texts[index * 40 : index * 40 + 40]})
        pyarrow.parquet.write_table(table, tmp_path / "hub" / f"train-0000{index}-of-00003.parquet")
    jsonl(tmp_path / "owner.jsonl", ["no text of the Hub"])
    (tmp_path / "owner" / "name").mkdir(parents=True)
    words = ["data", "prepare", "--dataset", "owner/name", "--out", "out", "--processes", processes]
    fractions = ["--validation-fraction", "0.2", "--test-fraction", "0.1"]
    with served("owner/name", tmp_path / "hub") as address:
        variables = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        variables |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / "run.py"), *words, *fractions],
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "documents: 120 read = " in done.stdout
    data = TokenData(tmp_path / "out")
    assert streams(data) == expected(texts[:120])
    assert data.index["settings"]["source"]["commit"] == COMMIT
    assert len([shard for shard in data.index["shards"] if shard["split"] == "train"]) == 3


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


def test_a_worker_needs_no_torch() -> None:
    code = "import sys, harness.data.tokenise; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True).stdout == "set()\n"
    )


def test_a_range_of_lines_is_named_by_its_number_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.sources.PART_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*(json.dumps({"text": str(i)}) for i in range(40)), "[]"]))
    last = open_source(path, None, "text", None, None, None).parts[-1]
    with pytest.raises(ValueError, match="line 41 of .* is list, not an object"):
        list(documents(last))
    assert (
        np.diff(
            [r[2] for p in open_source(path, None, "text", None, None, None).parts for r in p.identity["ranges"]]
        ).min()
        > 0
    )
