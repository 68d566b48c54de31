"""Small models for tests, and plain ways to compute the answers expected of them."""

from __future__ import annotations

import random

import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerFast

from harness.data.tokenizer import load_tokenizer
from harness.lm.export import with_bos
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import LanguageModel, ModelConfig, build_model

# Sums of log-likelihoods over up to 200 tokens differ by about 1e-5 between two orders of summation in fp32. The tests
# ask for agreement to 1e-4.
TOLERANCE = 1e-4
CONTEXTS = ["The king", "It is a truth universally acknowledged, that a single man", "Climate: tropical\nArea:"]


def tokenizer(add_bos: bool = False) -> PreTrainedTokenizerFast:
    """The embedded tokenizer; with `add_bos` it adds the BOS itself, as LLaMA's does."""
    return with_bos(load_tokenizer()) if add_bos else load_tokenizer()


def model(mixer: str, layout: str, options: dict, attention: dict | None = None, seed: int = 0) -> LanguageModel:
    """A small model with weights so large that its output depends on everything it has read."""
    config = ModelConfig(
        layout=layout,
        mixer=mixer,
        mixer_options=options,
        attention_options=attention or {},
        d_model=32,
        mlp_widths=[64, 64],
        vocab_size=len(tokenizer()),
    )
    built = build_model(config, seed)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if name.endswith("_proj.weight") or name == "embedding.weight":
                weight.mul_(8.0)
    return built


MODELS = {
    "attention": lambda: model("attention", "attention", {"heads": 2, "kv_heads": 1}),
    "gated_deltanet": lambda: model("gated_deltanet", "recurrent", {"heads": 2, "head_dim": 16}),
    "hybrid": lambda: model("gated_deltanet", "hybrid", {"heads": 2, "head_dim": 16}, {"heads": 2, "window": 6}),
}


def ask(kind: str, arguments: list[tuple]) -> list[Instance]:
    """lm-eval requests of one kind."""
    return [Instance(kind, {}, a, i, ("test", i, 1)) for i, a in enumerate(arguments)]


def greedy_by_rereading(lm: MixerLM, prompt: list[int], steps: int) -> list[int]:
    """Greedy decoding that rereads the whole text for every token."""
    tokens = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            tokens.append(int(lm.model(torch.tensor([tokens]))[0][0, -1].argmax()))
    return tokens[len(prompt) :]


def texts_of_a_tree(seed: int) -> list[list[int]]:
    """Texts, each of which continues an earlier one from a random position."""
    draw = random.Random(seed)
    texts = [[draw.randrange(50) for _ in range(120)]]
    for _ in range(30):
        start = draw.choice(texts)
        texts.append(start[: draw.randrange(len(start))] + [draw.randrange(50) for _ in range(draw.randrange(1, 60))])
    return texts


def small_model(mixer: str) -> LanguageModel:
    """A two-block model with a vocabulary of 50."""
    options = {"heads": 2} if mixer == "attention" else {"heads": 2, "head_dim": 16}
    layout = "attention" if mixer == "attention" else "recurrent"
    return build_model(
        ModelConfig(layout=layout, mixer=mixer, mixer_options=options, d_model=32, mlp_widths=[64, 64], vocab_size=50),
        0,
    )
