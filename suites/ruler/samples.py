"""RULER's samples at a length: as large as fits, each from its own generator, and kept in files with their hash.

A generator is seeded by task, length, seed and index, so that a sample depends neither on order nor on process nor on
how many are asked for. A length counts the whole prompt, BOS, example, answer prefix and room for the answer included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

from harness.files import write_atomic
from suites.ruler.haystack import Passages, passages
from suites.ruler.tasks import (
    COMMON,
    FEWEST_CODED,
    FEWEST_WORDS,
    SPECS,
    VARIABLES,
    Parts,
    Sample,
    Spec,
    common_words,
    cwe_words,
    example_lines,
    frequent_words,
    niah,
    question,
    variable_tracking,
)
from suites.shared.lm_requests import encode, token_count

Steps = Literal["lm_eval", "unit"]
Progress = Callable[[str], None]

# Tokens by which samples of one size differ, generously: what an error's remedy adds to the sizes it has seen.
SLACK = 32


def growth(spec: Spec, length: int, steps: Steps) -> tuple[int, int, int]:
    """The smallest size of a task's context, by how much it grows, and the largest.

    Largest is what there is, or a size that no tokenizer which counts every word could fit.
    """
    unit, endless = steps == "unit", 16 * length
    match spec.family:
        case "niah" if spec.hay == "essay":
            step = 1 if unit else 500
            return max(step, FEWEST_WORDS), step, max(endless, 1000)
        case "niah":
            step = 1 if unit else 5 if length < 4096 else 25
            return max(step, spec.needles), step, endless
        case "vt":
            step = 1 if unit else 10
            return max(step, VARIABLES + 1), step, endless
        case "cwe":
            return 2 * COMMON, 1 if unit else 10, len(cwe_words())
        case "fwe":
            return FEWEST_CODED, 1 if unit else max(1, length // 32), endless
        case _:
            return 0, 1 if unit else 10, endless


def prompts(
    task: str,
    length: int,
    n: int,
    seed: int,
    tokenizer: Any,
    *,
    source: str,
    max_new_tokens: int | None = None,
    steps: Steps = "lm_eval",
) -> list[Sample]:
    """`n` samples whose prompt and `max_new_tokens` (None: RULER's own number) fit in `length` tokens.

    source: of the essays or passages; see `suites.ruler.haystack`. As in RULER, the size of the context is found on one
    draw, and a sample that turns out longer is shortened step by step. Raises ValueError when the smallest context
    does not fit, or an answer not in `max_new_tokens`; of qa, questions for which that is so are passed over, and it
    is an error when fewer than `n` are left.
    """
    spec = SPECS[task]
    kept = max_new_tokens or spec.max_new_tokens
    smallest, step, largest = growth(spec, length, steps)
    asked = passages(spec.hay, source) if spec.family == "qa" else None
    if asked is not None:
        largest = len(asked.documents)
    compose = composer(task, length, source, asked, tokenizer)

    def sample(index: int | str, times: int) -> Sample:
        rng = Random(f"{task}:{length}:{seed}:{index}")
        parts = compose(index if isinstance(index, int) else 0, rng, smallest + times * step)
        return Sample(*parts, tokens=token_count(tokenizer, parts[0]))

    def fitting(index: int | str, most: int) -> Sample:
        """The largest sample of up to `most` steps that fits, else the smallest."""
        for times in range(most, -1, -1):
            found = sample(index, times)
            if found.tokens <= length - kept:
                break
        return found

    def require_fit(found: Sample) -> None:
        if found.tokens > length - kept:
            others = [sample(f"size {i}", 0).tokens for i in range(20)]
            raise ValueError(too_short(task, length, kept, found.tokens, max(found.tokens, *others), steps))
        require_room(task, kept, found, tokenizer)

    if asked is None:
        require_fit(sample("size", 0))
    most = search(lambda times: sample("size", times).tokens <= length - kept, (largest - smallest) // step)
    if asked is not None:
        return answerable(
            task, length, kept, n, [partial(fitting, i, most) for i in range(len(asked.questions))], tokenizer
        )
    if most == (largest - smallest) // step and spec.family != "cwe":
        raise ValueError(
            f"ruler.lengths: {length} tokens hold {largest} words; the tokenizer counts too few, use another"
        )
    samples = [fitting(index, most) for index in range(n)]
    for found in samples:
        require_fit(found)
    return samples


def composer(
    task: str, length: int, source: str, asked: Passages | None, tokenizer: Any
) -> Callable[[int, Random, int], Parts]:
    """What makes a task's sample from its index, which matters to qa alone, a generator and a size."""
    spec = SPECS[task]
    if asked is not None:
        return lambda index, rng, size: question(asked, index, rng, size)
    match spec.family:
        case "niah":
            return lambda index, rng, size: niah(spec, source, rng, size)
        case "vt":
            lines = example_lines(tokenizer)
            return lambda index, rng, size: variable_tracking(lines, rng, size)
        case "cwe":
            return lambda index, rng, size: common_words(length, rng, size)
        case _:
            return lambda index, rng, size: frequent_words(length, rng, size)


def search(fits: Callable[[int], bool], top: int) -> int:
    """The largest number up to `top` that fits, 0 where none does; whatever is below one that fits does too."""
    low, high = 0, 1
    while high <= top and fits(high):
        low, high = high, 2 * high
    high = min(high, top + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def answerable(
    task: str, length: int, kept: int, n: int, draws: list[Callable[[], Sample]], tokenizer: Any
) -> list[Sample]:
    """The first `n` questions, in the data's order, whose gold documents and answer fit."""
    samples, lengths = [], []
    for draw in draws:
        found = draw()
        if answer_tokens(tokenizer, found) > kept:
            continue
        if found.tokens <= length - kept:
            samples.append(found)
        else:
            lengths.append(found.tokens + kept)
        if len(samples) == n:
            return samples
    if len(samples) + len(lengths) < n:
        raise ValueError(
            f"ruler.samples: {task} has {len(samples) + len(lengths)} questions whose answers fit {kept} tokens; "
            f"ask for as many, not {n}"
        )
    raise ValueError(
        f"ruler.lengths: {task} has {len(samples)} questions whose documents fit {length} tokens, {n} are asked for; "
        f"use a length of at least {sorted(lengths)[n - len(samples) - 1]}, or fewer samples"
    )


def too_short(task: str, length: int, kept: int, tokens: int, most: int, steps: Steps) -> str:
    """What to say of a smallest prompt of so many tokens; others take up to about `most`."""
    finer = "" if steps == "unit" else ", or steps: unit"
    return (
        f"ruler.lengths: {task} does not fit {length} tokens: its smallest prompt takes {tokens} and {kept} are kept "
        f"for the answer; use a length of at least {most + kept + SLACK}, a smaller max_new_tokens{finer}"
    )


def answer_tokens(tokenizer: Any, sample: Sample) -> int:
    return len(encode(tokenizer, sample.continuation))


def require_room(task: str, kept: int, sample: Sample, tokenizer: Any) -> None:
    """ValueError when the answer takes more than the `kept` tokens."""
    if (answer := answer_tokens(tokenizer, sample)) > kept:
        raise ValueError(
            f"ruler.max_new_tokens: {kept} cannot hold an answer of {task}, {answer} tokens long; "
            f"use at least {answer + SLACK}"
        )


def read_samples(path: Path | None, progress: Progress = lambda message: None) -> list[Sample] | None:
    """The samples of a file; None when there is none or, said aloud, it is not what its hash says."""
    if path is None or not path.exists():
        return None
    content, sidecar = path.read_bytes(), hash_file(path)
    if not sidecar.exists() or sidecar.read_text().split()[:1] != [hashlib.sha256(content).hexdigest()]:
        progress(f"ruler: {path} is damaged; its samples are drawn again")
        return None
    rows = [json.loads(line) for line in content.splitlines()]
    return [Sample(**{**row, "answers": tuple(row["answers"])}) for row in rows]


def write_samples(path: Path, found: list[Sample], progress: Progress) -> None:
    """Keep samples in a file, their hash beside it as sha256sum writes it; where that is not allowed, go on without.

    Two processes write the same bytes, so it does not matter whose file and whose hash stay.
    """
    content = "".join(json.dumps(asdict(sample)) + "\n" for sample in found).encode()
    try:
        write_atomic(path, content)
        write_atomic(hash_file(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    except OSError as error:
        progress(f"ruler: samples are not kept: {error}")


def hash_file(path: Path) -> Path:
    return path.with_suffix(".jsonl.sha256")
