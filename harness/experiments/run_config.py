"""One run, resolved, and the id that its folder carries.

The id hashes the identity of the configuration (mixers.identity): a field that was added after runs existed, and
fields that do not change what is trained, leave it as it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import NonNegativeInt, ValidationError

from harness.experiments.presets import Match
from harness.experiments.schema import Closed, DataConfig, TrainConfig
from harness.model.language_model import Layout, ModelConfig
from harness.run_folder import REWRITE, RunFolder
from mixers.identity import INCIDENTAL, completed, identity
from mixers.interface import one_line
from mixers.registry import MixerFile, options_identity


class RunConfig(Closed):
    """One run of an experiment. Nothing about it is decided later."""

    label: str
    """Name of its row in tables. Not part of the id."""

    mixer: str
    """Name of the mixer."""

    layout: Layout
    """Layout of the model."""

    preset: str
    """Scale that the model was matched to."""

    seed: NonNegativeInt
    """Seed of initialisation and data order."""

    model: ModelConfig
    """The model, all shapes and options spelt out."""

    data: DataConfig
    """Training data."""

    data_sha256: str
    """Hash of the texts or shards and of the tokenizer: other data at the same path make another run."""

    train: TrainConfig
    """Training recipe."""

    match: Annotated[Match, INCIDENTAL] = "parameters"
    """Quantity in which the models of its experiment are matched. The widths that follow from it are in `model`."""

    mixer_file: MixerFile | None = None
    """File that defines the mixer; None for a mixer of ours or of an installed package."""

    @classmethod
    def stored(cls, values: dict[str, Any]) -> RunConfig:
        """The configuration that was stored as `values`, perhaps by an earlier version. Raises ValidationError."""
        return cls(**completed(cls, values))

    @property
    def hash(self) -> str:
        """SHA-256 of everything that changes what is trained. Raises ValueError if the mixer is not registered."""
        content = identity(self)
        del content["label"], content["mixer_file"]
        if self.mixer_file is not None:  # its content, wherever it lies
            content["mixer_file"] = self.mixer_file.sha256
        content["model"]["mixer_options"] = options_identity(self.mixer, self.model.mixer_options)
        if self.layout == "hybrid":
            content["model"]["attention_options"] = options_identity("attention", self.model.attention_options)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """Name of the run's folder: mixer, layout, seed and the first eight digits of the hash."""
        name = self.mixer.replace(":", "-")  # scp and rsync would read a colon as a host's name
        return f"{name}-{self.layout}-s{self.seed}-{self.hash[:8]}"


def read_config(run_dir: Path) -> RunConfig:
    """The configuration of a run. Raises ValueError with file and remedy if there is none or it is damaged."""
    folder = RunFolder(run_dir)
    values = folder.read_config()
    try:
        return RunConfig.stored(values)
    except ValidationError as error:
        raise ValueError(f"{one_line(error, str(folder.config))}; {REWRITE}") from None
