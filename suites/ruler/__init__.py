"""RULER's thirteen tasks, scored by substring and by the continuous needle score.

The paper uses S-NIAH-1/2/3 and MK-NIAH-1. `suites.ruler.tasks` composes the text of samples and `suites.ruler.samples`
sizes them. They are made once per tokenizer, task, length, seed and options, and cached with their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, PositiveInt, field_validator, model_validator

from harness.data.needles import FORMATS
from harness.data.tokenizer import tokenizer_hash
from harness.experiments.closed import Seed
from harness.files import cache_dir, file_sha256
from harness.records.answers import kept
from harness.records.published import TASK_NAMES
from harness.records.record import Measurement
from harness.records.units import unit_name
from mixers.identity import Neutral
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.ruler.haystack import COPY, COPY_STAND_IN, CORPUS, HUB, STAND_IN, Source, Unreachable
from suites.ruler.samples import VERSIONS, Split, Steps, check_samples, draw_samples, read_samples, write_samples
from suites.ruler.tasks import SPECS, Sample
from suites.shared.items import Item, hashed_item
from suites.shared.lm_requests import (
    check_distinct,
    check_prompt_length,
    contains,
    fingerprint,
    generate,
    mean_measurement,
    tokenizer_of,
)
from suites.shared.needle import Probe, needle_measurements

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Task = Literal[
    "s_niah_1",
    "s_niah_2",
    "s_niah_3",
    "mk_niah_1",
    "mk_niah_2",
    "mk_niah_3",
    "mv_niah",
    "mq_niah",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
]
T = TypeVar("T")

PAPER_SAMPLES = 500


class Config(SuiteConfig):
    """Options of RULER: each task at each length."""

    tasks: list[Task] = Field(default=["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"], min_length=1)
    """Tasks; by default the paper's."""
    lengths: list[PositiveInt] | None = Field(default=None, min_length=1)
    """Lengths in tokens, answer included. null: the paper's, which differ by task; 4096 for the tasks it leaves out.

    With lm-eval's steps the answer prefix of needles and questions comes on top, as there.
    """
    samples: PositiveInt = PAPER_SAMPLES
    """Samples per task and length; the paper has 500."""
    seed: Seed = 0
    """Seed of the samples."""
    split: Annotated[Split, Neutral("test")] = "test"
    """Samples to score: `test` for reports, `validation`, other needles, for choices such as a learning rate. The
    embedded prose has text of its own for either; Paul Graham's essays serve both."""
    max_new_tokens: PositiveInt | None = None
    """Tokens kept free for the answer. null: RULER's own number for each task."""
    generate: bool = True
    """Whether to also generate and score by substring, in addition to the log-likelihood of the answers."""
    haystack: Source = "paul_graham"
    """Text in which the essay tasks hide needles: RULER's essays from the Hub, or the embedded prose (a stand-in)."""
    steps: Steps = "lm_eval"
    """Steps by which a context grows to fill its length.

    `lm_eval` grows essays by 500 words, noise and needles by 5 lines (25 from 4096 tokens on), and the rest by 10
    lines, words or documents (fwe: by a 32nd of the length), and counts tokens as lm-eval does. Essays fill about
    three quarters of 2048 tokens; the paper's numbers were measured so. `unit` grows by one.
    """

    @field_validator("tasks", "lengths")
    @classmethod
    def _check_distinct(cls, values: list[Any] | None) -> list[Any] | None:
        return values and check_distinct(values)

    @model_validator(mode="after")
    def _split_exists(self) -> Config:
        return check_split(self)

    def pairs(self) -> list[tuple[Task, int]]:
        """Return every task with each of its lengths."""
        return [(task, length) for task in self.tasks for length in self.lengths or SPECS[task].lengths]

    def room(self, task: str) -> int:
        """Return the tokens kept free for a task's answers."""
        return self.max_new_tokens or SPECS[task].max_new_tokens


def check_split(config: Config) -> Config:
    """Return `config`; raise ValueError if it asks for a split of qa, whose questions are all in one."""
    if config.split != "test" and (qa := [task for task in config.tasks if SPECS[task].family == "qa"]):
        raise ValueError(f"tasks: {', '.join(qa)} have no split {config.split!r}; leave them out")
    return config


