"""From an experiment to what is left to do: which runs must be trained, and which of them evaluated on what."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import Experiment, RunConfig, expand
from harness.data import load_tokenizer
from harness.train import open_data, read_summary
from suites import suite_config


@dataclass(frozen=True)
class RunPlan:
    """One run of an experiment and what is left of it.

    folder: where everything it produces lies. suites: validated options by suite. missing: of train and the suites,
    those whose results are not there yet, in the order in which they are done.
    """

    config: RunConfig
    folder: Path
    suites: dict[str, dict[str, Any]]
    missing: list[str]


def plan(experiment: Experiment, runs_root: Path) -> list[RunPlan]:
    """All runs of an experiment. Checks everything that can be checked before work starts: mixers, matching, suites,
    tokenizer and data; raises ValueError for the first fault. Makes the shards of the embedded corpus if needed."""
    suites = {name: suite_config(name, options).model_dump(mode="json") for name, options in experiment.suites.items()}
    tokenizer = load_tokenizer(experiment.data.tokenizer)
    runs = expand(experiment, len(tokenizer))
    data = open_data(experiment.data)
    for phase in experiment.data.phases:
        if "text" in phase.rows:
            data.windows("train", phase.seq_len)
    plans = []
    for config in runs:
        folder = runs_root / config.run_id
        plans.append(RunPlan(config, folder, suites, missing(folder, suites)))
    return plans


def missing(folder: Path, suites: dict[str, dict[str, Any]]) -> list[str]:
    """What a run still lacks: `train`, then suites that have not been run with these options on its weights."""
    summary = read_summary(folder)
    if summary is None:
        return ["train", *suites]
    return [name for name in suites if evaluated(folder, name) != evaluation_key(suites[name], summary.weights_sha256)]


def evaluation_key(options: dict[str, Any], weights_sha256: str) -> str:
    """Identifies an evaluation: what was asked, of which weights."""
    return hashlib.sha256(json.dumps([options, weights_sha256], sort_keys=True).encode()).hexdigest()


def evaluated(folder: Path, suite: str) -> str | None:
    """The key of the evaluation whose records lie in a run's folder, if there are any."""
    marker = folder / "records" / f"{suite}.done"
    return marker.read_text().strip() if marker.exists() else None
