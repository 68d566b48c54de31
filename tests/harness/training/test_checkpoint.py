"""Checkpoints: which are kept and which is restored. test_distributed.py has several processes write one."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.files import file_sha256
from harness.training import checkpoint
from harness.training.distributed import ALONE

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled"
)  # folders are written by one process here


def test_the_last_two_are_kept_and_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"step": step})
        (tmp_path / "checkpoints" / f"step_{step + 1:08d}.pt.4711.partial").write_bytes(b"half of it")
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["index.json", "step_00000002.pt", "step_00000003.pt", "step_00000004.pt.4711.partial"]
    assert checkpoint.latest_sound(tmp_path) == (tmp_path / "checkpoints" / "step_00000003.pt", [])


def test_a_run_that_resumed_earlier_drops_the_later_checkpoints(tmp_path: Path) -> None:
    for step in (10, 20, 15):
        checkpoint.save(tmp_path, step, {"step": step})
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pt")) == ["step_00000010.pt", "step_00000015.pt"]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step_00000015.pt"


@pytest.mark.parametrize("fault", ["cut", "missing"])
def test_damaged_checkpoints_are_named_and_the_newest_intact_one_is_restored(tmp_path: Path, fault: str) -> None:
    assert checkpoint.latest_sound(tmp_path) == (None, [])
    older, newer = (checkpoint.save(tmp_path, step, {"x": torch.ones(4)}) for step in (1, 2))
    reason = {"cut": "damaged, its SHA-256", "missing": "the checkpoint is missing"}[fault]

    def spoil(path: Path) -> None:
        path.unlink() if fault == "missing" else path.write_bytes(path.read_bytes()[:-1])

    spoil(newer)
    restored, (line,) = checkpoint.latest_sound(tmp_path)
    assert restored == older and line.startswith(f"{newer}: {reason}") and "the one before, step_00000001.pt" in line
    spoil(older)
    with pytest.raises(
        checkpoint.CheckpointError, match=rf"{newer.name}: {reason}.*no earlier one is intact; delete .*checkpoints"
    ):
        checkpoint.latest_sound(tmp_path)


def content(step: int) -> dict[str, Any]:
    """Content of a checkpoint of a model with two parameters, and of AdamW."""
    model = {"a": torch.arange(6.0).view(2, 3) + step, "b.c": torch.full((5,), float(step))}
    state = {i: {"step": torch.tensor(float(step)), "exp_avg": t * 2} for i, t in enumerate(model.values())}
    groups = [{"params": [0, 1], "lr": 0.1}]
    optimizer = {"state": state, "param_groups": groups}
    return {"config_hash": "abc", "model": model, "optimizer": optimizer, "step": step, "recent": [1.0, 2.5]}


def save_folder(run_dir: Path, step: int, milestones: int | None = None) -> Path:
    return checkpoint.save_sharded(run_dir, step, content(step), ALONE, milestones)


def test_a_folder_holds_what_a_file_does(tmp_path: Path) -> None:
    file = checkpoint.save(tmp_path / "file", 3, content(3))
    folder = save_folder(tmp_path / "folder", 3)
    assert (file.name, folder.name) == ("step_00000003.pt", "step_00000003.dcp")
    parameters = list(content(0)["model"].values())
    contents = [checkpoint.load(p) for p in (file, folder)]
    contents += [checkpoint.load_sharded(p, "abc", content(0)["model"], parameters) for p in (file, folder)]
    expected = content(3)
    for loaded in contents:
        assert loaded.keys() == expected.keys()
        torch.testing.assert_close(loaded["model"], expected["model"], rtol=0, atol=0)
        torch.testing.assert_close(loaded["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)
        assert loaded["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
        assert (loaded["step"], loaded["recent"]) == (3, [1.0, 2.5])


def test_milestones_are_kept_next_to_the_last_two(tmp_path: Path) -> None:
    for step in range(0, 90, 10):
        checkpoint.save(tmp_path, step, {"step": step}, milestones=30) if step % 20 else save_folder(tmp_path, step, 30)
    left = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert left == [f"step_000000{n}" for n in ("00.dcp", "30.pt", "60.dcp", "70.pt", "80.dcp")]
    assert list(json.loads((tmp_path / "checkpoints" / "index.json").read_text())) == left


def test_an_unfinished_folder_is_ignored_and_removed(tmp_path: Path) -> None:
    sound = save_folder(tmp_path, 1)
    (half := sound.with_name("step_00000002.dcp.partial")).mkdir()
    (half / "__0_0.distcp").write_bytes(b"half of it")
    (unlisted := sound.with_name("step_00000002.dcp")).mkdir()
    assert checkpoint.latest_sound(tmp_path) == (sound, []) and checkpoint.latest(tmp_path) == sound
    written = save_folder(tmp_path, 2)
    assert written == unlisted and checkpoint.load(written)["step"] == 2 and not half.exists()


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", checkpoint.REST])
@pytest.mark.parametrize("fault", ["flipped", "missing"])
def test_a_folder_with_a_damaged_file_is_named_and_the_one_before_is_restored(
    tmp_path: Path, file: str, fault: str
) -> None:
    older, newer = (save_folder(tmp_path, step) for step in (1, 2))
    path = newer / file
    if fault == "missing":
        path.unlink()
    else:
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
    reason = {"flipped": "damaged, its SHA-256 is not the recorded one", "missing": "the file is missing"}[fault]
    restored, (line,) = checkpoint.latest_sound(tmp_path)
    assert restored == older
    assert line == f"{path}: {reason}; resuming from the one before, step_00000001.dcp"
    with pytest.raises(checkpoint.CheckpointError, match=rf"{file}: {reason}; delete .*train.json and submit again"):
        checkpoint.load(newer)


class Calling:
    """Pickled, it asks the reader to call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("called"),)


@pytest.mark.parametrize("whole", [True, False])
def test_the_metadata_of_a_strangers_checkpoint_calls_no_function(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_folder(tmp_path / "run", 1)
    metadata, index = folder / checkpoint.METADATA, tmp_path / "run" / "checkpoints" / "index.json"
    known = pickle.loads(metadata.read_bytes())
    known.planner_data = Calling()
    metadata.write_bytes(pickle.dumps(known if whole else Calling()))
    listed = json.loads(index.read_text())  # the stranger knows how to write a hash
    listed[folder.name]["files"][checkpoint.METADATA] = file_sha256(metadata)
    index.write_text(json.dumps(listed))
    with pytest.raises(checkpoint.CheckpointError, match=r"\.metadata: names .*; delete the folder of checkpoints"):
        checkpoint.load(folder)
    assert not (tmp_path / "called").exists()


def test_the_digest_depends_on_names_and_bits_and_not_on_order(tmp_path: Path) -> None:
    model = content(1)["model"]
    same = {name: model[name].clone() for name in reversed(model)}
    assert checkpoint.digest(model) == checkpoint.digest(same)
    same["a"][0, 0] += 1e-6
    assert checkpoint.digest(model) != checkpoint.digest(same)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"step_00000002.pt": 2}'])
def test_a_damaged_list_of_checkpoints_is_named_with_the_remedy(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "index.json").write_bytes(content)
    for read in (checkpoint.latest, checkpoint.latest_sound):
        with pytest.raises(checkpoint.CheckpointError, match=r"index.json: damaged.*; delete the folder .*checkpoints"):
            read(tmp_path)
