"""Figures are written next to the records, the same each time; missing data is one clear error."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from harness.figures.collection import write_figure
from harness.figures.scores import recall


def test_files_lie_beside_the_records_and_are_the_same_when_drawn_again(folder: Path) -> None:
    paths = write_figure(folder, "recall")
    assert paths == [folder / "recall.png", folder / "recall.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and b"<svg" in paths[1].read_bytes()[:1000]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figure(folder, "recall")] == before


@pytest.mark.parametrize(
    ("what", "columns", "message"),
    [
        (
            "speed",
            None,
            r"--what: unknown value 'speed'; known: curves, recall, mqar, state, positions, learning, tuning, ruler",
        ),
        ("curves", None, "no training curves there; run collect again"),
        ("learning", None, "no training curves there; run collect again"),
        ("mqar", None, "no records of the mqar suite; name it under suites"),
        ("state", None, "no records of the mqar suite; name it under suites"),
        ("positions", None, "no records of the mqar suite; name it under suites"),
        ("tuning", None, "no trials there; give the experiment `tuning`, submit and collect again"),
        ("ruler", None, "no records of the ruler suite; name it under suites"),
        ("pareto", None, "--column: pareto needs at least one of .*mqar_acc@8, mqar_acc@4, overwrite_acc@2"),
        ("scores", ["mqar_acc@5"], "--column: no records of 'mqar_acc@5'; there are .*mqar_acc@8"),
        ("recall", ["mqar_acc@8"], "--column: recall shows all it has; leave it out"),
        ("ablations", None, "no ablation among the records; write some under `ablations`"),
        (
            "throughput",
            None,
            "such as figure2, or run `run.py bench throughput --preset PRESET --out .*/throughput.json",
        ),
        ("decode", None, "no records of the decode suite; name it under suites, submit and collect again"),
        ("kernels", None, "bench kernels --out .* on a machine with a GPU"),
        ("gates", None, "gates are drawn from a model"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_error(
    folder: Path, what: str, columns: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_figure(folder, what, columns)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".parquet"]


def test_a_folder_without_a_collection_is_one_clear_error(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: nothing collected there; run collect first"):
        write_figure(tmp_path / "nowhere", "recall")
    with pytest.raises(ValueError, match="no records of the recall suite"):
        recall(frame[frame["suite"] != "recall"])
