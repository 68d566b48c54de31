"""Models to evaluate: a trained run, or a preset at its initial weights, as an lm-eval model."""

from __future__ import annotations

from pathlib import Path

from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import matched_config
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import build_model
from harness.training.device import recipe_dtype, this_device
from harness.training.run_folder import load_trained


def load_lm(folder: Path) -> MixerLM:
    """A trained run as an lm-eval model on this machine's device, with the tokenizer it was trained with, and with
    activations in the dtype that its recipe asks for here."""
    model, config = load_trained(folder)
    device = this_device()
    dtype = recipe_dtype(config.train, device)
    return MixerLM(model.to(device), load_tokenizer(config.data.tokenizer), dtype=dtype)


def untrained_lm(name: str) -> MixerLM:
    """PRESET/MIXER at its initial weights, with the embedded tokenizer. Raises ValueError for any other name."""
    scale, slash, mixer = name.partition("/")
    if not slash:
        raise ValueError(f"--untrained: expected PRESET/MIXER, such as 125m/gdn2, got {name!r}")
    tokenizer = load_tokenizer()
    layout = "attention" if mixer == "attention" else "recurrent"
    return MixerLM(build_model(matched_config(scale, layout, mixer, vocab_size=len(tokenizer)), 0), tokenizer)
