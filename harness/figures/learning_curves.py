"""Training curves of several runs as one data frame, read from their metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from harness.experiments.run_config import RunConfig
from harness.run_folder import ACCURACY, RunFolder

IDENTITY = ("label", "mixer", "layout", "preset", "seed")
MEASURED = ("step", "tokens", "loss", "grad_norm", "lr", "tokens_per_second")
COLUMNS = ["run", *IDENTITY, *MEASURED]


def read_curves(runs: Mapping[Path, RunConfig]) -> pd.DataFrame:
    """Read the logged steps of runs, one row per step: IDENTITY of the run, then MEASURED, then accuracies.

    The loss is in nats, averaged over the steps since the previous row. So are accuracies, one column for each recall
    task that a run trained on; NaN where no step since the previous row did. runs: configurations by folder; a run that
    has not started has no rows. An unfinished last line of a run in training is left out. Raises ValueError with file
    and line for any other line that does not hold metrics.
    """
    rows = []
    for folder, config in runs.items():
        path = RunFolder(folder).metrics
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
        identity = {"run": config.run_id} | {name: getattr(config, name) for name in IDENTITY}
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                accuracies = {name: value for name, value in content.items() if name.startswith(ACCURACY)}
                rows.append(identity | {name: content[name] for name in MEASURED} | accuracies)
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no metrics ({error!r}); train the run again") from None
    accuracies = sorted({name for row in rows for name in row if name.startswith(ACCURACY)}, key=_task_order)
    return pd.DataFrame(rows, columns=[*COLUMNS, *accuracies])


def _task_order(name: str) -> tuple[str, int]:
    """By task, then by difficulty as a number, where it has one: `mqar@8` comes before `mqar@16`."""
    task, _, difficulty = name.partition("@")
    return task, int(difficulty or 0)
