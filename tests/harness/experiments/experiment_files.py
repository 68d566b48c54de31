"""A small experiment file for tests, and its runs."""

from pathlib import Path
from typing import Any

import yaml

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.run_config import RunConfig

BASE: dict[str, Any] = {
    "name": "small",
    "preset": "cpu-1m",
    "mixers": ["gdn2", "attention"],
    "data": {"phases": [{"tokens": 1000, "seq_len": 64, "rows": {"text": 4}}]},
}


def write(folder: Path, **changes: object) -> Path:
    """Write a small experiment file with some fields changed."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return path


def expanded(folder: Path, **changes: object) -> list[RunConfig]:
    """Runs of a small experiment with some fields changed."""
    return expand(load_experiment(write(folder, **changes)), 4096, "0" * 64).runs
