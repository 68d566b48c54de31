"""Values of Gated DeltaNet-2's gates on a text: erase, write and decay of every layer, token and channel.

Forward hooks keep each layer's input while the model runs; the layer makes its gates of it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.data import needles, synthetic
from harness.data.corpus import documents
from harness.model.language_model import LanguageModel
from mixers.gdn2.layer import GatedDeltaNet2

NEEDLE_TASK = "needle"
TASKS = (NEEDLE_TASK, *synthetic.TASKS)


@dataclass(frozen=True)
class Prompt:
    """A prompt with marked spans.

    ids: tokens, the first of which begins the sequence. words: a text for every id. marks: spans [start, stop) of ids
    by name, `needle` and `question`.
    """

    ids: list[int]
    words: list[str]
    marks: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Gates:
    """One layer's gates on a prompt of T tokens.

    erase: [T, H, K], in [0, erase_range]. write: [T, HV, V], in [0, 1]. decay: [T, H, K], the factor exp(g) that keeps
    the state, in [0, 1]. All are fp32 on the CPU.
    """

    layer: int
    erase: Tensor
    write: Tensor
    decay: Tensor


def prompt(tokenizer: PreTrainedTokenizerFast, task: str, size: int, seed: int = 0) -> Prompt:
    """Make a prompt with a needle and a question about it.

    task `needle`: a sentence with a number in the middle of about `size` tokens of the corpus' test split, then RULER's
    question. A task of harness.data.synthetic: a listing of difficulty `size`, then a question about one of its keys;
    the needle is the last write to this key. Raises ValueError for an unknown task, and for a size that the task does
    not have.
    """
    if task == NEEDLE_TASK:
        return _needle(tokenizer, size, Random(f"gates {seed}"))
    if task not in synthetic.TASKS:
        raise ValueError(f"prompt: unknown task {task!r}; known: {', '.join(TASKS)}")
    sample = synthetic.TASKS[task].draw(Random(f"gates {task} {seed}"), synthetic.recall_words(tokenizer), size)
    key = sample.asked[0]
    last = max(i for i, (written, _) in enumerate(sample.writes) if written == key)
    start = 1 + sum(len(written) + 1 for written, _ in sample.writes[:last])
    asked = synthetic.question(tokenizer, key, "marked")
    text = synthetic.sample_text([*sample.listing, *asked])
    return _prompt(tokenizer, [("", text)], {"needle": (start, start + len(key) + 1)}, question=len(key))


def _needle(tokenizer: PreTrainedTokenizerFast, size: int, rng: Random) -> Prompt:
    names = {"key": rng.choice(synthetic.recall_words(tokenizer)[0]), "value": str(rng.randrange(10**6, 10**7))}
    asked = f"\n{needles.QUESTION}{needles.PREFIX}"
    needle, question = (text.format(kind="number", **names) for text in (needles.NEEDLE, asked))
    room = size - 1 - sum(len(tokenizer.encode(t, add_special_tokens=False)) for t in (" " + needle, question))
    if room < 2:
        raise ValueError(
            f"size: {size} tokens leave no room for prose beside the needle; give at least {size - room + 2}"
        )
    prose = " ".join(next(d.text for d in documents("test") if len(d.text) > 8 * size).split())
    ids = tokenizer.encode(prose, add_special_tokens=False)[:room]
    before, after = (tokenizer.decode(part) for part in (ids[: room // 2], ids[room // 2 :]))
    return _prompt(tokenizer, [("", before), ("needle", " " + needle), ("", after), ("question", question)], {})


def _prompt(
    tokenizer: PreTrainedTokenizerFast,
    parts: list[tuple[str, str]],
    marks: dict[str, tuple[int, int]],
    question: int = 0,
) -> Prompt:
    """Join parts into a prompt. Parts with a name are marked, and the last `question` tokens as the question."""
    ids, marks = [tokenizer.bos_token_id], dict(marks)
    for name, text in parts:
        start = len(ids)
        ids += tokenizer.encode(text, add_special_tokens=False)
        if name:
            marks[name] = (start, len(ids))
    if question:
        marks["question"] = (len(ids) - question, len(ids))
    return Prompt(ids, [tokenizer.decode([i]).strip() for i in ids], marks)


def gates(model: LanguageModel, ids: list[int]) -> list[Gates]:
    """Gates of every Gated DeltaNet-2 layer while the model reads `ids`. Raises ValueError if it has no such layer."""
    layers = {i: b.mixer for i, b in enumerate(model.blocks) if isinstance(b.mixer, GatedDeltaNet2)}
    if not layers:
        raise ValueError(f"gates: the model's mixer is {model.config.mixer!r}, which has no such gates; use gdn2")
    seen: dict[int, Tensor] = {}
    hooks = [m.register_forward_hook(lambda module, x, _: seen.update({id(module): x[0]})) for m in layers.values()]
    try:
        with torch.no_grad():
            model.hidden(torch.tensor([ids], device=model.embedding.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [Gates(i, *_gates(mixer, seen[id(mixer)])) for i, mixer in layers.items()]


@torch.no_grad()
def _gates(mixer: GatedDeltaNet2, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    g, erase, write = (gate[0].float().cpu() for gate in mixer.gates(x))
    keys, values = (-1, -1, mixer.head_dim), (-1, -1, mixer.value_dim)
    return erase.expand(keys), write.expand(values), g.exp().expand(keys)
