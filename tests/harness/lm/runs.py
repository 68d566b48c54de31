"""Finished runs for tests, exported models, and padded batches."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.data.tokenizer import load_tokenizer
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import DataConfig, TrainConfig
from harness.lm.generate import generate
from harness.model.language_model import LanguageModel, ModelConfig, build_model
from harness.records.provenance import provenance
from harness.run_folder import Summary
from harness.training import checkpoint
from mixers.conformance import SMALL
from mixers.registry import MixerFile

TOKENIZER = load_tokenizer()
BOS = TOKENIZER.bos_token_id
TEXTS = ["The king", "It is a truth universally acknowledged, that a single man", "Climate: tropical\nArea:"]
PROMPTS = [[BOS, *TOKENIZER.encode(text, add_special_tokens=False)] for text in TEXTS]


def model_config(mixer: str, layout: str, **changes: object) -> ModelConfig:
    """A small two-block model of the embedded tokenizer's vocabulary."""
    values = {
        "layout": layout,
        "mixer": mixer,
        "mixer_options": SMALL.get(mixer, {}),
        "attention_options": {"heads": 2, "window": 5} if layout == "hybrid" else {},
        "d_model": 64,
        "mlp_widths": [64, 96],
        "vocab_size": len(TOKENIZER),
    }
    return ModelConfig(**values | changes)


def finished_run(
    folder: Path, model: ModelConfig, tokenizer: str = "embedded", mixer_file: MixerFile | None = None
) -> LanguageModel:
    """Write a run's folder as training leaves it, and return the model.

    Its weights are so large that each token depends on the whole text before it.
    """
    built = build_model(model, 0)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if name.endswith("_proj.weight") or name == "embedding.weight":
                weight.mul_(8.0)
            elif weight.dim() < 2:  # so that no weight keeps the value of its initialisation
                weight.add_(0.1 * torch.randn_like(weight))
    config = RunConfig(
        label="A model",
        mixer=model.mixer,
        layout=model.layout,
        preset="cpu-600k",
        seed=0,
        model=model,
        data=DataConfig(tokenizer=tokenizer, phases=[{"tokens": 64, "seq_len": 64, "rows": {"text": 1}}]),
        data_sha256="",
        train=TrainConfig(lr=1e-3),
        mixer_file=mixer_file,
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    checkpoint.save(folder, 1, {"model": built.state_dict()})
    summary = Summary(
        config.run_id, "A model", model.mixer, model.layout, "cpu-600k", 0, 1, 1, 1, 1.0, model.mlp_widths, 1, 64, 8.0,
        1.0, checkpoint.digest(built.state_dict()),
    )  # fmt: skip
    birth = provenance(config.hash, "cpu", torch.float32, backend="torch")
    (folder / "train.json").write_text(json.dumps(asdict(summary) | {"provenance": asdict(birth)}))
    return built.eval()


def load(folder: Path, **options: object) -> PreTrainedModel:
    """Load an exported folder as users do."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def padded(prompts: list[list[int]], side: str) -> dict[str, Tensor]:
    """A batch with its mask. The padding token would change the logits if it were read."""
    width = max(map(len, prompts))
    rows, mask = [], []
    for prompt in prompts:
        pad = [7] * (width - len(prompt))
        real, none = [1] * len(prompt), [0] * len(pad)
        rows.append(pad + prompt if side == "left" else prompt + pad)
        mask.append(none + real if side == "left" else real + none)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def greedy(model: LanguageModel, stop: int) -> list[list[int]]:
    """Greedy continuations of PROMPTS by our own decoding."""
    return generate(model, PROMPTS, 10, stop_tokens={stop})


def new_tokens(output: Tensor, width: int, stop: int) -> list[list[int]]:
    """The tokens after the prompts, up to the stop token."""
    rows = [row[width:].tolist() for row in output]
    return [row[: row.index(stop)] if stop in row else row for row in rows]
