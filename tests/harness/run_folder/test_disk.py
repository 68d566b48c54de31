"""Disk space of runs: checkpoints that are removed, and those that stay usable."""

from pathlib import Path

from harness.run_folder import RunFolder
from harness.run_folder.disk import prune, size
from harness.training import checkpoint


def test_the_last_checkpoint_stays_whole_and_the_others_free_their_bytes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert prune(run, keep_last=True) == 0
    first, last = (checkpoint.save(tmp_path, step, {"step": step}) for step in (1, 2))
    before = first.stat().st_size
    assert prune(run, keep_last=True) == before and not first.exists()
    assert checkpoint.load(last) == {"step": 2} and prune(run, keep_last=True) == 0
    before = size([last])
    assert prune(run, keep_last=False) == before and not last.exists()
    assert checkpoint.latest(tmp_path) is None and sorted(p.name for p in run.checkpoints.iterdir()) == ["index.json"]
