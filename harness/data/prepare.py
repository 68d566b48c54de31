"""Turn texts (the embedded corpus, local files, any data set of the Hub) into tokenised shards.

A prepared folder holds the shards of each split, index.json (settings, counts, checksums) and a copy of the tokenizer.
It appears whole or not at all. `harness.data.shards.TokenData` opens it.

The source is cut into parts. Several processes may work on one output: those of one call, of several calls, or of jobs
on machines that share the file system. Each part is tokenised once, by whichever process takes it
(`harness.data.tokenise`). Finished parts wait in a work folder next to the output, until the last one is done and one
process assembles them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import corpus
from harness.data.shards import FORMAT, INDEX, TOKENIZER, TokenData
from harness.data.sources import Part, Source, documents, open_source
from harness.data.tokenise import FULL, JOBS, PLAN, STAGED, Preparation, no_space, train_tokens
from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.data.workers import POLL, Say, do_parts, threads
from harness.files import cache_dir, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare(
    source: str | Path | None,
    tokenizer: str | Path = "embedded",
    out_dir: str | Path | None = None,
    *,
    processes: int | None = None,
    progress: Say = lambda line: None,
    **options: Any,
) -> TokenData:
    """Tokenise `source` into `out_dir` and open the result.

    A complete output of the same settings is used as it is; an interrupted one is resumed.

    source, tokenizer, out_dir, options: the arguments of `plan`.
    processes: CPUs to use, by default all that this process may use. With several parts to do, each CPU runs its own
        worker process, which exits with this one. The output is byte-identical for any number.
    progress: called with one line about once a second.

    Raises ValueError (one line) for every wrong argument or text, and RuntimeError naming the part if a process fails
    or is killed.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes: {processes} is no number of processes; give at least 1")
    out, existing = plan(source, tokenizer, out_dir, progress=progress, **options)
    return finish(out, processes, progress) if existing is None else existing


