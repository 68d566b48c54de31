"""RULER's samples at a length: as large as fits, independent of each other, cached in files with their hash.

Task, length, seed and index seed a sample's generator, so a sample does not depend on the order of drawing, the process
or the number of samples. With steps of one unit a length counts the whole prompt: BOS, example, answer prefix and room
for the answer. With lm-eval's steps it counts what lm-eval counts, so that prompts have the same size as there.
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

from harness.data.needles import FEWEST_WORDS, Parts, compose
from harness.files import write_atomic
from suites.interface import Progress, silent
from suites.ruler.haystack import Passages, essay_sentences, passages
from suites.ruler.tasks import (
    COMMON,
    FEWEST_CODED,
    QA_PREFIX,
    SPECS,
    VARIABLES,
    Sample,
    Spec,
    common_words,
    cwe_example,
    cwe_words,
    document_question,
    example_lines,
    frequent_words,
    variable_tracking,
)
from suites.shared.lm_requests import encode, token_count

Steps = Literal["lm_eval", "unit"]
Split = Literal["test", "validation"]
VERSIONS: dict[Steps, int] = {"lm_eval": 2, "unit": 1}
"""Version of the samples; it changes whenever the same task, length and seed would give others. In version 1 a length
counted the whole prompt with lm-eval's steps, too, and `cwe` kept no tokens free for an example."""

SLACK = 32
"""Tokens that an error's remedy adds to the sizes it has seen, since samples of one size differ in tokens."""


