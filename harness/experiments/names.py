"""Names of experiments and the raw fields of their files, without the schema: this module imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.yaml_files import read_yaml

EXPERIMENTS = Path(__file__).parent
"""Folder of the shipped experiment files."""


def described() -> dict[str, str]:
    """Shipped experiments by name, with the first sentence of each one's description."""
    texts = {path.stem: read_yaml(path)["description"] for path in sorted(EXPERIMENTS.glob("*.yaml"))}
    return {name: re.split(r"(?<! al)\. ", " ".join(text.split()))[0].rstrip(".") for name, text in texts.items()}


def experiment_name(path_or_name: str, scale: str | None = None) -> str:
    """The name of an experiment, given a file or the name itself. Nothing else of the file is read.

    Raises ValueError if it looks like a file and is none, or has no name.
    """
    path, name = Path(path_or_name), path_or_name
    if path.is_file() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        name = read_fields(path, path_or_name).get("name", "")
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: {path} has none; give it one")
    return name if scale is None else f"{name}-{scale}"


def read_fields(path: Path, given: str | Path) -> dict[str, Any]:
    """The fields of an experiment file. Raises ValueError if it is missing or no mapping."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
        raise ValueError(f"experiment: no file {given!s}; give a path, or one of: {known}")
    return read_yaml(path)
