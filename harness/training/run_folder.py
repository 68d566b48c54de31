"""The folder of one run: its configuration, its summary, its trained model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.experiments.schema import RunConfig
from harness.model.language_model import LanguageModel
from harness.training import checkpoint
from harness.training.distributed import Sharding
from mixers.registry import require_file


@dataclass(frozen=True)
class Summary:
    """What a finished run leaves in `train.json`, beside its provenance.

    tokens_per_second: of all processes together. world_size, sharding: how many they were when it ended, and what each
    of several held. skipped, spikes: steps left out, and steps whose loss stood out
    (harness.training.trainer.is_spike).
    """

    run: str
    label: str
    mixer: str
    layout: str
    preset: str
    seed: int
    non_embedding_params: int
    embedding_params: int
    state_floats_per_layer: int
    flops_per_token: float
    mlp_widths: list[int]
    steps: int
    tokens_seen: int
    train_loss: float
    tokens_per_second: float
    weights_sha256: str
    world_size: int = 1
    sharding: Sharding | None = None
    skipped: int = 0
    spikes: int = 0


def read_summary(run_dir: Path) -> Summary | None:
    """The summary of a finished run, or None while it is not finished."""
    path = run_dir / "train.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    del content["provenance"]
    return Summary(**content)


def read_birth(run_dir: Path) -> dict[str, Any]:
    """The provenance of a finished run's training."""
    return json.loads((run_dir / "train.json").read_text())["provenance"]


def read_config(run_dir: Path) -> RunConfig:
    """The configuration of a run. Raises ValueError when the folder holds none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir}: no run lies there (config.yaml is missing); give the folder of a run")
    return RunConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))


def load_trained(run_dir: Path) -> tuple[LanguageModel, RunConfig]:
    """The trained model of a run, in evaluation mode on the CPU, and its configuration.

    Raises ValueError for a folder without a run, one that is not trained to its end, and weights that are not those
    it ended with.
    """
    config, summary, path = read_config(run_dir), read_summary(run_dir), checkpoint.latest(run_dir)
    if summary is None or path is None:
        raise ValueError(f"{run_dir}: the run is not trained to its end; submit or train it first")
    content = checkpoint.load(path)
    if checkpoint.digest(content["model"]) != summary.weights_sha256:
        raise checkpoint.CheckpointError(
            f"{path}: not the weights that the run ended with; delete {run_dir / 'train.json'} and submit it again"
        )
    require_file(config.mixer_file)
    model = LanguageModel(config.model)
    model.load_state_dict(content["model"])
    return model.eval(), config
