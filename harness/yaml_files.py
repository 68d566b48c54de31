"""YAML as people write it, read strictly: a key given twice or a number that is not finite is an error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which it would drop the first without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            name = (key.tag, key.value)
            if name in lines:
                raise ValueError(f"{key.value}: given twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises ValueError in one line that names the file if it is no YAML or no mapping, or as `parse_yaml` does.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of fields, got {type(values).__name__}")
    return values


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises ValueError in one line if it is no YAML, for a key given twice (key and lines), and for a number that is not
    finite (the field it stands in).
    """
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    _require_finite(values, ())
    return values


def _require_finite(value: Any, place: tuple[Any, ...]) -> None:
    """Raise ValueError for a number at or below `place` that is not finite; nothing here can be configured to be."""
    if isinstance(value, float) and not math.isfinite(value):
        field = "".join(f"{key}." for key in place)[:-1]
        raise ValueError(f"{field}{': ' if field else ''}{value} is not finite; give a number")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _require_finite(part, (*place, key))
