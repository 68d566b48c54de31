"""Our lm-eval model against lm-eval's own HFLM, on the same weights and requests: time and agreement of answers.

Compared: `MixerLM` with HFLM at several batch sizes. On: four language tasks, and needles that are read and answered,
`samples` of each. How often: once per kind of work, after a few untimed requests, so no spread is printed; a ratio is
printed next to the agreement of the answers.

The model is a preset's Transformer at random weights, which transformers has as LLaMA. Weights do not change the
amount of computation, with one exception: ours stops decoding once it has given the answer. To measure the gain for a
model that knows answers, the first tokens that this model generates are taken as the answer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import matched_config
from harness.lm.export import to_llama, with_bos
from harness.lm.mixer_lm import ENOUGH, MixerLM
from harness.model.language_model import LanguageModel, build_model
from suites import language, ruler
from suites.shared.lmeval import quiet_lm_eval

Row = dict[str, Any]

TASKS = ("lambada", "piqa", "arc_easy", "hellaswag")
NEEDLE = "s_niah_1"
# HFLM runs at its default and two more sizes; ours chooses its batches itself.
DEFAULT = 1
BATCH_SIZES = (DEFAULT, 8, 32)
# RULER's 128 tokens for a needle, and about as many as its number takes.
NEW_TOKENS, ANSWER = 128, 8


def run(
    preset: str, samples: int, length: int, device: torch.device, progress: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Return one row per kind of work: the seconds of both models, their ratios, and the agreement of their answers.

    samples: requests per kind of work (documents of a language task). length: tokens of a needle's haystack. Raises
    ValueError if the offline tasks have not been fetched.
    """
    language.Language().check(language.Config(tasks=list(TASKS), offline=True))
    tokenizer = load_tokenizer()
    longest = length + NEW_TOKENS
    ours = MixerLM(transformer(preset, len(tokenizer)).to(device), tokenizer, max_length=longest)
    theirs = {size: hflm(ours, longest, size) for size in BATCH_SIZES}
    rows = []
    for name, (requests, plain) in _work(ours, samples, length).items():
        seconds, answers = _timed(ours, requests)
        hflm_runs = {size: _timed(lm, plain) for size, lm in theirs.items()}
        times = {size: seconds for size, (seconds, _) in hflm_runs.items()}
        best = min(times, key=times.__getitem__)
        row = {"work": name, "requests": len(requests), "seconds": seconds, "hflm_seconds": times}
        row |= {"hflm_best": best, "ratio": times[best] / seconds, "ratio_default": times[DEFAULT] / seconds}
        row |= _agreement(answers, hflm_runs[best][1])
        rows.append(row)
        progress(line(row))
    return rows


def transformer(preset: str, vocab_size: int) -> LanguageModel:
    """Return the preset's attention model with one MLP width in all blocks, as LLaMA has."""
    config = matched_config(preset, "attention", "attention", vocab_size=vocab_size)
    return build_model(config.model_copy(update={"mlp_widths": config.mlp_widths[:1] * config.layers}), 0)


def hflm(ours: MixerLM, max_length: int, batch_size: int) -> HFLM:
    """Return lm-eval's own class with the same weights, in fp32, on our model's device."""
    return HFLM(
        pretrained=to_llama(ours.model, ours.prefix_token_id, max_length),
        tokenizer=with_bos(ours.tokenizer),
        add_bos_token=True,
        batch_size=batch_size,
        max_length=max_length,
        device=str(ours.model.head.weight.device),
        dtype="float32",
    )


def _work(lm: MixerLM, samples: int, length: int) -> dict[str, tuple[list[Instance], list[Instance]]]:
    """Return the requests to ours and to HFLM by kind of work; they differ only in the answer that lets ours stop."""
    work = {}
    for name in TASKS:
        task, _ = language.load(name, True)
        with quiet_lm_eval():
            task.build_all_requests(limit=samples, rank=0, world_size=1)
        work[name] = (task.instances, task.instances)
    config = ruler.Config(tasks=[NEEDLE], lengths=[length], samples=samples, max_new_tokens=NEW_TOKENS, steps="unit")
    _, drawn = ruler.task_samples(NEEDLE, length, config, lm.tokenizer)
    pairs = [(text, sample.continuation) for sample in drawn for text in (sample.prompt, sample.without)]
    work["needle, read"] = (_instances("loglikelihood", pairs),) * 2
    options = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    plain = _instances("generate_until", [(sample.prompt, options) for sample in drawn])
    work["needle, generate"] = (plain, plain)
    first = _instances("generate_until", [(sample.prompt, options | {"max_gen_toks": ANSWER}) for sample in drawn])
    said = lm.generate_until(first)
    known = [(sample.prompt, options | {ENOUGH: [[text]]}) for sample, text in zip(drawn, said, strict=True)]
    work["needle, answered"] = (_instances("generate_until", known), plain)
    return work


def _instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i, (NEEDLE, i, 1)) for i, a in enumerate(arguments)]


def _timed(lm: LM, requests: list[Instance]) -> tuple[float, list[Any]]:
    """Return the seconds of all requests, after a few untimed ones, and the answers."""
    answer = getattr(lm, requests[0].request_type)
    with quiet_lm_eval():
        answer(copy.deepcopy(requests[:4]), disable_tqdm=True)
        started = time.perf_counter()
        answers = answer(copy.deepcopy(requests), disable_tqdm=True)  # HFLM takes options apart in place
        return time.perf_counter() - started, answers


def _agreement(ours: list[Any], theirs: list[Any]) -> Row:
    pairs = list(zip(ours, theirs, strict=True))
    if isinstance(ours[0], str):  # a text that stopped at its answer is a prefix of the other
        return {"equal": sum(b.startswith(a) and a != "" for a, b in pairs) / len(pairs), "difference": None}
    return {
        "equal": sum(a[1] == b[1] for a, b in pairs) / len(pairs),
        "difference": max(abs(a[0] - b[0]) for a, b in pairs),
    }


HEADER = (
    f"{'work':18}{'requests':>9}{'ours, s':>9}{'HFLM, s':>9}{'ratio':>7}{'best, s':>9}{'batch':>6}{'ratio':>7}"
    f"{'nats':>9}{'equal':>8}"
)


def line(row: Row) -> str:
    """Return a row as text under HEADER, with HFLM at its default and at its best batch size.

    nats: the largest difference of a log-likelihood. equal: the fraction of equal greedy texts, compared up to the end
    of ours, or of continuations that both or neither call greedy.
    """
    nats = "–" if row["difference"] is None else f"{row['difference']:.1e}"
    times, best = row["hflm_seconds"], row["hflm_best"]
    return (
        f"{row['work']:18}{row['requests']:9}{row['seconds']:9.2f}{times[DEFAULT]:9.2f}{row['ratio_default']:6.1f}×"
        f"{times[best]:9.2f}{best:6}{row['ratio']:6.1f}×{nats:>9}{row['equal']:8.1%}"
    )


def render(rows: list[Row]) -> str:
    """Return the rows as text, under a header."""
    return "\n".join([HEADER, *map(line, rows)])
