"""Expands an experiment into runs: presets × mixers × layouts × ablations × seeds, with matched models.

Of a tuned experiment, each model also has trials (harness.experiments.tuning), which are expanded with its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

from harness.experiments.matching import matched_config
from harness.experiments.presets import Match, preset
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment, MixerSpec
from harness.experiments.tuning import OPTION, Candidate, Tuned, Tuning, fields_of
from harness.model.language_model import Layout, ModelConfig
from mixers.identity import identity
from mixers.interface import Mixer
from mixers.registry import file_of, get, load_file, mixer_config


@dataclass(frozen=True)
class Expansion:
    """The runs of an experiment.

    runs: the reported ones, in the order of the file. trials: the runs that try values for them, by id.
    """

    runs: list[RunConfig]
    trials: dict[str, RunConfig] = field(default_factory=dict)


def expand(
    experiment: Experiment,
    vocab_size: int | None,
    data_sha256: str,
    validation: Mapping[str, Any] | None = None,
) -> Expansion:
    """All runs of an experiment, with matched models.

    vocab_size: vocabulary of the tokenizer in use; None keeps the preset's. data_sha256: see RunConfig. validation:
    options with which trials are evaluated, by unit; needed if the experiment is tuned.

    Raises ValueError for the first run that cannot be built, and if two runs are the same or share a label.
    """
    for file in experiment.mixer_files:
        load_file(file)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise ValueError(f"seeds: {experiment.seeds} names one twice; name each once")
    runs: list[RunConfig] = []
    trials: dict[str, RunConfig] = {}
    tuned: dict[tuple[str, Layout], Tuned] = {}  # of the scale at which all are tuned, by label
    models = list(_models(experiment, vocab_size, data_sha256))
    tuning = experiment.tuning
    if tuning is not None and tuning.preset is not None:  # the runs of other scales need this one's trials first
        for model in models:
            if model.preset == tuning.preset:
                tuned[model.label, model.layout] = _tuned(tuning, model, validation, trials)
    for model in models:
        chosen = None
        if tuning is not None:
            chosen = tuned.get((model.label, model.layout)) or _tuned(tuning, model, validation, trials)
        for seed in experiment.seeds:
            run = model.model_copy(update={"seed": seed})
            if chosen is not None:
                run = run.model_copy(update={"tuned": chosen.model_copy(update={"base": run.hash})})
            runs.append(run)
    return Expansion(runs, trials)


def _tuned(
    tuning: Tuning, model: RunConfig, validation: Mapping[str, Any] | None, trials: dict[str, RunConfig]
) -> Tuned:
    """How the values of a model are chosen. Adds its trials to `trials`."""
    assert validation is not None
    given = model.model_copy(update={"data": model.data.scaled(tuning.share)})
    candidates = []
    for values in tuning.combinations:
        try:
            tried = given.with_values(values)
        except ValueError as error:
            raise ValueError(f"tuning.grid: {values} for {model.label!r} ({model.layout}): {error}") from None
        runs = [tried.model_copy(update={"seed": seed}) for seed in tuning.seeds]
        ids = [run.run_id for run in runs]
        candidates.append(Candidate(values=values, trials=ids))
        trials |= zip(ids, runs, strict=True)
    asked = hashlib.sha256(json.dumps(validation, sort_keys=True).encode()).hexdigest()
    return Tuned(
        base="",
        candidates=candidates,
        choose=tuning.choose,
        evaluation=asked,
        share=tuning.share,
        preset=model.preset,
    )


def _models(experiment: Experiment, vocab_size: int | None, data_sha256: str) -> Iterator[RunConfig]:
    """Every model of an experiment as a run of its first seed, checked against the others."""
    seen: set[str] = set()
    labels: set[tuple[str, str, Layout]] = set()
    for name, spec in product(experiment.preset_names, experiment.mixers):
        ablations = [a for a in experiment.ablations if a.mixers is None or spec.mixer in a.mixers]
        for layout, ablation in product(layouts_of(experiment, spec), [None, *ablations]):
            options = spec.options if ablation is None else spec.options | ablation.options
            leading_conv = experiment.leading_conv
            if ablation is not None and ablation.leading_conv is not None:
                leading_conv = ablation.leading_conv
            label, train = spec.label or get(spec.mixer).display, experiment.train_of(spec, ablation)
            where = f"{experiment.name}: mixers: {spec.mixer} ({layout})"
            if ablation is not None:
                label = f"{label}, {ablation.label}"
                where = f"{experiment.name}: ablations: {ablation.label!r} of {spec.mixer} ({layout})"
            tried = () if experiment.tuning is None else fields_of(experiment.tuning.grid, OPTION)
            if both := sorted(set(tried) & set(spec.options)):
                raise ValueError(f"{where} sets options.{both[0]}, which tuning.grid tries; remove one of them")
            # Options are compared with all defaults spelt out: naming a default value makes no second model.
            try:
                resolved = mixer_config(spec.mixer, preset(name).mixers.get(spec.mixer, {}) | options)
                model = _matched(
                    name, layout, spec.mixer, get(spec.mixer).cls, json.dumps(options), vocab_size, experiment.match,
                    leading_conv,
                )  # fmt: skip
            except ValueError as error:
                if ablation is None:
                    raise
                raise ValueError(f"{where}: {error}; if it is not meant for this mixer, name its mixers") from None
            sizes = [model.mlp_widths, model.leading_conv]
            content = [name, layout, spec.mixer, identity(resolved), *sizes, identity(train)]
            if (key := json.dumps(content)) in seen:
                raise ValueError(f"{where} is listed twice with the same options; remove one")
            if (label, name, layout) in labels:
                raise ValueError(f"{where}: two entries are called {label!r} ({layout}); give each a label")
            seen.add(key)
            labels.add((label, name, layout))
            yield RunConfig(
                label=label,
                mixer=spec.mixer,
                layout=layout,
                preset=name,
                seed=experiment.seeds[0],
                model=model,
                data=experiment.data,
                data_sha256=data_sha256,
                train=train,
                match=experiment.match,
                mixer_file=file_of(spec.mixer),
            )


def layouts_of(experiment: Experiment, spec: MixerSpec) -> list[Layout]:
    """Layouts of a model of an experiment. Raises ValueError if attention is given another than its own."""
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
    leading_conv: int,
) -> ModelConfig:
    """`matched_config`, cached: at the larger scales it takes a tenth of a second.

    options: as JSON. cls: the mixer's class, part of the key since a name may be registered anew.
    """
    return matched_config(preset_name, layout, mixer, json.loads(options), vocab_size, match, leading_conv)
