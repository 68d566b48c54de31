"""Local files in every form that people have: all documents, every file accounted for, errors that name the file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import Lowercase
from typer.testing import CliRunner

from harness.data.formats import form
from harness.data.prepare import account, prepare
from harness.data.sources import documents, open_source
from harness.data.tokenizer import load_tokenizer
from run import app
from tests.harness.data.preparations import jsonl

TEXTS = ["The first text.", "Zweiter, mit Umläuten: äöü.", "A third,\nover two lines."]
ROWS = [{"text": text} for text in TEXTS]
NO_HELD_OUT = {"validation_fraction": 0, "test_fraction": 0, "processes": 1}


def lines(rows: list) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(texts: list) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


FORMS = {
    "a.jsonl": lines(ROWS),
    "a.NDJSON": lines(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS),
    "array.json": json.dumps(ROWS).encode(),
    "array.JSON": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(),
    "lines.json": b"\n" + lines(ROWS),
    "a.Parquet": parquet(TEXTS),
}


def read(path: Path) -> list[str | None]:
    return [text for part in open_source(path, None, "text", None, None, None).parts for text, _ in documents(part)]


@pytest.mark.parametrize(
    "compress", [("", bytes), (".gz", gzip.compress), (".ZST", zst)], ids=lambda c: c[0] or "plain"
)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_its_documents(tmp_path: Path, name: str, compress: tuple[str, Callable]) -> None:
    path = tmp_path / (name + compress[0])
    path.write_bytes(compress[1](FORMS[name]))
    assert read(path) == TEXTS


def test_a_text_is_one_document_and_an_object_of_several_lines_too(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbf" + TEXTS[1].encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(TEXTS[2].encode()) + gzip.compress(b" And more."))
    (tmp_path / "c.json").write_text(json.dumps(ROWS[0], indent=2))
    (tmp_path / "d.txt.zst").write_bytes(zst(b"In two ") + zst(b"frames."))
    assert read(tmp_path) == [TEXTS[1], f"{TEXTS[2]} And more.", TEXTS[0], "In two frames."]


def test_a_link_is_judged_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "5d41402a").write_bytes(lines(ROWS))
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "train.jsonl"
    link.symlink_to("../blobs/5d41402a")
    assert read(link) == read(link.parent) == TEXTS
    assert form(tmp_path / "blobs" / "5d41402a") is None


def test_every_file_that_is_not_read_is_named_with_the_reason(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    jsonl(source / "a.jsonl", TEXTS)
    for name in ("README.md", "b.csv.gz", "inner/c.gz", "d.jsonl.xz"):
        (source / name).write_bytes(b"x")
    (source / "dangling.jsonl").symlink_to("nowhere")
    (source / "folder").symlink_to("inner")
    done = CliRunner().invoke(
        app,
        ["data", "prepare", str(source), "--out", str(tmp_path / "out"), "--processes", "1", "--test-fraction", "0"],
    )
    assert done.exit_code == 0, done.output
    named = [line for line in done.stderr.splitlines() if "is not read" in line]
    endings = "its name does not end in .txt, .jsonl, .ndjson, .json, .parquet, also with .gz or .zst"
    assert named == [
        f"prepare: README.md is not read: {endings}",
        f"prepare: b.csv.gz is not read: {endings}",
        f"prepare: d.jsonl.xz is not read: {endings}",
        "prepare: dangling.jsonl is not read: a link to nothing",
        "prepare: folder is not read: a link to a folder",
        f"prepare: inner/c.gz is not read: {endings}",
    ]


def broken_column() -> bytes:
    """A parquet file whose column of strings holds Latin-1."""
    bad = pyarrow.array([b"fine", b"\xe4hm"]).view(pyarrow.string())
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-12], r"a.jsonl.gz cannot be decompressed .*; write or download"),
        ("a.jsonl.gz", lines(ROWS), r"a.jsonl.gz cannot be decompressed"),
        ("a.json.zst", zst(lines(ROWS))[:-3], r"a.json.zst cannot be decompressed"),
        ("a.parquet.gz", gzip.compress(b"x"), r"a.parquet.gz is not a parquet file"),
        ("a.parquet", broken_column(), r"column 'text' of \S+a.parquet is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS) + b"{"), r"line 4 of \S+a.jsonl.gz is not JSON"),
        ("a.json", b'[{"text": "x"}, 5]', r"entry 2 of \S+a.json is int, not an object"),
        ("a.json", b'{"data": [\n]}', r"no 'text' in entry 1 of \S+; its fields: data"),
        ("a.json", b'[{"text": "x"},\n', r"a.json is not JSON"),
        ("a.json", b"[" * 100_000, r"a.json is not JSON"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), r"a.jsonl is not UTF-8 but UTF-16 or UTF-32; convert it"),
    ],
    ids=range(11),  # the bytes of gzip have the time
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_what_is_no_text_is_replaced_and_counted(tmp_path: Path) -> None:
    rows = [
        b'{"text": "lone \\ud800 and \\udc00 here"}',
        b'{"text": "b\xe4d byte"}',
        b'{"text": "a pair \\ud83d\\ude00"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    data = prepare(tmp_path / "a.jsonl", out_dir=tmp_path / "out", **NO_HELD_OUT)
    assert data.index["replaced"] == {"documents": 2, "characters": 3}
    assert account(data.index).endswith("; 3 bytes or characters in 2 of them are no text and became U+FFFD")
    text = load_tokenizer().decode(data.tokens("train")[:].tolist(), skip_special_tokens=True)
    assert text == "lone \ufffd and \ufffd hereb\ufffdd bytea pair \U0001f600"
    jsonl(tmp_path / "b.jsonl", TEXTS)
    assert "replaced" not in prepare(tmp_path / "b.jsonl", out_dir=tmp_path / "fine", **NO_HELD_OUT).index


@pytest.mark.parametrize("kind", ["embedded", "names are pieces", "names are normalised"])
def test_the_name_of_a_special_token_in_a_text_stays_text(tmp_path: Path, kind: str) -> None:
    texts = ["one <|bos|> two", "<s></s><s>", "<|bos|>", *(["<S>"] if kind == "names are normalised" else [])]
    tokenizer = "embedded"
    if kind != "embedded":
        letters = sorted(set("".join(texts).lower()))
        # A unigram model prefers the names if they are among its pieces.
        score = 0.0 if kind == "names are pieces" else -99.0
        model = Unigram([("<unk>", -9.0), ("<s>", score), ("</s>", score), *((c, -5.0) for c in letters)], unk_id=0)
        backend = Tokenizer(model)
        backend.normalizer = Lowercase()
        normalised = kind == "names are normalised"
        backend.add_special_tokens([AddedToken(n, special=True, normalized=normalised) for n in ("<s>", "</s>")])
        tokenizer = str(tmp_path / "tokenizer.json")
        backend.save(tokenizer)
    loaded = load_tokenizer(tokenizer)
    jsonl(tmp_path / "a.jsonl", texts)
    data = prepare(tmp_path / "a.jsonl", tokenizer, tmp_path / "out", **NO_HELD_OUT)
    ids = data.tokens("train")[:].tolist()
    special = set(loaded.all_special_ids) - {loaded.unk_token_id}
    assert [i for i in ids if i in special] == [loaded.bos_token_id] * len(texts)
    text = loaded.decode(ids, skip_special_tokens=True)
    assert "".join(text.split()).lower() == "".join("".join(texts).split()).lower()
