"""Names of suites, and how to get one with its options.

Besides the built-in suites, a suite can come from an installed package through the entry point group
`mixerbench.suites`, or from a single Python file.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from harness.records.metrics import METRICS, declare
from harness.records.units import SUITES, suite_of
from mixers import plugins
from mixers.identity import compact, completed
from mixers.interface import one_line
from suites.interface import Suite, SuiteConfig
from suites.units import TRAIN, Evaluation, SuiteFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN = SUITES

AnySuite = TypeVar("AnySuite", bound=type[Suite])

_suites: dict[str, Suite] = {}
_files: dict[str, SuiteFile] = {}  # by the name of the suite


def register_suite(name: str, *, title: str) -> Callable[[AnySuite], AnySuite]:
    """Class decorator: make a Suite available as `name` and declare its metrics. `list` prints the title.

    Raises ValueError for a name that is taken or cannot name a file, and for a class that does not keep the interface.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == TRAIN:
        raise ValueError(f"suite: {name!r} cannot name a file of records; use letters, digits, _ and -, not {TRAIN!r}")

    def add(cls: AnySuite) -> AnySuite:
        known = _suites.get(name)
        if (known is not None and type(known) is not cls) or (name in BUILT_IN and cls.__module__ != f"suites.{name}"):
            owner = type(known).__qualname__ if known is not None else "a built-in suite"
            raise ValueError(f"suite: the name {name!r} is already taken by {owner}")
        if vars(cls).get("name", name) != name:
            raise ValueError(f"suite: {cls.__qualname__} is registered as {cls.name!r} already; use a subclass")
        if (cls.run is Suite.run) == (cls.measure is Suite.measure):
            raise ValueError(f"suite: {cls.__qualname__} must implement either run or measure")
        if not issubclass(getattr(cls, "Config", object), SuiteConfig):
            raise ValueError(f"suite: {cls.__qualname__}.Config is missing; give it a subclass of SuiteConfig")
        declare(cls.metrics)
        cls.name, cls.title = name, title
        _suites[name] = cls()
        return cls

    return add


def suite(name: str) -> Suite:
    """Return the suite called `name`; only its own module is imported. Raises ValueError that lists the known ones."""
    if name not in _suites and name in BUILT_IN:
        import_module(f"suites.{name}")
    if name not in _suites:
        _load_plugins()
    if name not in _suites:
        known = ", ".join(dict.fromkeys((*BUILT_IN, *_suites)))
        raise ValueError(f"suites: unknown name {name!r}; known: {known}; --suite-file adds those of a file")
    return _suites[name]


def entries() -> dict[str, Suite]:
    """Return all suites by name: built-in ones, those of installed packages, and those of files loaded so far."""
    for name in BUILT_IN:
        suite(name)
    _load_plugins()
    return {name: _suites[name] for name in dict.fromkeys((*BUILT_IN, *_suites))}


@cache
def _load_plugins() -> None:
    """Load the suites of installed packages, once per process."""
    plugins.load_packages("suite", _load_plugin, _suites, METRICS)


def _load_plugin(point: EntryPoint) -> None:
    """Load a module, which registers on import, or a Suite, which takes the entry point's name if it has none."""
    loaded = point.load()
    if isinstance(loaded, type) and issubclass(loaded, Suite):
        if all(type(known) is not loaded for known in _suites.values()):
            register_suite(point.name, title=point.name)(loaded)
    elif not isinstance(loaded, types.ModuleType):
        raise ValueError("is neither a module nor a Suite")


def load_files(paths: Iterable[str | Path]) -> list[str]:
    """Load several files as `load_file` does; returns the names of all their suites."""
    return [name for path in paths for name in load_file(path)]


def load_file(path: str | Path) -> list[str]:
    """Run a Python file that registers suites; returns their names. Content that is loaded already is not run again.

    Raises ValueError if the file is missing, fails, registers nothing, or takes a name that is taken.
    """
    _load_plugins()
    hint = "decorate a class with @register_suite(name, title=...)"
    return plugins.load_file("suite", path, SuiteFile, _files, BUILT_IN, hint, _suites, METRICS)


def require_file(file: SuiteFile | None) -> None:
    """Load the file that an evaluation's suite comes from, if any. Raises ValueError unless it is there, unchanged."""
    if file is None:
        return
    otherwise = "submit again to evaluate with the new one"
    plugins.require_unchanged("suite", file, "this evaluation's suite", "the evaluation", otherwise)
    load_file(file.path)


def suite_config(name: str, options: dict[str, Any]) -> SuiteConfig:
    """Return the validated options of a suite. Raises ValueError naming suite, field and value."""
    config = suite(name).Config
    try:
        return config(**options)
    except ValidationError as error:
        raise ValueError(one_line(error, f"suites.{name}.", config.model_fields)) from None


VERSIONS = "protocol_versions"
"""The key among the options of an `Evaluation` for the versions of its tasks' protocols, where one is not the first."""


def stored_config(name: str, options: dict[str, Any]) -> SuiteConfig:
    """Options of an `Evaluation`, perhaps of an earlier version. Raises ValueError as `suite_config` does.

    Also raises ValueError if the evaluation was planned for other versions of the suite's protocols.
    """
    planned = options.get(VERSIONS, {})
    rest = {key: value for key, value in options.items() if key != VERSIONS}
    config = suite_config(name, completed(suite(name).Config, rest))
    if planned != (versions := suite(name).protocol_versions(config)):
        raise ValueError(
            f"suites.{name}: the evaluation was planned for protocol versions {planned}, this code measures "
            f"{versions}; submit again, or evaluate with the code that planned it"
        )
    return config


def evaluations(name: str, options: dict[str, Any]) -> dict[str, Evaluation]:
    """Return what a suite with these options evaluates, by unit. Raises ValueError for options it does not take."""
    chosen, file = suite(name), _files.get(name)
    units = chosen.units(suite_config(name, options))
    evaluated = {}
    for unit, part in units.items():
        if suite_of(unit) != name:
            raise ValueError(f"suites.{name}: unit {unit!r} is not its own; name units by unit_name(self.name, length)")
        versions = chosen.protocol_versions(part)
        content = compact(part) | ({VERSIONS: versions} if versions else {})
        evaluated[unit] = Evaluation(content, chosen.fresh, file)
    return evaluated


def check(name: str, options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a suite check its options before there is a model. Raises ValueError naming the suite."""
    config = suite_config(name, options)
    try:
        suite(name).check(config, tokenizer)
    except ValueError as error:
        raise ValueError(f"suites.{name}: {error}") from None