def plan(
    source: str | Path | None,
    tokenizer: str | Path = "embedded",
    out_dir: str | Path | None = None,
    *,
    dataset: str | None = None,
    text_field: str = "text",
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    max_tokens: int | None = None,
    shard_tokens: int = 100_000_000,
    hub_config: str | None = None,
    hub_split: str | None = None,
    revision: str | None = None,
    progress: Say = lambda line: None,
) -> tuple[Path, TokenData | None]:
    """Plan the parts of a preparation and write the plan into the output's work folder.

    source: "embedded", a file that `harness.data.formats` reads (a .txt is one document), a folder of such files, or
        the name of a data set on the Hub. `hub_config`, `hub_split` (default train) and `revision` choose a part of it.
    dataset: instead of `source`, a name that is looked up on the Hub only.
    tokenizer: the argument of `load_tokenizer`.
    out_dir: the output folder, by default a folder of the cache named after the settings.
    text_field: the field or column that holds the text, except of .txt.
    validation_fraction, test_fraction: fractions of the documents, chosen by the SHA-256 of their text; 0.01 each by
        default. The embedded corpus has its own splits and takes neither.
    max_tokens: stop after the document with which the train split reaches this many tokens; the index says so. The
        held-out splits of the embedded corpus stay whole.
    shard_tokens: a shard is closed once it holds this many tokens. Every part also begins new shards. A document is
        never divided.

    Returns the output folder, and the data if the output is already complete. If local files have changed, the finished
    parts of unchanged files are kept, and `progress` tells how many are done again. Raises ValueError (one line) for
    every wrong argument, and for finished parts of other settings, naming the folder to remove.
    """
    for name, value in (("max_tokens", max_tokens), ("shard_tokens", shard_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value} is not a number of tokens; give at least 1")
    opened = open_source(source, dataset, text_field, hub_config, hub_split, revision)
    fractions = _fractions(opened, validation_fraction, test_fraction)
    tok = load_tokenizer(tokenizer)
    settings = {
        "source": opened.description,
        "tokenizer_hash": tokenizer_hash(tok),
        "fractions": fractions,
        "max_tokens": max_tokens,
        "shard_tokens": shard_tokens,
    }
    if out_dir is None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        out = cache_dir() / "data" / f"{opened.name}-{digest[:12]}"
    else:
        out = Path(out_dir).expanduser().resolve()
    with _room(out), _lock(out):
        existing = _existing(out, settings, progress)
        if existing is None:
            for line in opened.left_out:
                progress(f"prepare: {line}")
            _write_plan(work_folder(out), opened, tok, settings, progress)
        else:
            _retire(out)
        return out, existing


def finish(out: Path, processes: int | None = None, progress: Say = lambda line: None) -> TokenData:
    """Do the remaining parts of a planned output, assemble it and open it.

    Other processes may work on the same output at the same time. Raises ValueError and RuntimeError as `prepare` does.
    """
    while True:
        with _room(out), _lock(out):
            try:
                preparation = Preparation(work_folder(out))
            except FileNotFoundError:  # another process has assembled the output
                return TokenData(out)
            preparation.refresh()
            if preparation.complete():
                # The output is already in place if an earlier call was interrupted while it cleaned up.
                if _existing(out, preparation.plan["settings"], lambda line: None) is None:
                    with threads(processes != 1):
                        _assemble(preparation, progress)
                _retire(out)
                return TokenData(out)
        try:
            if not do_parts(preparation, processes, progress):
                time.sleep(10 * POLL)  # other processes are doing the rest
        except Exception:
            with _lock(out):
                _discard(preparation)
            raise


def account(index: dict[str, Any]) -> str:
    """One line that accounts for every document of an index."""
    counts = index["documents"]
    ends = " + ".join(f"{counts[kind]:,} {kind}" for kind in (*corpus.SPLITS, "empty"))
    rest = "" if index["whole_source"] else f"; max_tokens {index['settings']['max_tokens']:,} left others unread"
    if damaged := index.get("replaced"):
        rest += f"; {damaged['characters']:,} bytes or characters in {damaged['documents']:,} of them are no text and "
        rest += "became U+FFFD"
    return f"documents: {counts['read']:,} read = {ends}{rest}"


def work_folder(out: Path) -> Path:
    """The folder that holds the parts of an unfinished output."""
    return out.with_name(f".{out.name}.work")


def _fractions(source: Source, validation: float | None, test: float | None) -> dict[str, float] | None:
    """Fraction of documents per held-out split; None if the source has its own splits."""
    if source.has_splits:
        names = [n for n, v in (("validation_fraction", validation), ("test_fraction", test)) if v is not None]
        if names:
            raise ValueError(f"{names[0]}: the source {source.name!r} has its own splits; leave it out")
        return None
    fractions = {"validation": 0.01 if validation is None else validation, "test": 0.01 if test is None else test}
    for split, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(f"{split}_fraction: {value} leaves no train split; give at least 0 and less than 1")
    if sum(fractions.values()) >= 1:
        raise ValueError(
            f"validation_fraction, test_fraction: {fractions} leave no train split; their sum must be less than 1"
        )
    return fractions


def _write_plan(
    folder: Path, source: Source, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], progress: Say
) -> None:
    """Write the plan into a new work folder, or into the existing one if its parts can be reused."""
    rest = {key: value for key, value in settings.items() if key != "source"}
    keys = [_key(part, rest) for part in source.parts]
    if not (folder / PLAN).exists() or _clear_stale(Preparation(folder), settings, keys, progress):
        _save_tokenizer(tokenizer, folder)
    vocab_size = max(tokenizer.get_vocab().values()) + 1  # len() is too small if the ids have gaps
    plan = {
        "name": source.name,
        "settings": settings,
        "vocab_size": vocab_size,
        "dtype": np.dtype("<u2" if vocab_size <= 2**16 else "<u4").str,
        "bos_token_id": tokenizer.bos_token_id,
        "parts": [{"key": key, **asdict(part)} for key, part in zip(keys, source.parts, strict=True)],
    }
    write_atomic(folder / PLAN, json.dumps(plan).encode())


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer into a work folder, which is made if it does not exist.

    The tokenizers library raises bare Exception; it is raised again as the OSError that it stands for.
    """
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        tokenizer.save_pretrained(str(folder / TOKENIZER))
    except Exception as error:
        if made:
            shutil.rmtree(folder)
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise


def _clear_stale(before: Preparation, settings: dict[str, Any], keys: list[str], progress: Say) -> bool:
    """Clear a work folder of everything that the parts `keys` cannot reuse.

    Returns False if its parts are already these. Raises ValueError if it holds finished parts of other settings, or if
    another process is working on them.
    """
    before.refresh()
    if before.keys == keys:
        return False
    old, folder, done = before.plan["settings"], before.folder, len(before.results)
    changed = [key for key in settings if old[key] != settings[key]] or ["parts"]
    if before.busy():
        raise ValueError(f"out_dir: another process prepares {before.out} with another {changed[-1]}; wait, or stop it")
    results = {before.keys[index]: result for index, result in before.results.items()}
    if done and (changed != ["source"] or {old["source"]["kind"], settings["source"]["kind"]} != {"local"}):
        commit = f" (commit {old['source']['commit']})" if "commit" in old["source"] else ""
        raise ValueError(
            f"out_dir: {folder} holds {done} of {len(before.parts)} parts of another {changed[-1]}{commit}; give the "
            "arguments that they were made with, choose another out_dir, or remove it"
        )
    if (folder / STAGED).exists():
        shutil.rmtree(folder / STAGED)  # with the shards that were moved there
    stale = [
        key
        for key, result in results.items()
        if key not in keys or not all((folder / key / shard["name"]).exists() for shard in result["shards"])
    ]
    if stale:
        progress(f"prepare: {len(stale)} of {done} parts are done again because files of the source have changed")
    for path in folder.iterdir():
        if path.is_dir() and (path.name in stale or path.suffix in (".partial", ".cut")):
            shutil.rmtree(path)
    return True


def _key(part: Part, settings: dict[str, Any]) -> str:
    """The folder name of a part's result: a hash of everything that the result depends on."""
    return hashlib.sha256(json.dumps([part.identity, settings], sort_keys=True).encode()).hexdigest()[:16]


