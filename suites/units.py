"""Units of evaluation: the parts of a suite that are measured apart, and which of them a run still lacks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from suites import FRESH

TRAIN = "train"


def missing(folder: Path, units: dict[str, dict[str, Any]]) -> list[str]:
    """What a run still lacks, in the order in which it is done: `train`, unless all of these units are of fresh models,
    then of the units, with their options, those that have not been measured so on its weights."""
    try:
        weights = json.loads((folder / "train.json").read_bytes())["weights_sha256"]
    except FileNotFoundError:
        weights = None
    train = [TRAIN] if weights is None and not (units and all(map(fresh, units))) else []
    keys = {unit: evaluation_key(options, None if fresh(unit) else weights) for unit, options in units.items()}
    # No evaluation of a trained model has the key of one without weights.
    return train + [unit for unit, key in keys.items() if evaluated(folder, unit) != key]


def fresh(unit: str) -> bool:
    """Whether a unit measures a fresh model, and none that was trained."""
    return unit.partition("@")[0] in FRESH


def evaluation_key(options: dict[str, Any], weights_sha256: str | None) -> str:
    """Identifies an evaluation: what was asked, of which weights; None for a fresh model."""
    return hashlib.sha256(json.dumps([options, weights_sha256], sort_keys=True).encode()).hexdigest()


def evaluated(folder: Path, unit: str) -> str | None:
    """The key of the evaluation whose records lie in a run's folder, if there are any."""
    try:
        return (folder / "records" / f"{unit}.done").read_text().strip()
    except FileNotFoundError:
        return None