@register_suite("ruler", title="RULER's needles, variable tracking, counting and questions, by context length")
class Ruler(Suite):
    """RULER at each length of context: accuracy by substring, and how likely the needle makes its answer."""

    Config = Config

    def protocol_versions(self, config: Config) -> dict[str, int]:
        """Return the version of the samples."""
        version = VERSIONS[config.steps]
        return dict.fromkeys(config.tasks, version) if version > 1 else {}

    def units(self, config: Config) -> dict[str, Config]:
        """Return one configuration per length, with the same samples as in the whole."""
        tasks: dict[int, list[Task]] = {}
        for task, length in config.pairs():
            tasks.setdefault(length, []).append(task)
        return {
            unit_name(self.name, length): config.model_copy(update={"tasks": at_length, "lengths": [length]})
            for length, at_length in sorted(tasks.items())
        }

    def check(self, config: Config, tokenizer: Any) -> None:
        """Raise ValueError if a task does not fit a length, or its haystack or passages are missing. Caches nothing."""
        for task, length in config.pairs():

            def check_unless_cached(source: str, task: str = task, length: int = length) -> None:
                if read_samples(sample_file(task, length, source, config, tokenizer)) is None:
                    check_samples(task, length, config.samples, config.seed, tokenizer, **drawing(task, source, config))

            from_first_reachable(task, config, check_unless_cached)

    def validation(self, config: Config) -> Config:
        """Return the same tasks with samples of the split `validation`. Raises ValueError for qa, which has none."""
        return check_split(config.model_copy(update={"split": "validation"}))

    def run(self, lm: LM, config: Config, progress: Progress = silent) -> list[Measurement]:
        """Return `contains` (with `generate`) and needle_logprob of each task and length.

        Tasks whose needles can be taken out get needle_gain as well.
        """
        tokenizer = tokenizer_of(lm, self.name)
        # All samples are drawn before any is measured, so an impossible length fails before the model runs.
        drawn = {pair: task_samples(*pair, config, tokenizer, progress) for pair in config.pairs()}
        for (task, length), (_, samples) in drawn.items():
            longest = max(sample.tokens for sample in samples) + config.room(task)
            check_prompt_length(lm, "ruler.lengths", max(length, longest))
        measurements = []
        for (task, length), (source, samples) in drawn.items():
            progress(f"ruler {task}@{length}: {len(samples)} samples")
            why = stand_in(task, length, source, config, getattr(lm, "row_tasks", ()))
            measurements += score_samples(lm, task, length, source, samples, config, why)
        return measurements

    def prefetch(self, config: Config, tokenizer: Any, progress: Progress = silent) -> Iterator[Item]:
        """Draw and cache the samples of every task and length, which also fetches their haystacks and passages."""
        for task, length in config.pairs():

            def freeze(task: str = task, length: int = length) -> str:
                if tokenizer is None:
                    raise ValueError("its samples are sized with the tokenizer; get that first")
                source, _ = task_samples(task, length, config, tokenizer, progress)
                if source == COPY:
                    progress(f"ruler {task}@{length}: the Hub does not answer; {COPY_STAND_IN}")
                return file_sha256(sample_file(task, length, source, config, tokenizer))

            yield hashed_item(f"ruler {task}@{length}", freeze)


def task_samples(
    task: str, length: int, config: Config, tokenizer: Any, progress: Progress = silent
) -> tuple[str, list[Sample]]:
    """Return the source of a task's samples at a length, and the samples, drawn and cached if they are not yet."""

    def cached_or_drawn(source: str) -> list[Sample]:
        path = sample_file(task, length, source, config, tokenizer)
        samples = read_samples(path, progress)
        if samples is None:
            options = drawing(task, source, config)
            samples = draw_samples(task, length, config.samples, config.seed, tokenizer, **options)
            if path is not None:
                write_samples(path, samples, progress)
        return samples

    return from_first_reachable(task, config, cached_or_drawn)


def from_first_reachable(task: str, config: Config, get: Callable[[str], T]) -> tuple[str, T]:
    """Return the first source of a task's haystack or passages that can be reached, and `get(source)`.

    Raises Unreachable if none can.
    """
    spec = SPECS[task]
    essays = CORPUS[config.split] if config.haystack == "corpus" else config.haystack
    sources: Sequence[str] = (essays if spec.hay == "essay" else spec.hay,)
    if spec.family == "qa":
        sources = (HUB, COPY) if spec.hay == "squad" else (HUB,)
    for source in sources[:-1]:
        try:
            return source, get(source)
        except Unreachable:
            continue
    return sources[-1], get(sources[-1])