def _discard(preparation: Preparation) -> None:
    """Remove a work folder with nothing worth keeping: no part finished or in progress, and no jobs submitted."""
    if not (preparation.folder / PLAN).exists() or (preparation.folder / JOBS).exists():
        return
    preparation.refresh()
    if not preparation.results and preparation.free(len(preparation.parts)) == len(preparation.parts):
        shutil.rmtree(preparation.folder)


def _assemble(preparation: Preparation, progress: Say) -> None:
    """Assemble the parts and move the output into place. An interruption at any point can be resumed."""
    settings, plan, dtype = preparation.plan["settings"], preparation.plan, np.dtype(preparation.plan["dtype"])
    count, tokens = preparation.leading_parts()
    results = [(preparation.keys[index], preparation.results[index]) for index in range(count)]
    if preparation.max_tokens is not None and results:
        key, last = results[-1]
        limit = preparation.max_tokens - (tokens - train_tokens(last))
        if train_tokens(last) >= limit != last["limit"]:
            # This part was tokenised before the number of tokens left for it was known.
            if not (preparation.folder / f"{key}.cut").exists():
                progress(f"prepare: {preparation.part_name(count - 1)} is done again because max_tokens falls into it")
                preparation.write(count - 1, f"{key}.cut", limit, lambda: None)
            results[-1] = (f"{key}.cut", preparation.read(f"{key}.cut"))
    more = bool(results) and results[-1][1]["more"]
    whole = not more and not any(True for part in preparation.parts[count:] for _ in documents(part))
    shards = {split: [] for split in corpus.SPLITS}
    for key, result in results:
        for shard in result["shards"]:
            entry = {**shard, "name": f"{shard['split']}-{len(shards[shard['split']]):05d}.bin"}
            shards[shard["split"]].append((preparation.folder / key / shard["name"], entry))
    entries = {split: [entry for _, entry in files] for split, files in shards.items()}
    read, empty = (sum(result[kind] for _, result in results) for kind in ("read", "empty"))
    by_split = {split: sum(entry["documents"] for entry in listed) for split, listed in entries.items()}
    if read != empty + sum(by_split.values()):
        raise RuntimeError(
            f"{preparation.folder}: {read} documents were read, and {empty} + {by_split} written; remove it"
        )
    if not by_split["train"]:
        shutil.rmtree(preparation.folder)
        raise ValueError(
            f"source: {plan['name']} gave {read} documents, {empty} of them empty, and none "
            "for the train split; give more text or smaller validation and test fractions"
        )
    staged = preparation.folder / STAGED
    staged.mkdir(exist_ok=True)
    for path, target in [
        *((path, staged / entry["name"]) for files in shards.values() for path, entry in files),
        (preparation.folder / TOKENIZER, staged / TOKENIZER),
    ]:
        if not target.exists():  # an interrupted call may have moved it already
            path.rename(target)
    index = {
        "documents": {"read": read, "empty": empty, **by_split},
        "tokens": {split: sum(entry["tokens"] for entry in listed) for split, listed in entries.items()},
        "whole_source": whole,
        "vocab_size": plan["vocab_size"],
        "dtype": dtype.str,
        "bos_token_id": plan["bos_token_id"],
        "tokenizer_hash": settings["tokenizer_hash"],
        "shards": [entry for listed in entries.values() for entry in listed],
    }
    damaged, replaced = (sum(result.get(kind, 0) for _, result in results) for kind in ("damaged", "replaced"))
    if damaged:  # else the index, whose hash is a part of runs' identities, is as it was before these were counted
        index["replaced"] = {"documents": damaged, "characters": replaced}
    write_json(staged / INDEX, {"format": FORMAT, **index, "settings": settings})
    _publish(staged, preparation.out)


