"""Fixtures for the tests of figures: a frame of recall records, and a collection made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.harness.figures.figure_records import WIDTHS, recall_frame


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Records of the recall suite."""
    return recall_frame(tmp_path / "runs")


@pytest.fixture
def folder(frame: pd.DataFrame, tmp_path: Path) -> Path:
    """A collection of the frame, with the state size and speed of its runs."""
    out = tmp_path / "collected"
    out.mkdir()
    frame.drop(columns="file").to_parquet(out / "records.parquet")
    runs = frame[["run", "label", "mixer", "layout", "preset", "seed"]].drop_duplicates().to_dict("records")
    for run in runs:
        run["state_floats_per_layer"] = 512 if run["preset"] == WIDTHS[0] else 2048
        run["tokens_per_second"] = {"gdn2": 5000.0, "kda": 7000.0, "own": 6000.0}[run["mixer"]] + run["seed"]
    (out / "runs.json").write_text(json.dumps(runs))
    (out / "samples.json").write_text("[]")
    return out