def drawing(task: str, source: str, config: Config) -> dict[str, Any]:
    """Return the options by which samples of a task are drawn."""
    return {"source": source, "max_new_tokens": config.room(task), "steps": config.steps, "split": config.split}


def sample_file(task: str, length: int, source: str, config: Config, tokenizer: Any) -> Path | None:
    """Return the cache file of samples, whose name changes with anything that would change them.

    None if the tokenizer has no hash; its samples are not cached.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        return None
    identity = [VERSIONS[config.steps], task, length, config.seed, source, config.room(task), config.steps]
    identity += [config.split] if config.split != "test" else []
    digest = hashlib.sha256(json.dumps([*identity, config.samples, tokenizer_hash(tokenizer)]).encode()).hexdigest()
    return cache_dir() / "ruler" / f"{task}-{length}-{digest[:16]}.jsonl"


def answer_score(task: str, text: str, answers: Sequence[str]) -> float:
    """Return RULER's score of a text, ignoring case.

    It is the fraction of the gold answers that the text contains (string_match_all). For qa it is 1 if the text
    contains any (string_match_part), as in NVIDIA's code; lm-eval 0.4.13 takes the fraction for qa, too.
    """
    if SPECS[task].family == "qa":
        return contains(text, answers)
    return sum(contains(text, [answer]) for answer in answers) / len(answers)


def sufficient_answers(task: str, answers: Sequence[str]) -> list[list[str]]:
    """Return lists of answers; a text that contains every answer of one list has the full `answer_score`."""
    return [[answer] for answer in answers] if SPECS[task].family == "qa" else [list(answers)]


def stand_in(task: str, length: int, source: str, config: Config, row_tasks: Iterable[str] = ()) -> str | None:
    """Return the reasons why a number is not one of RULER's own, zero-shot, or None if it is.

    Other steps or another room for the answer count at the paper's lengths alone, since it has no number at others.
    row_tasks: those of the model's training. Rows in the format of one task count for every task, since all needles
    look alike and the others were not seen to be unaffected.
    """
    spec, reasons = SPECS[task], []
    if formats := [TASK_NAMES[name] for name in FORMATS if name in row_tasks]:
        reasons.append(f"trained on rows in the format of {', '.join(formats)}, so not zero-shot")
    if spec.family == "qa" and source == COPY:
        reasons.append(COPY_STAND_IN)
    if spec.hay == "essay" and source in CORPUS.values():
        reasons.append(STAND_IN)
    if length in spec.lengths and (config.steps, config.room(task)) != ("lm_eval", spec.max_new_tokens):
        reasons.append(
            f"contexts by steps: {config.steps} with room for {config.room(task)} tokens, where the paper's are "
            f"lm-eval's with room for {spec.max_new_tokens}"
        )
    return "; ".join(reasons) or None


def score_samples(
    lm: LM, task: str, length: int, source: str, samples: list[Sample], config: Config, why: str | None
) -> list[Measurement]:
    """Return the measurements of one task at one length. why: they are a stand-in; None if they are not."""
    spec = SPECS[task]
    tokens = [sample.tokens for sample in samples]
    fields = {
        "suite": "ruler",
        "length": length,
        "stand_in": why,
        "limit": config.samples if config.samples < PAPER_SAMPLES else None,
        "settings": {
            "prompts": f"ruler-{spec.family}-{VERSIONS[config.steps]}",
            "items_sha256": fingerprint([sample.prompt, sample.without, *sample.answers] for sample in samples),
            "seed": config.seed,
            "max_new_tokens": config.room(task),
            "haystack": f"{spec.hay}, {source}" if spec.family == "qa" else source,
            "steps": config.steps,
            "prompt_tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        },
    }
    measurements = []
    if config.generate:
        prompts = [sample.prompt for sample in samples]
        enough = [sufficient_answers(task, sample.answers) for sample in samples]
        texts = generate(lm, task, prompts, until=[], max_new_tokens=config.room(task), enough=enough)
        scores = [answer_score(task, text, sample.answers) for text, sample in zip(texts, samples, strict=True)]
        answers = kept(prompts, ("; ".join(sample.answers) for sample in samples), texts)
        measurements.append(mean_measurement("contains", scores, task=task, answers=answers, **fields))
    probes = [Probe(sample.prompt, sample.without, sample.continuation) for sample in samples]
    return measurements + needle_measurements(lm, probes, task, **fields)
