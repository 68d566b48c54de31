"""Names of mixers, and how to build one from its name and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from mixers.interface import Mixer, MixerConfig

BUILT_IN = ("gated_deltanet", "gdn2.layer", "kda", "mamba2", "mamba3", "attention")


@dataclass(frozen=True)
class Entry:
    """A registered mixer: its class, the name that tables print, and options that the name itself fixes."""

    name: str
    display: str
    cls: type[Mixer]
    fixed: dict[str, Any]


_entries: dict[str, Entry] = {}


def register_mixer(name: str, *, display: str, **fixed: Any) -> Callable[[type[Mixer]], type[Mixer]]:
    """Class decorator: make a Mixer available as `name`, shown as `display`. `fixed` options belong to the name."""

    def add(cls: type[Mixer]) -> type[Mixer]:
        if name in _entries and _entries[name].cls is not cls:
            raise ValueError(f"mixer: the name {name!r} is already taken by {_entries[name].cls.__qualname__}")
        _entries[name] = Entry(name, display, cls, fixed)
        return cls

    return add


def entries() -> dict[str, Entry]:
    """All registered mixers by name, the built-in ones loaded."""
    for module in BUILT_IN:
        import_module(f"mixers.{module}")
    return _entries


def get(name: str) -> Entry:
    """The entry of `name`; ValueError listing the known names otherwise."""
    known = entries()
    if name not in known:
        raise ValueError(f"mixer: unknown name {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def mixer_config(name: str, options: dict[str, Any]) -> MixerConfig:
    """Validated options of a mixer; ValueError naming the mixer, the field and the value otherwise."""
    entry = get(name)
    clash = sorted(set(options) & set(entry.fixed))
    if clash:
        raise ValueError(f"{name}.{clash[0]}: fixed to {entry.fixed[clash[0]]!r} by the mixer's name; remove it")
    try:
        return entry.cls.config_class(**options, **entry.fixed)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        known = ", ".join(f for f in entry.cls.config_class.model_fields if f not in entry.fixed)
        value = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise ValueError(f"{name}.{field or 'options'}: {first['msg']}{value}; options: {known}") from None


def build_mixer(name: str, d_model: int, options: dict[str, Any] | None = None) -> Mixer:
    """A new mixer of width `d_model`. Raises ValueError for unknown names, options and impossible shapes."""
    return get(name).cls(d_model, mixer_config(name, options or {}))
