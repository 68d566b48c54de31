"""Names of mixers, and how to build a mixer from its name and options.

Besides the built-in mixers there are layers of flash-linear-attention, named `fla:<Layer>`, mixers of installed
packages (entry point group `mixerbench.mixers`), and mixers defined in a single Python file.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mixers import plugins
from mixers.fla_layer import FLA_PREFIX
from mixers.fla_layer import entry as fla_entry
from mixers.identity import completed, identity
from mixers.interface import Entry, Mixer, MixerConfig, one_line

BUILT_IN = ("gated_deltanet", "gdn2.layer", "kda", "mamba2", "mamba3", "attention")


class MixerFile(BaseModel):
    """The Python file that defines a mixer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str
    """Absolute path."""
    sha256: str
    """SHA-256 of the content when it was loaded, in hex."""


_entries: dict[str, Entry] = {}
_files: dict[str, MixerFile] = {}  # by the name of the mixer


def register_mixer(name: str, *, display: str, **fixed: Any) -> Callable[[type[Mixer]], type[Mixer]]:
    """Decorate a Mixer class to make it available as `name`, shown as `display`.

    fixed: options that the name implies. Raises ValueError if `name` cannot name a folder or is already taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"mixer: {name!r} cannot name a run's folder; use letters, digits, _, . and -")

    def add(cls: type[Mixer]) -> type[Mixer]:
        if name in _entries and _entries[name].cls is not cls:
            raise ValueError(f"mixer: the name {name!r} is already taken by {_entries[name].cls.__qualname__}")
        _entries[name] = Entry(name, display, cls, fixed)
        return cls

    return add


def entries() -> dict[str, Entry]:
    """Return all registered mixers by name: built-in ones, those of installed packages and of files loaded so far."""
    for module in BUILT_IN:
        import_module(f"mixers.{module}")
    _load_plugins()
    return _entries


@cache
def _load_plugins() -> None:
    """Load the mixers of installed packages, once per process."""
    plugins.load_packages("mixer", _load_plugin, _entries)


def _load_plugin(point: EntryPoint) -> None:
    """Load an entry point: a module that registers on import, a Mixer class, or a function that registers when called.

    A class that does not register itself gets the name of the entry point.
    """
    loaded = point.load()
    if isinstance(loaded, types.ModuleType):
        return
    if not (isinstance(loaded, type) and issubclass(loaded, Mixer)):
        loaded()
    elif all(entry.cls is not loaded for entry in _entries.values()):
        register_mixer(point.name, display=point.name)(loaded)


def load_file(path: str | Path) -> list[str]:
    """Run a Python file that registers mixers and return their names. Content already loaded is not run again.

    Raises ValueError if the file is missing, raises, registers nothing, or registers a name that is already taken.
    """
    hint = "decorate a class with @register_mixer(name, display=...)"
    return plugins.load_file("mixer", path, MixerFile, _files, entries(), hint, _entries)


def file_of(name: str) -> MixerFile | None:
    """Return the file that a mixer was loaded from, or None if it came from elsewhere."""
    return _files.get(name)


def require_file(file: MixerFile | None) -> None:
    """Load the file that defines a run's mixer, if any. Raises ValueError if the file is missing or has changed."""
    if file is None:
        return
    plugins.require_unchanged("mixer", file, "this run's mixer", "the run", "submit again for a run of the new one")
    load_file(file.path)


def get(name: str) -> Entry:
    """Return the entry of `name`. Raises ValueError with the known names if there is none."""
    if name.startswith(FLA_PREFIX):
        return fla_entry(name)
    known = entries()
    if name not in known:
        raise ValueError(
            f"mixer: unknown name {name!r}; known: {', '.join(sorted(known))}, and {FLA_PREFIX}<Layer> for a layer of "
            "flash-linear-attention"
        )
    return known[name]


def mixer_config(name: str, options: dict[str, Any]) -> MixerConfig:
    """Validate the options of a mixer. Raises ValueError naming the mixer, the field and the value if one is wrong."""
    entry = get(name)
    clash = sorted(set(options) & set(entry.fixed))
    if clash:
        raise ValueError(f"{name}.{clash[0]}: fixed to {entry.fixed[clash[0]]!r} by the mixer's name; remove it")
    try:
        return entry.cls.config_class(**options, **entry.fixed)
    except ValidationError as error:
        known = (field for field in entry.cls.config_class.model_fields if field not in entry.fixed)
        raise ValueError(one_line(error, f"{name}.", known)) from None


def resolved_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a mixer as JSON values, defaults spelt out, without those that its name fixes.

    For a layer of another package, whose defaults are not ours to freeze, only the options that were given. Raises
    ValueError as `mixer_config` does.
    """
    config = mixer_config(name, options)
    return config.model_dump(mode="json", exclude=set(get(name).fixed), exclude_unset=not config.spelt_out)


def stored_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Resolved options that were stored earlier, completed by the neutral values of options that were added since."""
    return completed(get(name).cls.config_class, options)


def options_identity(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The part of resolved options that identifies a model. Raises ValueError as `mixer_config` does."""
    content = identity(mixer_config(name, stored_options(name, options)))
    return {key: value for key, value in content.items() if key in options}


def build_mixer(name: str, d_model: int, options: dict[str, Any] | None = None) -> Mixer:
    """Build a new mixer of width `d_model`. Raises ValueError for unknown names and options, and impossible shapes."""
    return get(name).cls(d_model, mixer_config(name, options or {}))
