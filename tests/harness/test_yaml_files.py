"""Strict reading of YAML: keys given twice, numbers that are not finite, and files that are no mapping."""

from pathlib import Path

import pytest

from harness.yaml_files import parse_yaml, read_yaml

REFUSED = [
    ("train:\n  lr: 1e-3\n  clip: 1.0\n  lr: 2e-3\n", "lr: given twice, in lines 2 and 4; keep one of them"),
    ("a: 1\nb: {x: 1, x: 2}\n", "x: given twice, in lines 2 and 2"),
    ("a: 1\n'a': 2\n", "a: given twice, in lines 1 and 2"),
    ("train:\n  lr: .inf\n", "train.lr: inf is not finite; give a number"),
    ("grid: {train.lr: [0.1, .nan]}\n", "grid.train.lr.1: nan is not finite"),
    ("tokens: 1.0e+400\n", "tokens: inf is not finite"),
    ("day: 2024-13-45\n", "month must be in 1..12"),
    ("a: [", "not YAML"),
    ("[1, 2]", "expected a mapping of fields, got list"),
    ("", "expected a mapping of fields, got NoneType"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text[:12] for text, _ in REFUSED])
def test_a_file_that_is_refused_is_named_with_the_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as fault:
        read_yaml(path)
    assert str(fault.value).startswith(f"{path}: {message}") and "\n" not in str(fault.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary.yaml: "):
        read_yaml(path)


def test_equal_keys_in_different_mappings_and_keys_over_merged_ones_are_no_duplicates() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [{x: 1}, {x: 2}]\n"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": [{"x": 1}, {"x": 2}]}