def context_sizes(spec: Spec, length: int, steps: Steps) -> tuple[int, int, int]:
    """Return the smallest size of a task's context, the step by which it grows, and the largest size.

    The largest is all there is, or a size that no tokenizer that counts every word could fit.
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
            step = 1 if unit else max(1, length // 32)
            # lm-eval starts from a sixth of the length.
            return FEWEST_CODED + (length // 6 - FEWEST_CODED) % step, step, endless
        case _:
            return 0, 1 if unit else 10, endless


def counted_tokens(spec: Spec, length: int, steps: Steps, sample: Sample, tokenizer: Any, sizing: bool) -> int:
    """Return the tokens of a sample that must fit its length less the room for the answer.

    With lm-eval's steps it is what lm-eval counts: niah and qa without the answer prefix; `fwe` without the room, which
    is taken off here; while `sizing`, niah, vt, cwe and qa with the answer, and `cwe` with an example.
    """
    if steps == "unit":
        return sample.tokens

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    answers = list(sample.answers)
    match spec.family:
        case "niah":
            text = sample.prompt.rpartition(" The special magic ")[0]
            return count(text + " ".join(answers) if sizing else text)
        case "vt":
            example, start, text = sample.prompt.rpartition("Memorize and track")
            return count(f"{start}{text} {answers}" if sizing else start + text) + count(example.removesuffix("\n\n"))
        case "cwe":
            return count(f"{cwe_example(length)}\n{sample.prompt}{sample.continuation}" if sizing else sample.prompt)
        case "fwe":
            return count(sample.prompt) - spec.max_new_tokens
        case _:
            text = sample.prompt.removesuffix(QA_PREFIX)
            return count(f"{text} {answers}" if sizing else text)


def draw_samples(
    task: str,
    length: int,
    n: int,
    seed: int,
    tokenizer: Any,
    *,
    source: str,
    max_new_tokens: int | None = None,
    steps: Steps = "lm_eval",
    split: Split = "test",
    smallest: bool = False,
) -> list[Sample]:
    """Return `n` samples whose prompt and answer room fit in `length` tokens, as `counted_tokens` counts them.

    max_new_tokens: the answer room; None means RULER's own number. source: of the essays or passages, see
    `suites.ruler.haystack`. split: each has samples of its own, except of qa. smallest: make the context of each as
    small as it can be. As in RULER, one draw determines the context's size, and a sample that turns out longer is
    shortened step by step. qa skips questions that do not fit.

    Raises ValueError if the smallest context does not fit, an answer does not fit in its room, or fewer than `n`
    questions of qa fit.
    """
    spec, stream = SPECS[task], "" if split == "test" else f"{split}:"
    room = max_new_tokens or spec.max_new_tokens
    fewest, step, largest = context_sizes(spec, length, steps)
    questions = passages(spec.hay, source) if spec.family == "qa" else None
    if questions is not None:
        largest = len(questions.documents)
    compose = sample_composer(task, length, source, questions, tokenizer)

    def sample(index: int | str, times: int) -> Sample:
        rng = Random(stream + f"{task}:{length}:{seed}:{index}")
        parts = compose(index if isinstance(index, int) else 0, rng, fewest + times * step)
        return Sample(*parts, tokens=token_count(tokenizer, parts[0]))

    def tokens(drawn: Sample, sizing: bool = False) -> int:
        return counted_tokens(spec, length, steps, drawn, tokenizer, sizing)

    def largest_sample(index: int | str, most: int) -> Sample:
        """Return the largest sample of up to `most` steps that fits, or the smallest one."""
        for times in range(most, -1, -1):
            drawn = sample(index, times)
            if tokens(drawn) <= length - room:
                break
        return drawn

    def require_fit(drawn: Sample) -> None:
        if (taken := tokens(drawn)) > length - room:
            others = [tokens(sample(f"size {i}", 0)) for i in range(20)]
            raise ValueError(too_short_message(task, length, room, taken, max(taken, *others), steps))
        check_answer_room(task, room, drawn, tokenizer)

    if questions is None:
        require_fit(sample("size", 0))
    top = 0 if smallest else (largest - fewest) // step
    most = largest_fitting(lambda times: tokens(sample("size", times), sizing=True) <= length - room, top)
    if questions is not None:
        draws = [partial(largest_sample, i, most) for i in range(len(questions.questions))]
        return answerable_samples(task, length, room, n, draws, tokens, tokenizer)
    if most == top and spec.family != "cwe" and not smallest:
        raise ValueError(
            f"ruler.lengths: {length} tokens hold {largest} words; the tokenizer counts too few, use another"
        )
    samples = [largest_sample(index, most) for index in range(n)]
    for drawn in samples:
        require_fit(drawn)
    return samples


def check_samples(task: str, length: int, n: int, seed: int, tokenizer: Any, **options: Any) -> None:
    """Raise ValueError where `draw_samples` with these arguments would, without drawing all samples in their full size.

    One sample is drawn as it will be. A sample that fits at some size fits at its smallest, so the others are drawn at
    that size, and only where one of them might not fit: samples of one size differ in tokens.
    """
    spec, room = SPECS[task], options.get("max_new_tokens") or SPECS[task].max_new_tokens
    draw_samples(task, length, 1, seed, tokenizer, **options)
    (small,) = draw_samples(task, length, 1, seed, tokenizer, **options, smallest=True)
    spare = min(length - room - small.tokens, room - answer_tokens(tokenizer, small))
    if spec.family == "qa" or spare < 2 * SLACK:
        draw_samples(task, length, n, seed, tokenizer, **options, smallest=True)


def sample_composer(
    task: str, length: int, source: str, questions: Passages | None, tokenizer: Any
) -> Callable[[int, Random, int], Parts]:
    """Return a function that composes a task's sample from an index, which only qa uses, a generator and a size."""
    spec = SPECS[task]
    if questions is not None:
        return lambda index, rng, size: document_question(questions, index, rng, size)
    match spec.family:
        case "niah":
            return lambda index, rng, size: compose(spec, rng, size, partial(essay_sentences, source))
        case "vt":
            lines = example_lines(tokenizer)
            return lambda index, rng, size: variable_tracking(lines, rng, size)
        case "cwe":
            return lambda index, rng, size: common_words(length, rng, size)
        case _:
            return lambda index, rng, size: frequent_words(length, rng, size)


