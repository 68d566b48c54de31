"""From an experiment to what is left to do: which runs must be trained, and which of them evaluated on what."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import suites
from harness.config import Experiment, RunConfig, expand
from harness.data import load_tokenizer
from harness.synthetic import recall_words
from harness.train import data_sha256, open_data, read_summary


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


def check(experiment: Experiment) -> None:
    """What can be known before work starts and `plan` does not need: that the data are sound and long enough, and that
    every suite has its own. Makes the shards of the embedded corpus if they are not there. Raises ValueError."""
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
    """All runs of an experiment and what is left of each. Raises ValueError for mixers, matching, options, a tokenizer
    or data that cannot be."""
    options = {
        name: suites.suite_config(name, given).model_dump(mode="json") for name, given in experiment.suites.items()
    }
    vocab_size = len(load_tokenizer(experiment.data.tokenizer))
    runs = expand(experiment, vocab_size, data_sha256(experiment.data))
    folders = [runs_root / config.run_id for config in runs]
    return [RunPlan(c, f, options, missing(f, options)) for c, f in zip(runs, folders, strict=True)]


def missing(folder: Path, options: dict[str, dict[str, Any]]) -> list[str]:
    """What a run still lacks: `train`, then suites that have not been run with these options on its weights."""
    summary = read_summary(folder)
    if summary is None:
        return ["train", *options]
    key = summary.weights_sha256
    return [name for name in options if evaluated(folder, name) != evaluation_key(options[name], key)]


def evaluation_key(options: dict[str, Any], weights_sha256: str) -> str:
    """Identifies an evaluation: what was asked, of which weights."""
    return hashlib.sha256(json.dumps([options, weights_sha256], sort_keys=True).encode()).hexdigest()


def evaluated(folder: Path, suite: str) -> str | None:
    """The key of the evaluation whose records lie in a run's folder, if there are any."""
    marker = folder / "records" / f"{suite}.done"
    return marker.read_text().strip() if marker.exists() else None
