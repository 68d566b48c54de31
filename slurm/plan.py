"""From an experiment to what is left to do: which runs must be trained, and which of them evaluated on what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import suites
from harness.data.synthetic import recall_words
from harness.data.tokenizer import load_tokenizer
from harness.experiments.expand import expand
from harness.experiments.schema import Experiment, RunConfig
from harness.training.batches import data_sha256, open_data
from harness.training.metrics_log import require_tracker
from suites.units import fresh, missing


@dataclass(frozen=True)
class RunPlan:
    """One run of an experiment and what is left of it.

    folder: where everything it produces lies. units: validated options of what is evaluated, by `suites.units`' names.
    missing: of `train` and the units, those whose results are not there yet, in the order in which they are done.
    """

    config: RunConfig
    folder: Path
    units: dict[str, dict[str, Any]]
    missing: list[str]


def check(experiment: Experiment) -> None:
    """What can be known before work starts and `plan` does not need: that the data are sound and long enough, that
    every suite has its own, and that a tracker is installed. Makes the shards of the embedded corpus if they are not
    there. Raises ValueError. Where nothing is trained there is nothing to check."""
    if not experiment.data.phases:
        return
    require_tracker(experiment.train)
    tokenizer = load_tokenizer(experiment.data.tokenizer)
    data = open_data(experiment.data)
    for phase in experiment.data.phases:
        if "text" in phase.rows:
            data.windows("train", phase.seq_len)
        if phase.rows.keys() - {"text"}:
            recall_words(tokenizer)
    for name, options in experiment.suites.items():
        suites.check(name, suites.suite_config(name, options), tokenizer)


def plan(experiment: Experiment, runs_root: Path) -> list[RunPlan]:
    """All runs of an experiment and what is left of each. Where nothing is trained, no data and no tokenizer are asked
    for, and models have the preset's vocabulary. Raises ValueError for mixers, matching, options, a tokenizer or data
    that cannot be."""
    units: dict[str, dict[str, Any]] = {}
    for name, given in experiment.suites.items():
        parts = suites.parts(name, suites.suite_config(name, given))
        units |= {unit: config.model_dump(mode="json") for unit, config in parts.items()}
    if experiment.data.phases:
        runs = expand(experiment, len(load_tokenizer(experiment.data.tokenizer)), data_sha256(experiment.data))
    elif units and all(map(fresh, units)):
        runs = expand(experiment, None, "none")
    else:
        asks = ", ".join(name for name in experiment.suites if not fresh(name)) or "an experiment without suites"
        raise ValueError(f"data.phases: none, and {asks} needs trained models; say what they are trained on")
    folders = [runs_root / config.run_id for config in runs]
    return [RunPlan(c, f, units, missing(f, units)) for c, f in zip(runs, folders, strict=True)]
