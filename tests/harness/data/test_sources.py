"""Sources: every document is in exactly one part, errors name the line, and data sets of the Hub are read by file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.shards import TokenData
from harness.data.sources import documents, open_source
from harness.files import CHECKOUT
from tests.harness.data.hub import COMMIT, served
from tests.harness.data.preparations import expected, jsonl, streams


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


def test_opening_a_source_reads_no_text_yet(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    source = open_source(tmp_path / "a.jsonl", None, "text", None, None, None)
    with pytest.raises(ValueError, match="no 'text'"):
        list(documents(source.parts[0]))


@pytest.mark.long
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_data_set_of_the_hub_is_read_file_by_file(texts: list[str], tmp_path: Path, processes: str) -> None:
    """Runs the real client against a local server. A local folder with the data set's name is ignored."""
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
