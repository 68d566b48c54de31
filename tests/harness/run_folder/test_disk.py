"""Disk space of runs: checkpoints that are removed, and those that stay usable."""

from pathlib import Path

from harness.run_folder import RunFolder
from harness.run_folder.disk import prune, size
from harness.training import checkpoint


def test_the_last_checkpoint_stays_whole_and_the_others_free_their_bytes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert prune(run, "last") == 0
    first, last = (checkpoint.save(tmp_path, step, {"step": step}) for step in (1, 2))
    before = first.stat().st_size
    assert prune(run, "last") == before and not first.exists()
    assert checkpoint.load(last) == {"step": 2} and prune(run, "last") == 0
    before = size([last])
    assert prune(run, "none") == before and not last.exists()
    assert checkpoint.latest(tmp_path) is None and sorted(p.name for p in run.checkpoints.iterdir()) == ["index.json"]


def test_milestones_are_kept_next_to_the_last_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def left() -> list[int]:
        return [checkpoint.load(path)["step"] for path in sorted(run.checkpoints.glob("step_*"))]

    for step in range(1, 8):
        checkpoint.save(tmp_path, step, {"step": step}, milestones=3)
    run.write_config({"train": {"milestones": 3}})
    assert left() == [3, 6, 7]
    assert prune(run, "milestones") == 0 and left() == [3, 6, 7]
    run.write_config({"train": {"milestones": 6}})
    assert prune(run, "milestones") > 0 and left() == [6, 7]
    run.write_config({"train": {"milestones": None}})
    assert prune(run, "milestones") > 0 and left() == [7]
