"""Training curves read from run folders."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.figures.learning_curves import COLUMNS, read_curves


def run(seed: int) -> SimpleNamespace:
    return SimpleNamespace(
        run_id=f"gdn2-s{seed}", label="GDN2", mixer="gdn2", layout="recurrent", preset="cpu-1m", seed=seed
    )


def line(step: int, **accuracies: float) -> str:
    content = accuracies | {"step": step, "tokens": 100 * step, "loss": 4.0 / step, "grad_norm": 1.0, "lr": 1e-3}
    return json.dumps(content | {"tokens_per_second": 5e3})


def test_a_row_is_a_logged_step_of_a_run(tmp_path: Path) -> None:
    folders = {tmp_path / str(seed): run(seed) for seed in range(3)}
    for folder, steps in zip(folders, (2, 1), strict=False):  # the third has not begun
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(line(step) + "\n" for step in range(1, steps + 1)))
    found = read_curves(folders)
    assert list(found.columns) == COLUMNS
    assert found[["run", "seed", "tokens", "loss"]].values.tolist() == [
        ["gdn2-s0", 0, 100, 4.0],
        ["gdn2-s0", 0, 200, 2.0],
        ["gdn2-s1", 1, 100, 4.0],
    ]


def test_accuracies_of_recall_get_columns_by_difficulty(tmp_path: Path) -> None:
    lines = [line(1, **{"accuracy/mqar@16": 0.25}), line(2, **{"accuracy/mqar@8": 0.5, "accuracy/mqar@16": 0.75})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = read_curves({tmp_path: run(0)})
    assert list(found.columns) == [*COLUMNS, "accuracy/mqar@8", "accuracy/mqar@16"]
    assert found["accuracy/mqar@16"].tolist() == [0.25, 0.75]
    assert found["accuracy/mqar@8"].isna().tolist() == [True, False]


def test_a_line_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + "\n" + line(2)[:20])
    assert len(read_curves({tmp_path: run(0)})) == 1
    path.write_text(line(1) + "\n" + line(2)[:20] + "\n")
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: no metrics"):
        read_curves({tmp_path: run(0)})
