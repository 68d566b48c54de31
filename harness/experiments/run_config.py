"""One run, resolved, and the id that its folder carries.

The id hashes the identity of the configuration (mixers.identity): a field that was added after runs existed, and
fields that do not change what is trained, leave it as it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError

from harness.experiments.closed import Closed, Seed
from harness.experiments.matching import matched_config
from harness.experiments.presets import Match
from harness.experiments.schema import DataConfig, TrainConfig
from harness.experiments.tuning import OPTION, RECIPE, Tuned, Values, fields_of
from harness.model.language_model import Layout, ModelConfig
from harness.run_folder import REWRITE, RunFolder
from mixers.identity import INCIDENTAL, Neutral, completed, identity
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

    seed: Seed
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

    tuned: Annotated[Tuned | None, Neutral(None)] = None
    """How tuned values are chosen; None if nothing is tuned. Until they are chosen, `train` and `model` hold the
    experiment's own."""

    @classmethod
    def stored(cls, values: dict[str, Any]) -> RunConfig:
        """The configuration that was stored as `values`, perhaps by an earlier version. Raises ValidationError."""
        return cls(**completed(cls, values))

    @property
    def hash(self) -> str:
        """SHA-256 of everything that changes what is trained. Raises ValueError if the mixer is not registered.

        The hash of a tuned run tells how its values are chosen instead of the values: it is known before they are, and
        the choice does not change it.
        """
        if self.tuned is not None:
            return self.tuned.run
        content = identity(self)
        del content["label"], content["mixer_file"]
        if self.mixer_file is not None:  # its content, wherever it lies
            content["mixer_file"] = self.mixer_file.sha256
        content["model"]["mixer_options"] = options_identity(self.mixer, self.model.mixer_options)
        if self.layout == "hybrid":
            content["model"]["attention_options"] = options_identity("attention", self.model.attention_options)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_values(self, values: Values) -> RunConfig:
        """The run with values of a grid in place of its own; a changed mixer is matched anew.

        Raises ValueError if the mixer rejects an option, or no MLP width matches.
        """
        train = self.train
        if recipe := fields_of(values, RECIPE):
            train = TrainConfig.model_validate(train.model_dump() | recipe)
        model = self.model
        if options := fields_of(values, OPTION):
            given = model.mixer_options | options
            sizes = (model.vocab_size, self.match, model.leading_conv)
            model = matched_config(self.preset, self.layout, self.mixer, given, *sizes)
        return self.model_copy(update={"train": train, "model": model})

    def chosen(self, values: Values) -> RunConfig:
        """A tuned run with its chosen values, under the same id."""
        assert self.tuned is not None
        tuned = self.tuned.model_copy(update={"values": values})
        return self.with_values(values).model_copy(update={"tuned": tuned})

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
