"""Our lm-eval model beside lm-eval's own HFLM, on the same weights and the same requests: time, and that scores agree.

The model is a preset's Transformer at random weights, which transformers has as LLaMA. Weights do not change what is
computed, but for one thing: a model that knows answers ends its decoding early in ours, and this one never does.
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
from tokenizers.processors import TemplateProcessing

from harness.data import load_tokenizer
from harness.export import to_llama
from harness.lm import MixerLM
from harness.matching import matched_config
from harness.model import build_model
from suites import language, ruler
from suites.lmeval import contained

Row = dict[str, Any]

TASKS = ("lambada", "piqa", "arc_easy", "hellaswag")
NEEDLE = "s_niah_1"
# HFLM is given the best of these.
BATCH_SIZES = (1, 8, 32)
NEW_TOKENS = 64


def run(
    preset: str, samples: int, length: int, device: torch.device, progress: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """A row for each of four language tasks and for needles of `length` tokens, read and generated, `samples` of each:
    seconds of both, HFLM at the batch size that suits it best, their ratio, and how far answers differ.

    Raises ValueError when the offline tasks are not here.
    """
    language.check(language.Config(tasks=list(TASKS), offline=True))
    tokenizer = load_tokenizer()
    config = matched_config(preset, "attention", "attention", vocab_size=len(tokenizer))
    # LLaMA has MLPs of one width.
    config = config.model_copy(update={"mlp_widths": config.mlp_widths[:1] * config.layers})
    model = build_model(config, 0).to(device)
    longest = length + NEW_TOKENS
    llama = to_llama(model, tokenizer.bos_token_id, longest)
    theirs_tokenizer = load_tokenizer()
    bos = theirs_tokenizer.bos_token
    theirs_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    ours = MixerLM(model, tokenizer, max_length=longest)
    theirs = {
        size: HFLM(
            pretrained=llama,
            tokenizer=theirs_tokenizer,
            add_bos_token=True,
            batch_size=size,
            max_length=longest,
            device=str(device),
            dtype="float32",
        )
        for size in BATCH_SIZES
    }
    rows = []
    for name, requests in _work(samples, length, tokenizer).items():
        seconds, answers = _timed(ours, requests)
        found = {size: _timed(lm, requests) for size, lm in theirs.items()}
        best = min(found, key=lambda size: found[size][0])
        row = {"work": name, "requests": len(requests), "seconds": seconds, "hflm_seconds": found[best][0]}
        row |= {"hflm_batch_size": best, "ratio": found[best][0] / seconds, **_agreement(answers, found[best][1])}
        rows.append(row)
        progress(line(row))
    return rows


def _work(samples: int, length: int, tokenizer: Any) -> dict[str, list[Instance]]:
    """Requests by what they are."""
    work = {}
    for name in TASKS:
        task, _ = language.load(name, True)
        with contained():
            task.build_all_requests(limit=samples, rank=0, world_size=1)
        work[name] = task.instances
    drawn = ruler.prompts(NEEDLE, length, samples, 0, tokenizer, max_new_tokens=NEW_TOKENS)
    pairs = [(text, f" {s.answer}") for s in drawn for text in (s.prompt, s.without)]
    work["needle, read"] = _instances("loglikelihood", pairs)
    options = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    work["needle, generate"] = _instances("generate_until", [(s.prompt, dict(options)) for s in drawn])
    return work


def _instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i, (NEEDLE, i, 1)) for i, a in enumerate(arguments)]


def _timed(lm: LM, requests: list[Instance]) -> tuple[float, list[Any]]:
    """Seconds of all requests, behind a small part of them that is not counted."""
    answer = getattr(lm, requests[0].request_type)
    with contained():
        answer(copy.deepcopy(requests[:4]), disable_tqdm=True)
        started = time.perf_counter()
        answers = answer(copy.deepcopy(requests), disable_tqdm=True)  # HFLM takes options apart in place
        return time.perf_counter() - started, answers


def _agreement(ours: list[Any], theirs: list[Any]) -> Row:
    if isinstance(ours[0], str):
        return {"equal": sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours), "difference": None}
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "equal": sum(a[1] == b[1] for a, b in pairs) / len(pairs),
        "difference": max(abs(a[0] - b[0]) for a, b in pairs),
    }


HEADER = f"{'work':18}{'requests':>9}{'ours, s':>9}{'HFLM, s':>9}{'batch':>6}{'ratio':>7}{'nats':>9}{'equal':>7}"


def line(row: Row) -> str:
    """A row under HEADER. nats: the largest difference of a log-likelihood; equal: the share of equal greedy texts, or
    of endings on whose being greedy both agree."""
    nats = "–" if row["difference"] is None else f"{row['difference']:.1e}"
    return (
        f"{row['work']:18}{row['requests']:9}{row['seconds']:9.2f}{row['hflm_seconds']:9.2f}{row['hflm_batch_size']:6}"
        f"{row['ratio']:6.1f}×{nats:>9}{row['equal']:7.1%}"
    )


def render(rows: list[Row]) -> str:
    return "\n".join([HEADER, *map(line, rows)])
