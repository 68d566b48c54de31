"""Expands an experiment into runs: presets × mixers × layouts × ablations × seeds, with matched models."""

from __future__ import annotations

import json
from functools import cache
from itertools import product

from harness.experiments.matching import matched_config
from harness.experiments.presets import Match, preset
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment, MixerSpec
from harness.model.language_model import Layout, ModelConfig
from mixers.identity import identity
from mixers.interface import Mixer
from mixers.registry import file_of, get, load_file, mixer_config


def expand(experiment: Experiment, vocab_size: int | None, data_sha256: str) -> list[RunConfig]:
    """All runs of an experiment, with matched models, in the order of the file.

    vocab_size: vocabulary of the tokenizer in use; None keeps the preset's. data_sha256: see RunConfig.

    Raises ValueError for the first run that cannot be built, and if two runs are the same or share a label.
    """
    for file in experiment.mixer_files:
        load_file(file)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise ValueError(f"seeds: {experiment.seeds} names one twice; name each once")
    runs: list[RunConfig] = []
    models: set[str] = set()
    labels: set[tuple[str, str, Layout]] = set()
    for name, spec in product(experiment.preset_names, experiment.mixers):
        ablations = [a for a in experiment.ablations if a.mixers is None or spec.mixer in a.mixers]
        for layout, ablation in product(_layouts(experiment, spec), [None, *ablations]):
            options = spec.options if ablation is None else spec.options | ablation.options
            conv_width = experiment.conv_width
            if ablation is not None and ablation.conv_width is not None:
                conv_width = ablation.conv_width
            label, train = spec.label or get(spec.mixer).display, experiment.train_of(ablation)
            where = f"{experiment.name}: mixers: {spec.mixer} ({layout})"
            if ablation is not None:
                label = f"{label}, {ablation.label}"
                where = f"{experiment.name}: ablations: {ablation.label!r} of {spec.mixer} ({layout})"
            # Options are compared with all defaults spelt out: naming a default value makes no second model.
            try:
                resolved = mixer_config(spec.mixer, preset(name).mixers.get(spec.mixer, {}) | options)
                model = _matched(
                    name, layout, spec.mixer, get(spec.mixer).cls, json.dumps(options), vocab_size, experiment.match,
                    conv_width,
                )  # fmt: skip
            except ValueError as error:
                if ablation is None:
                    raise
                raise ValueError(f"{where}: {error}; if it is not meant for this mixer, name its mixers") from None
            sizes = [model.mlp_widths, model.conv_width]
            content = [name, layout, spec.mixer, identity(resolved), *sizes, identity(train)]
            if (key := json.dumps(content)) in models:
                raise ValueError(f"{where} is listed twice with the same options; remove one")
            if (label, name, layout) in labels:
                raise ValueError(f"{where}: two entries are called {label!r} ({layout}); give each a label")
            models.add(key)
            labels.add((label, name, layout))
            file = file_of(spec.mixer)
            runs += [
                RunConfig(
                    label=label,
                    mixer=spec.mixer,
                    layout=layout,
                    preset=name,
                    seed=seed,
                    model=model,
                    data=experiment.data,
                    data_sha256=data_sha256,
                    train=train,
                    match=experiment.match,
                    mixer_file=file,
                )
                for seed in experiment.seeds
            ]
    return runs


def _layouts(experiment: Experiment, spec: MixerSpec) -> list[Layout]:
    if spec.mixer != "attention":
        return [spec.layout] if spec.layout else list(experiment.layouts)
    if spec.layout not in (None, "attention"):
        raise ValueError(f"mixers: attention has a layout of its own, not {spec.layout!r}; remove the layout")
    return ["attention"]


@cache
def _matched(
    preset_name: str,
    layout: Layout,
    mixer: str,
    cls: type[Mixer],
    options: str,
    vocab_size: int | None,
    match: Match,
    conv_width: int,
) -> ModelConfig:
    """`matched_config`, cached: at the larger scales it takes a tenth of a second.

    options: as JSON. cls: the mixer's class, part of the key since a name may be registered anew.
    """
    return matched_config(preset_name, layout, mixer, json.loads(options), vocab_size, match, conv_width)
