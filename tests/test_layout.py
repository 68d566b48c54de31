"""The layout of the tree: imports go one way, folders and files stay small, tests mirror modules, the map is true."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from harness.files import CHECKOUT
from tests.layout import FLOORS, circle, code_map, first_line, graph, modules, parsed, rooms, upward, written_map

MOST_FILES, MOST_LINES, LONGEST_SUMMARY = 16, 450, 120
ACROSS = {
    "tests/harness/experiments": {"test_shipped.py"},
    "tests/mixers": {"test_backends_gpu.py", "test_compile.py", "test_mamba.py"},
    "tests/mixers/gdn2": {"test_gpu.py"},
    "tests/slurm": {"test_retry.py"},
    "tests/slurm/cluster": {"test_documents.py", "test_minislurm.py", "test_sweeps.py"},
    "tests/suites": {"test_retrieval_prompts.py"},
}
"""Test files that cross modules on purpose; their docstrings say why."""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_no_module_imports_from_a_floor_above_its_own_and_no_imports_form_a_circle() -> None:
    arrows = graph()
    assert upward(arrows) == []
    assert circle(arrows) == []


@pytest.mark.parametrize("floor", FLOORS[:-1])
def test_rooms_of_a_floor_import_one_another_one_way(floor: str) -> None:
    assert circle(rooms(graph(), floor)) == []


def test_planted_faults_are_found(tmp_path: Path) -> None:
    planted = {
        "mixers/a.py": "def f():\n    from harness.data.b import x\n",
        "harness/data/b.py": "from harness.model import c\nx = 1\n",
        "harness/model/c.py": "import harness.data.d\n",
        "harness/data/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import slurm.e\n",
        "slurm/e.py": "from slurm.f import y\n",
        "slurm/f.py": "import slurm.e\ny = 2\n",
    }
    arrows = graph(write(tmp_path, planted))
    assert upward(arrows) == ["mixers.a imports harness.data.b"]
    assert circle(arrows) == ["slurm.e", "slurm.f", "slurm.e"]
    assert circle(rooms(arrows, "harness")) == ["data", "model", "data"]  # no file of the two imports itself


def test_folders_hold_few_files_and_files_few_lines() -> None:
    paths = modules()
    folders = Counter(path.parent for path in paths.values() if path.name != "__init__.py")
    assert not {str(folder): count for folder, count in folders.items() if count > MOST_FILES}
    kernels = CHECKOUT / "mixers" / "gdn2" / "kernels"
    lengths = {name: len(path.read_text().splitlines()) for name, path in paths.items() if kernels not in path.parents}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_every_module_and_every_test_file_says_what_it_is_for_in_its_first_line() -> None:
    paths = [*modules().values(), *(CHECKOUT / "tests").rglob("*.py")]
    lines = {str(path.relative_to(CHECKOUT)): first_line(path) for path in paths}
    assert not [name for name, line in lines.items() if not line]
    assert not {name: line for name, line in lines.items() if len(line) > LONGEST_SUMMARY}


def test_docstrings_name_the_thing() -> None:
    openings = {
        f"{name}: {line}"
        for name, path in modules().items()
        for node in ast.walk(parsed(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        if (line := (ast.get_docstring(node) or "").partition("\n")[0]).startswith(("What ", "Of ", "That "))
    }
    assert not openings


def test_only_one_room_knows_the_names_of_files_of_runs_collections_and_submissions() -> None:
    home = CHECKOUT / "harness" / "run_folder"
    endings = (".json", ".jsonl", ".yaml", ".parquet", ".html", ".lock")
    names = {name for path in home.glob("*.py") for name in strings(path) if name.endswith(endings)}
    # A folder of prepared data, and the work folder of a preparation, have files of these names, too.
    names = {name for name in names if name[0] != "."} - {"index.json", "plan.json", "jobs.json"}
    assert {"train.json", "config.yaml", "records.parquet"} <= names
    others = {name: path for name, path in modules().items() if home not in path.parents}
    assert not {name: found for name, path in others.items() if (found := names & strings(path))}
    assert not [name for name, path in others.items() if any("records/" in text for text in strings(path))]


def strings(path: Path) -> set[str]:
    """String literals of a module, docstrings left out."""
    tree = parsed(path.read_text(encoding="utf-8"))
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documented)
    return {node.value for node in constants if isinstance(node.value, str)}


def test_the_code_map_is_the_tree() -> None:
    assert written_map() == code_map(), "run `python -m tests.layout`"


def test_every_module_with_code_has_a_test_file_of_its_name_in_the_same_place() -> None:
    missing = [
        str(expected.relative_to(CHECKOUT))
        for path in modules().values()
        if has_code(path) and not (expected := test_file(path)).is_file()
    ]
    assert missing == []


def test_every_test_file_is_of_a_module_or_crosses_modules_on_purpose() -> None:
    expected = {test_file(path) for path in modules().values()}
    found = {path for floor in FLOORS for path in (CHECKOUT / "tests" / floor).rglob("test_*.py")}
    listed = {CHECKOUT / folder / name for folder, names in ACROSS.items() for name in names}
    assert found - expected == listed


def test_file(path: Path) -> Path:
    """Where the tests of a module stand; those of a package's own code are called after the package."""
    relative = path.relative_to(CHECKOUT)
    if path.name == "__init__.py":
        return CHECKOUT / "tests" / relative.parent / f"test_{relative.parent.name}.py"
    return CHECKOUT / "tests" / relative.parent / f"test_{path.stem}.py"


test_file.__test__ = False  # a helper, whatever its name


def has_code(path: Path) -> bool:
    """Whether a module defines functions or classes. Packages that only re-export need no tests of their own."""
    tree = parsed(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
