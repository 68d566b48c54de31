"""Load a model for evaluation: a trained run, or a preset at its initial weights, as an lm-eval model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import matched_config
from harness.experiments.run_config import RunConfig, read_config
from harness.lm.mixer_lm import LM_EVAL_LENGTH, MixerLM
from harness.model.language_model import LanguageModel, build_model
from harness.run_folder import RunFolder, find_run
from harness.training import checkpoint
from harness.training.device import recipe_dtype, this_device
from harness.training.inputs import load_mixer, run_tokenizer


def load_trained(run: Path | str, trust: bool = False) -> tuple[LanguageModel, RunConfig]:
    """Load the trained model of a run, in evaluation mode on the CPU, and its configuration.

    run: its folder, or its id in `runs` (`find_run`). trust: run the code in the folder that defines its mixer, if any,
    though this user has not run it before.

    Raises ValueError if there is no such run, if training has not finished, if the weights are not those that the
    run ended with, or if its mixer's code is not trusted.
    """
    run_dir = find_run(run).path
    config, content = read_config(run_dir), finished_checkpoint(run_dir)
    load_mixer(run_dir, config, trust)
    model = LanguageModel(config.model)
    model.load_state_dict(content["model"])
    return model.eval(), config


def finished_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The content of the checkpoint that a finished run ended with.

    Raises ValueError if training has not finished, or if the weights are not those that the run ended with.
    """
    folder = RunFolder(run_dir)
    summary = folder.read_summary()
    if summary is None:
        raise ValueError(f"{run_dir}: the run is not trained to its end; submit or train it first")
    again = f"delete {folder.summary} and submit it again"
    path = checkpoint.latest(run_dir)
    if path is None:
        raise checkpoint.CheckpointError(f"{folder.checkpoint_index}: lists no checkpoint of a finished run; {again}")
    content = checkpoint.load(path)
    if checkpoint.digest(content["model"]) != summary.weights_sha256:
        raise checkpoint.CheckpointError(f"{path}: not the weights that the run ended with; {again}")
    return content


def load_lm(run: Path | str, trust: bool = False) -> MixerLM:
    """Load a trained run, its folder or its id in `runs`, onto this machine's device, as an lm-eval model.

    It keeps the tokenizer of its training, and scores documents in windows of the length it was trained on last.
    Activations have the dtype that its recipe asks for on this device. Raises ValueError as `load_trained` does, whose
    `trust` this is.
    """
    folder = find_run(run).path
    model, config = load_trained(folder, trust)
    device = this_device()
    dtype = recipe_dtype(config.train, device)
    tokenizer = run_tokenizer(folder, config)
    return MixerLM(
        model.to(device),
        tokenizer,
        rolling_length=config.data.seq_len,
        dtype=dtype,
        row_tasks=config.data.row_tasks,
    )


def untrained_lm(name: str) -> MixerLM:
    """Build the model PRESET/MIXER at its initial weights (seed 0), with the embedded tokenizer.

    It scores documents in windows of lm-eval's default length. Raises ValueError for any other name.
    """
    scale, slash, mixer = name.partition("/")
    if not slash:
        raise ValueError(f"--untrained: expected PRESET/MIXER, such as 125m/gdn2, got {name!r}")
    tokenizer = load_tokenizer()
    layout = "attention" if mixer == "attention" else "recurrent"
    model = build_model(matched_config(scale, layout, mixer, vocab_size=len(tokenizer)), 0)
    return MixerLM(model, tokenizer, rolling_length=LM_EVAL_LENGTH)
