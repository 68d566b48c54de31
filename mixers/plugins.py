"""Code from outside that registers mixers or suites: single Python files and entry points of installed packages."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar


class SourceFile(Protocol):
    """A file that was loaded: its absolute path, and the SHA-256 of its content at that time."""

    path: str
    sha256: str


File = TypeVar("File", bound=SourceFile)
Modules = dict[str, tuple[str, str]]
"""(path, SHA-256) of each file by the name of its module."""

PROJECT = Path(__file__).resolve().parents[1]
OWN = ("run", "harness", "mixers", "suites", "slurm", "mixerbench")
"""Top-level names of this project."""
_sources: dict[str, Modules] = {}  # by the SHA-256 of the loaded file


@contextmanager
def whole_or_not_at_all(*registries: dict[str, Any]) -> Iterator[None]:
    """If the block raises, whatever it registered is unregistered again."""
    before = [dict(registry) for registry in registries]
    try:
        yield
    except BaseException:
        for registry, content in zip(registries, before, strict=True):
            registry.clear()
            registry.update(content)
        raise


def load_packages(kind: str, load: Callable[[EntryPoint], None], *registries: dict[str, Any]) -> None:
    """Load the entry points `mixerbench.<kind>s`. A package that cannot be loaded is left out with a warning."""
    group = f"mixerbench.{kind}s"
    for point in entry_points(group=group):
        try:
            with whole_or_not_at_all(*registries):
                load(point)
        except (Exception, SystemExit) as error:
            warnings.warn(
                f"{kind}s of {point.dist.name if point.dist else 'a package'} left out: {group} entry point "
                f"{point.name} = {point.value}: {type(error).__name__}: {error}",
                stacklevel=3,
            )


def load_file(
    kind: str,
    path: str | Path,
    described: Callable[..., File],
    files: dict[str, File],
    built_in: Collection[str],
    hint: str,
    *registries: dict[str, Any],
) -> list[str]:
    """Run a Python file that registers things in the first of `registries`; returns their names.

    files: the file of each name that came from one; the new ones are added, as `described(path=…, sha256=…)`. Content
    that is loaded already is not run again. built_in: names that the file may import, which are not its own. hint: how
    to register. The file may import modules from beside it.

    Raises ValueError if the file is missing, raises or exits, registers nothing, takes a name that is taken, or imports
    a module from beside it whose name is another one's in this process.
    """
    path = placed(path)
    if not path.is_file():
        raise ValueError(f"{kind}_file: {path} is missing; give the path of a Python file")
    source = path.read_bytes()
    sha256 = hashlib.sha256(source).hexdigest()
    _require_free_names(kind, path)
    if names := [name for name, file in files.items() if file.sha256 == sha256]:
        return names
    before = {*registries[0], *built_in}
    # In sys.modules, pickle and inspect find it, so that the file's dataclasses, annotations and Triton kernels work.
    module = types.ModuleType(f"{kind}_file_{sha256[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        with whole_or_not_at_all(*registries), _importable(path.parent):
            exec(compile(source, str(path), "exec"), module.__dict__)
            names = [name for name in registries[0] if name not in before]
            if not names:
                raise ValueError(f"registers no {kind}; {hint}")
    except KeyboardInterrupt:
        del sys.modules[module.__name__]
        raise
    except BaseException as error:  # sys.exit() in the file, too
        del sys.modules[module.__name__]
        loaded = any(file.path == str(path) for file in files.values())
        remedy = "; it has changed since this process loaded it: start a new one" if loaded else ""
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{kind}_file: {path}: {name}{error}{remedy}") from error
    files.update(dict.fromkeys(names, described(path=str(path), sha256=sha256)))
    _sources[sha256] = imported_files(path)
    return names


def placed(path: str | Path) -> Path:
    """The absolute path of a file in the folder that it was found in. Where the file is a link, it is not followed: the
    Hugging Face cache keeps links beside one another, and their targets without names."""
    path = Path(path).absolute()
    return path.parent.resolve() / path.name


def files_beside(path: Path) -> list[Path]:
    """A Python file, and those of its folder that it imports, directly or through one another. Sorted but for `path`,
    which comes first."""
    path = placed(path)
    found = {placed(file) for file, _ in imported_files(path).values()}
    return [path, *sorted(file for file in found - {path} if file.is_relative_to(path.parent))]


def sources(file: SourceFile | None) -> Modules:
    """A loaded file and the modules that it imports from beside it, as they were when it was loaded.

    Its own name is `.`, so that a copy of it elsewhere has the same. Empty without a file. A file that another process
    loaded is read now.
    """
    if file is None:
        return {}
    return _sources.get(file.sha256) or imported_files(Path(file.path))


def imported_files(path: Path) -> Modules:
    """A Python file and, in turn, what it imports that belongs to no installed package and not to this project."""
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = [Path(entry or ".").resolve() for entry in sys.path if entry not in installed]
    own = [folder for folder in own if folder != PROJECT and not {"site-packages", "dist-packages"} & {*folder.parts}]
    found: Modules = {}
    pending = [(".", path)]
    while pending:
        name, file = pending.pop()
        if name in found or not file.is_file():
            continue
        source = file.read_bytes()
        found[name] = (str(file), hashlib.sha256(source).hexdigest())
        imported = _imports(source, name, file.name == "__init__.py")
        for module in (each for each in imported if each.partition(".")[0] not in OWN):
            for folder in (path.parent, *own):
                place = folder.joinpath(*module.split("."))
                candidates = (place / "__init__.py", place.with_suffix(".py"))
                if module_file := next((each for each in candidates if each.is_file()), None):
                    pending.append((module, module_file))
                    break
    return dict(sorted(found.items()))


def _imports(source: bytes, name: str, package: bool) -> set[str]:
    """Dotted names of all modules that a module may import, with the packages around them; none if it is not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # whoever runs it says so
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") if package else name.split(".")[:-1]
            around = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*around, node.module]))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parts = [each.split(".") for each in names if each]
    return {".".join(some[:end]) for some in parts for end in range(1, len(some) + 1)} - {""}


def _require_free_names(kind: str, path: Path) -> None:
    """Raise ValueError if a module beside a file has the name of another one that this process has imported."""
    for file in files_beside(path)[1:]:
        name = ".".join(file.relative_to(path.parent).with_suffix("").parts).removesuffix(".__init__")
        known = getattr(sys.modules.get(name), "__file__", None)
        if known is None or placed(known) == file:
            continue
        if not Path(known).is_file() or Path(known).read_bytes() != file.read_bytes():
            raise ValueError(
                f"{kind}_file: {path} imports {file}, but this process has imported another {name} from {known}; "
                "rename one of them, or start a new process"
            )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Import from a folder first, as a script in it would; afterwards last, for imports inside functions."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def require_unchanged(kind: str, file: SourceFile, defines: str, planned: str, otherwise: str) -> None:
    """Raise ValueError if a file is missing or has changed.

    defines: what the file defines. planned: what was planned with its content. otherwise: how to use the new content.
    """
    path = Path(file.path)
    if not path.is_file():
        raise ValueError(f"{kind}_file: {path}, which defines {defines}, is missing; put it back")
    if hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
        raise ValueError(
            f"{kind}_file: {path} has changed since {planned} was planned; put back the content with sha256 "
            f"{file.sha256[:16]}…, or {otherwise}"
        )
