"""The source tree as data: its modules, what they import, and the code map of docs/architecture.md.

python -m tests.layout      # write the code map anew
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from harness.files import CHECKOUT

FLOORS = ("mixers", "harness", "suites", "slurm", "run")
"""From the bottom: a module imports from its own floor and those before it."""

ARCHITECTURE = CHECKOUT / "docs" / "architecture.md"
BEGIN, END = "<!-- code map: begin -->\n", "<!-- code map: end -->\n"


parsed = cache(ast.parse)
"""The tree of a source text. Shared: it must not be changed."""


def modules(root: Path = CHECKOUT) -> dict[str, Path]:
    """Every module of the code by its dotted name, floor by floor."""
    paths = [path for floor in FLOORS for path in [root / f"{floor}.py", *sorted((root / floor).rglob("*.py"))]]
    return {_dotted(path.relative_to(root)): path for path in paths if path.is_file()}


def imports(name: str, path: Path, known: Iterable[str]) -> set[str]:
    """Modules of ours that a module imports anywhere, also inside functions, but not for type checking alone."""
    known = set(known)
    targets: set[str] = set()
    for node in _nodes(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            targets |= {f"{node.module}.{alias.name}" for alias in node.names}
    # `from a.b import c` imports a.b.c if that is a module, else something of a.b.
    found = {target if target in known else target.rpartition(".")[0] for target in targets}
    return (found & known) - {name}


def graph(root: Path = CHECKOUT) -> dict[str, set[str]]:
    """Modules of ours that each module imports."""
    known = modules(root)
    return {name: imports(name, path, known) for name, path in known.items()}


def upward(arrows: Mapping[str, set[str]]) -> list[str]:
    """Imports from a floor above the importing module's own."""
    floor = {name: index for index, name in enumerate(FLOORS)}
    return [
        f"{name} imports {target}"
        for name, targets in arrows.items()
        for target in sorted(targets)
        if floor[target.partition(".")[0]] > floor[name.partition(".")[0]]
    ]


def rooms(arrows: Mapping[str, set[str]], floor: str) -> dict[str, set[str]]:
    """Imports between the rooms of a floor: its folders, and the files next to them."""
    between: dict[str, set[str]] = defaultdict(set)
    for name, targets in arrows.items():
        here = _room(name, floor)
        if here is not None:
            there = {_room(target, floor) for target in targets} - {None, here}
            between[here] |= {room for room in there if room is not None}
    return between


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """A circle of imports, from a name back to itself; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows.get(name, ())):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def code_map(root: Path = CHECKOUT) -> str:
    """One line per file, by folder: the first line of its docstring."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in modules(root).values():
        folders[path.parent.relative_to(root)].append(path)
    lines: list[str] = []
    for folder in sorted(folders, key=lambda folder: ([-FLOORS.index(p) for p in folder.parts[:1]] or [-9], folder)):
        init = next((path for path in folders[folder] if path.name == "__init__.py"), None)
        head = f"{folder}/" if folder.parts else ""
        if head:
            lines += ["", f"{head:34}{first_line(init) if init else ''}".rstrip()]
        for path in sorted(folders[folder]):
            if path != init:
                indent = "  " if head else ""
                lines.append(f"{indent + path.name:34}{first_line(path)}")
    return "\n".join(lines).strip() + "\n"


def first_line(path: Path) -> str:
    """First line of a module's docstring; empty without one."""
    return (ast.get_docstring(parsed(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def written_map() -> str:
    """The code map that docs/architecture.md holds."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    return text.partition(BEGIN)[2].partition(END)[0].removeprefix("```\n").removesuffix("```\n")


def main() -> None:
    """Write the code map into docs/architecture.md."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    ARCHITECTURE.write_text(f"{before}{BEGIN}```\n{code_map()}```\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _room(name: str, floor: str) -> str | None:
    parts = name.split(".")
    return None if parts[0] != floor or len(parts) == 1 else parts[1]


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes(node)


if __name__ == "__main__":
    main()
