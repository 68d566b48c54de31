"""The files of choices: written once, read typed, with a remedy where they are damaged."""

from pathlib import Path

import pytest

from harness.run_folder import choice_file

TRIAL = {"run": "a", "values": {"train.lr": 0.01}, "score": 0.5, "loss": 1.5, "reason": None}


def test_a_choice_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = choice_file(tmp_path, "ab" * 32)
    assert file.read() is None
    content = {"values": {"train.lr": 0.01}, "trials": [TRIAL]}
    file.write(content)
    assert file.read() == content and file.path.parent == tmp_path / "choices"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"values": 3, "trials": []}', b'{"values": {}}'])
def test_damage_names_the_file_and_the_remedy(tmp_path: Path, damage: bytes) -> None:
    file = choice_file(tmp_path, "ab" * 32)
    file.path.parent.mkdir()
    file.path.write_bytes(damage)
    with pytest.raises(ValueError, match=f"{file.path}: damaged.*delete it; `submit` chooses again"):
        file.read()
