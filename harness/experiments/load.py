"""Reads an experiment file into a validated Experiment, with its scale and overrides applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.data.tokenizer import IDS
from harness.experiments.data import SYNTHETIC
from harness.experiments.names import EXPERIMENTS, read_fields
from harness.experiments.schema import Experiment
from harness.run_folder import Collection
from harness.yaml_files import parse_yaml
from mixers.identity import completed
from mixers.interface import one_line


def load_experiment(
    path_or_name: str | Path, overrides: list[str] | None = None, scale: str | None = None
) -> Experiment:
    """Read an experiment from a file, or by its name from harness/experiments.

    scale: one of the file's `scales`; the experiment is then named `<name>-<scale>`. overrides: `a.b=value` with a YAML
    value, applied after the scale and before validation. Relative paths are relative to the file, and those of
    overrides to the current folder.

    Raises ValueError with one line if the file or a value in it is wrong.
    """
    path = Path(path_or_name)
    if not path.suffix and not path.exists():
        path = EXPERIMENTS / f"{path_or_name}.yaml"
    values = read_fields(path, path_or_name)
    _make_absolute(values, path.parent)
    if scale is not None:
        experiment = _validated(values, path)
        if scale not in experiment.scales:
            known = ", ".join(experiment.scales) or "none but the file's own"
            raise ValueError(f"scale: {path} has no scale {scale!r}; known: {known}")
        values = _merged(values, experiment.scales[scale]) | {"name": f"{experiment.name}-{scale}"}
    for override in overrides or []:
        set_value(values, override)
    _make_absolute(values, Path.cwd())
    return _validated(values, path)


def _make_absolute(values: Any, folder: Path) -> None:
    """Make the paths in an experiment's values absolute, those of its scales, too. Leaves values of a wrong type."""
    if not isinstance(values, dict):
        return
    for field in ("mixer_files", "suite_files"):
        if isinstance(files := values.get(field), list):
            values[field] = [_absolute(file, folder) if isinstance(file, str) else file for file in files]
    if isinstance(data := values.get("data"), dict):
        if isinstance(source := data.get("source"), str) and source not in ("embedded", SYNTHETIC):
            data["source"] = _absolute(source, folder)
        if isinstance(tokenizer := data.get("tokenizer"), str) and _is_path(tokenizer, folder):
            data["tokenizer"] = _absolute(tokenizer, folder)
    if isinstance(scales := values.get("scales"), dict):
        for changes in scales.values():
            _make_absolute(changes, folder)


def _is_path(tokenizer: str, folder: Path) -> bool:
    """Whether a tokenizer is a path and no name: `embedded`, `ids:N`, or a name on the Hub, which may hold a slash."""
    if tokenizer == "embedded" or tokenizer.startswith(IDS):
        return False
    looks_it = tokenizer.startswith((".", "~")) or tokenizer.endswith(".json")
    return looks_it or Path(_absolute(tokenizer, folder)).exists()


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def stored_experiment(collection: Path) -> Experiment:
    """The resolved experiment of a collection. Raises ValueError if there is none, or not one of this version."""
    stored = Collection(collection)
    try:
        return Experiment.model_validate(completed(Experiment, stored.read_experiment()))
    except ValidationError as error:
        raise ValueError(f"{one_line(error, str(stored.experiment))}; run collect again") from None


def _validated(values: dict[str, Any], path: Path) -> Experiment:
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise ValueError(one_line(error, str(path))) from None


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` updated by `changes`: mappings in both are merged key by key, anything else is replaced."""
    both = {key: _merged(values[key], new) for key, new in changes.items() if _are_mappings(values.get(key), new)}
    return values | changes | both


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def set_value(values: dict[str, Any], override: str, option: str = "--set") -> None:
    """Apply `a.b=value`, with a YAML value, to nested values. Raises ValueError naming the command's `option`."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"{option}: expected a.b=value, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"{option}: {key!r} goes through {parent!r}, which is not a mapping; name a field of one")
    values[last] = parse_value(text, override, option)


def parse_value(text: str, subject: str, option: str = "--set") -> Any:
    """Parse a YAML value from the command line. Raises ValueError naming `subject` if `parse_yaml` refuses it."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{option}: {subject!r}: {error}; quote or correct the value after the =") from None
