"""Keep a model's answers in a file as they come, so that a killed evaluation resumes without asking twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

# Limits on the requests, and on the characters of their texts, that are answered before the answers are written: enough
# for full batches, yet little to lose. 2^21 characters are about 64 contexts of 8K tokens.
CHUNK, CHARACTERS = 512, 2**21


class Journal(LM):
    """An lm-eval model that wraps another one and keeps its answers in a JSONL file.

    Each line holds a request's `key` (a hash of its kind and arguments), `task`, `doc` and `answer`. A file must serve
    one model only; its name should say which. A last line that was cut off when its process died is dropped.
    progress: called with one line after each chunk of requests. All other attributes are those of the inner model.
    """

    def __init__(self, lm: LM, path: Path, progress: Callable[[str], None] = lambda line: None):
        super().__init__()
        self.lm, self.path, self.progress = lm, path, progress
        path.parent.mkdir(parents=True, exist_ok=True)
        self.answers = _read(path)

    def __getattr__(self, name: str) -> Any:
        # Called only for missing attributes. `lm` itself is missing while this object is being copied.
        if name == "lm":
            raise AttributeError(name)
        return getattr(self.lm, name)

    @property
    def tokenizer_name(self) -> str:
        """The inner model's name of its tokenizer."""
        return self.lm.tokenizer_name

    def loglikelihood(self, requests: list[Instance], **options: Any) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives the continuation) of each request."""
        # JSON turned the pairs of earlier answers into lists.
        return [(value, greedy) for value, greedy in self._answered("loglikelihood", requests, options)]

    def loglikelihood_rolling(self, requests: list[Instance], **options: Any) -> list[float]:
        """Log-likelihood in nats of each request's document."""
        return self._answered("loglikelihood_rolling", requests, options)

    def generate_until(self, requests: list[Instance], **options: Any) -> list[str]:
        """The text generated for each request."""
        return self._answered("generate_until", requests, options)

    def _answered(self, kind: str, requests: Sequence[Instance], options: dict[str, Any]) -> list[Any]:
        """Ask the inner model for the answers not yet in the file, write them down, and return all."""
        keys = [_key(kind, request.args) for request in requests]
        missing: dict[str, Instance] = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in self.answers:
                missing.setdefault(key, request)
        started, left = time.perf_counter(), list(missing.items())
        with open(self.path, "a", encoding="utf-8") as file:
            while left:
                part, left = _split(left)
                answers = getattr(self.lm, kind)([request for _, request in part], **options)
                for (key, request), answer in zip(part, answers, strict=True):
                    line = {"key": key, "task": request.task_name, "doc": request.doc_id, "answer": answer}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    self.answers[key] = answer
                file.flush()
                done = len(missing) - len(left)
                eta = (time.perf_counter() - started) / done * len(left)
                self.progress(f"{requests[0].task_name}: {done}/{len(missing)} requests, {eta:.0f} s left")
        return [self.answers[key] for key in keys]


def _split(requests: list[tuple[str, Instance]]) -> tuple[list[Any], list[Any]]:
    """Split off the first chunk. The requests of one document share a prefix, so a chunk always holds all of them."""
    size = characters = 0
    while size < len(requests) and (
        (size < CHUNK and characters < CHARACTERS) or requests[size][1].doc_id == requests[size - 1][1].doc_id
    ):
        characters += sum(len(argument) for argument in requests[size][1].args if isinstance(argument, str))
        size += 1
    return requests[:size], requests[size:]


def _key(kind: str, arguments: Sequence[Any]) -> str:
    """SHA-256 of a request's kind and arguments."""
    content = json.dumps([kind, arguments], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Answers by key. A line that was cut off or damaged is removed from the file, with all after it, so
    that the next line starts cleanly."""
    if not path.exists():
        return {}
    answers, whole = {}, 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                content = json.loads(line)
                answers[content["key"]] = content["answer"]
            except (ValueError, KeyError, TypeError):
                break  # a line that a dying machine spoilt: it and all after it are asked for again
            whole += len(line)
    if whole < path.stat().st_size:
        with open(path, "r+b") as file:
            file.truncate(whole)
    return answers