def largest_fitting(fits: Callable[[int], bool], top: int) -> int:
    """Return the largest number up to `top` that fits, or 0 if none does. If a number fits, all smaller ones must."""
    low, high = 0, 1
    while high <= top and fits(high):
        low, high = high, 2 * high
    high = min(high, top + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def answerable_samples(
    task: str,
    length: int,
    room: int,
    n: int,
    draws: list[Callable[[], Sample]],
    tokens: Callable[[Sample], int],
    tokenizer: Any,
) -> list[Sample]:
    """Return the first `n` questions, in the order of the data, whose gold documents and answer fit.

    tokens: counts what must fit. Raises ValueError with the remedy if there are fewer.
    """
    samples, needed = [], []
    for draw in draws:
        drawn = draw()
        if answer_tokens(tokenizer, drawn) > room:
            continue
        if (taken := tokens(drawn)) <= length - room:
            samples.append(drawn)
        else:
            needed.append(taken + room)
        if len(samples) == n:
            return samples
    if len(samples) + len(needed) < n:
        raise ValueError(
            f"ruler.samples: {task} has {len(samples) + len(needed)} questions whose answers fit {room} tokens; "
            f"ask for as many, not {n}"
        )
    raise ValueError(
        f"ruler.lengths: {task} has {len(samples)} questions whose documents fit {length} tokens, {n} are asked for; "
        f"use a length of at least {sorted(needed)[n - len(samples) - 1]}, or fewer samples"
    )


def too_short_message(task: str, length: int, room: int, tokens: int, most: int, steps: Steps) -> str:
    """Return the error for a length that the smallest prompt does not fit.

    tokens: of that prompt. most: of the longest among several smallest prompts.
    """
    finer = "" if steps == "unit" else ", or steps: unit"
    return (
        f"ruler.lengths: {task} does not fit {length} tokens: its smallest prompt takes {tokens} and {room} are kept "
        f"for the answer; use a length of at least {most + room + SLACK}, a smaller max_new_tokens{finer}"
    )


def answer_tokens(tokenizer: Any, sample: Sample) -> int:
    """Return the tokens of a sample's gold continuation."""
    return len(encode(tokenizer, sample.continuation))


def check_answer_room(task: str, room: int, sample: Sample, tokenizer: Any) -> None:
    """Raise ValueError if the answer takes more than `room` tokens."""
    if (answer := answer_tokens(tokenizer, sample)) > room:
        raise ValueError(
            f"ruler.max_new_tokens: {room} cannot hold an answer of {task}, {answer} tokens long; "
            f"use at least {answer + SLACK}"
        )


def read_samples(path: Path | None, progress: Progress = silent) -> list[Sample] | None:
    """Return the samples of a file, or None if it is missing or, as `progress` reports, does not match its hash."""
    if path is None or not path.exists():
        return None
    content, sidecar = path.read_bytes(), hash_path(path)
    known = sidecar.read_bytes().split()[:1] if sidecar.exists() else []
    if known != [hashlib.sha256(content).hexdigest().encode()]:
        progress(f"ruler: {path} is damaged; its samples are drawn again")
        return None
    rows = [json.loads(line) for line in content.splitlines()]
    return [Sample(**{**row, "answers": tuple(row["answers"])}) for row in rows]


def write_samples(path: Path, samples: list[Sample], progress: Progress) -> None:
    """Write samples to a file, and their hash next to it in the format of sha256sum.

    If the folder cannot be written, `progress` reports it. Concurrent processes write the same bytes, so it does not
    matter whose file and whose hash remain.
    """
    content = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples).encode()
    try:
        write_atomic(path, content)
        write_atomic(hash_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    except OSError as error:
        progress(f"ruler: samples are not kept: {error}")


def hash_path(path: Path) -> Path:
    """Return the path of the file with the hash of `path`."""
    return path.with_suffix(".jsonl.sha256")
