"""Training curves: what runs wrote to metrics.jsonl while they trained, as one data frame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from harness.experiments.run_config import RunConfig
from harness.run_folder import RunFolder

IDENTITY = ("label", "mixer", "layout", "preset", "seed")
MEASURED = ("step", "tokens", "loss", "grad_norm", "lr", "tokens_per_second")
COLUMNS = ["run", *IDENTITY, *MEASURED]


def read_curves(runs: Mapping[Path, RunConfig]) -> pd.DataFrame:
    """A row a logged step of every run: its identity, step, tokens seen, loss (nats, mean over the steps since the last
    row), gradient norm, learning rate, tokens/s. runs: configurations by folder; one that has not begun has no rows.

    The last line of a run that is training may be half written and is left out; ValueError for any other that is no
    line of metrics.
    """
    rows = []
    for folder, config in runs.items():
        path = RunFolder(folder).metrics
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        identity = {"run": config.run_id} | {name: getattr(config, name) for name in IDENTITY}
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                rows.append(identity | {name: content[name] for name in MEASURED})
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no metrics ({error!r}); train the run again") from None
    return pd.DataFrame(rows, columns=COLUMNS)
