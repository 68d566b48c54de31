"""Checkpoints: which are kept, and which is taken."""

from pathlib import Path

import pytest
import torch

from harness import checkpoint


def test_the_last_two_are_kept_and_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"step": step})
        (tmp_path / "checkpoints" / f"step_{step + 1:08d}.pt.4711.partial").write_bytes(b"half of it")
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["index.json", "step_00000002.pt", "step_00000003.pt", "step_00000004.pt.4711.partial"]
    assert checkpoint.latest_sound(tmp_path) == (tmp_path / "checkpoints" / "step_00000003.pt", [])


def test_a_run_that_went_back_leaves_later_checkpoints_behind(tmp_path: Path) -> None:
    for step in (10, 20, 15):
        checkpoint.save(tmp_path, step, {"step": step})
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pt")) == ["step_00000010.pt", "step_00000015.pt"]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step_00000015.pt"


@pytest.mark.parametrize("fault", ["cut", "missing"])
def test_damaged_checkpoints_are_named_and_the_newest_sound_one_is_taken(tmp_path: Path, fault: str) -> None:
    assert checkpoint.latest_sound(tmp_path) == (None, [])
    older, newer = (checkpoint.save(tmp_path, step, {"x": torch.ones(4)}) for step in (1, 2))
    said = {"cut": "damaged, its SHA-256", "missing": "the checkpoint is missing"}[fault]

    def spoil(path: Path) -> None:
        path.unlink() if fault == "missing" else path.write_bytes(path.read_bytes()[:-1])

    spoil(newer)
    found, (line,) = checkpoint.latest_sound(tmp_path)
    assert found == older and line.startswith(f"{newer}: {said}") and "the one before, step_00000001.pt" in line
    spoil(older)
    with pytest.raises(checkpoint.CheckpointError, match=rf"{newer.name}: {said}.*no sound one; delete .*checkpoints"):
        checkpoint.latest_sound(tmp_path)
