"""Any number of processes, killed or not, writes the same bytes with every document once and max_tokens exact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.data import corpus
from harness.data.prepare import finish, plan, prepare, work_folder
from harness.data.tokenise import Preparation
from harness.files import CHECKOUT
from tests.harness.data.preparations import (
    THIRDS,
    expected,
    file_contents,
    finished_shards,
    inodes,
    is_idle,
    jsonl,
    start_preparation,
    streams,
    wait_for,
)


def test_any_number_of_processes_writes_the_streams_of_one_document_after_the_other(
    source: Path, texts: list[str], tmp_path: Path
) -> None:
    made = {n: prepare(source, out_dir=tmp_path / str(n), processes=n, **THIRDS) for n in (1, 2, 3)}
    assert file_contents(tmp_path / "1") == file_contents(tmp_path / "2") == file_contents(tmp_path / "3")
    assert streams(made[1]) == expected(texts[:350])
    counts = made[1].index["documents"]
    assert (
        counts["read"] == 353 and counts["empty"] == 3 and counts["read"] == 3 + sum(counts[s] for s in corpus.SPLITS)
    )
    assert len(made[1].index["shards"]) > 20, "of many parts"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".1.lock", ".2.lock", ".3.lock", "1", "2", "3", "texts"]


@pytest.mark.parametrize(
    ("processes", "moment"),
    [pytest.param(1, 4, marks=pytest.mark.long), pytest.param(2, 1, marks=pytest.mark.long), (2, 5)],
)
def test_a_killed_preparation_resumes_after_the_finished_parts(
    source: Path, tmp_path: Path, processes: int, moment: int
) -> None:
    out = tmp_path / "out"
    process = start_preparation(source, out, processes)
    wait_for(lambda: len(list(work_folder(out).glob("*/part.json"))) >= moment)
    process.kill()
    process.communicate()
    wait_for(lambda: is_idle(out))  # its workers exit with it
    before = finished_shards(out)
    assert not out.exists() and before
    prepare(source, out_dir=out, processes=1, **THIRDS)
    assert set(before.values()) <= inodes(out), "what was done has not been done again"
    prepare(source, out_dir=tmp_path / "whole", processes=1, **THIRDS)
    assert file_contents(out) == file_contents(tmp_path / "whole")
    assert not work_folder(out).exists()


@pytest.mark.long
def test_simultaneous_preparations_share_the_work(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = [start_preparation(source, out, processes) for processes in (1, 2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    prepare(source, out_dir=tmp_path / "whole", processes=1, **THIRDS)
    assert file_contents(out) == file_contents(tmp_path / "whole") and not work_folder(out).exists()


@pytest.mark.parametrize(
    ("document", "beyond"),
    [
        pytest.param(0, (-1, 0, 1), id="first", marks=pytest.mark.long),
        pytest.param(200, (-1, 0, 1), id="inner"),
        pytest.param(349, (0, 1), id="last", marks=pytest.mark.long),
    ],
)
def test_max_tokens_is_exact_before_at_and_after_the_end_of_a_document(
    source: Path, texts: list[str], tmp_path: Path, document: int, beyond: tuple[int, ...]
) -> None:
    used = texts[:160] + ["", " \n", None] + texts[160:350]
    whole = expected(used)
    end = len(expected(texts[: document + 1])["train"])
    for limit in (end + tokens for tokens in beyond):
        alone = prepare(source, out_dir=tmp_path / f"{limit}", processes=1, max_tokens=limit, **THIRDS)
        assert streams(alone) == expected(used, limit)
        assert alone.index["whole_source"] == (streams(alone) == whole)
        # Here all parts are done, last first, before it is known where the limit falls.
        out = tmp_path / f"{limit}-late"
        plan(source, out_dir=out, max_tokens=limit, **THIRDS)
        preparation = Preparation(work_folder(out))
        for index in reversed(range(len(preparation.parts))):
            preparation.write(index, preparation.keys[index], limit, lambda: None)
        finish(out, 1)
        assert file_contents(out) == file_contents(tmp_path / f"{limit}")


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 3])
def test_max_tokens_is_exact_for_several_processes(
    source: Path, texts: list[str], tmp_path: Path, processes: int
) -> None:
    limit = len(expected(texts[:200])["train"]) - 3
    data = prepare(source, out_dir=tmp_path / "out", processes=processes, max_tokens=limit, **THIRDS)
    assert data.index["whole_source"] is False
    prepare(source, out_dir=tmp_path / "alone", processes=1, max_tokens=limit, **THIRDS)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "alone")


def test_a_file_that_changes_during_a_preparation_is_an_error(source: Path, texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan(source, out_dir=out, **THIRDS)
    jsonl(source / "d.jsonl", texts[160:249])
    with pytest.raises(ValueError, match=r"d.jsonl has changed since this preparation began; run the same command"):
        finish(out, 1)
    assert streams(prepare(source, out_dir=out, processes=1, **THIRDS)) == expected(texts[:249] + texts[250:350])


def test_a_worker_needs_no_torch() -> None:
    code = "import sys, harness.data.tokenise; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True).stdout == "set()\n"
    )