def _retire(out: Path) -> None:
    """Remove the work folder. It is renamed first, because others may still be working on parts no longer needed."""
    if work_folder(out).exists():
        rest = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        os.replace(work_folder(out), rest)
        shutil.rmtree(rest, ignore_errors=True)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Let one process at a time plan and assemble. Also removes what a killed process was about to remove."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for stale in out.parent.glob(f".{out.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Turn the OSError of a full disk into a ValueError that names `out`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_space(out, error) from error


def _existing(out: Path, settings: dict[str, Any], progress: Say) -> TokenData | None:
    """Open `out` if it holds the same data intact. Returns None if it must be written, raises ValueError if it holds
    anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / INDEX).is_file():
        raise ValueError(f"out_dir: {out} exists and was not made by data prepare; choose another or remove it")
    try:
        before = read_json(out / INDEX, "the data are prepared again")["settings"]
    except ValueError as error:
        progress(f"prepare: {error}")
        return None
    except (KeyError, TypeError):
        progress(f"prepare: {out / INDEX}: corrupt, it has no settings; the data are prepared again")
        return None
    different = [key for key in settings if before.get(key) != settings[key]]
    if different:
        raise ValueError(f"out_dir: {out} holds data of another {different[0]}; choose another or remove it")
    try:
        return TokenData(out)
    except ValueError as error:
        progress(f"prepare: the data are prepared again: {error}")
        return None


def _publish(staged: Path, out: Path) -> None:
    """Move the finished folder into place, over a damaged one if there is one."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        os.replace(out, old)
        os.replace(staged, out)
        shutil.rmtree(old)
    else:
        os.replace(staged, out)
