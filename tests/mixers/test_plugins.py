"""Files that register things: run once, whole or not at all, and refused once they have changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mixers.plugins import files_beside, load_file, require_unchanged, whole_or_not_at_all

REGISTRY: dict[str, object] = {}


@dataclass(frozen=True)
class Described:
    path: str
    sha256: str


@pytest.fixture
def files() -> dict[str, Described]:
    REGISTRY.clear()
    return {}


def load(path: Path, files: dict[str, Described], **built_in: object) -> list[str]:
    return load_file("thing", path, Described, files, built_in, "write REGISTRY[name] = ...", REGISTRY)


def write(path: Path, code: str) -> Path:
    path.write_text(f"from {__name__} import REGISTRY\n{code}\n")
    return path


def test_a_file_registers_its_names_and_the_same_content_is_not_run_again(
    tmp_path: Path, files: dict[str, Described]
) -> None:
    path = write(tmp_path / "a.py", "REGISTRY['a'] = object()\nREGISTRY['core'] = object()")
    assert load(path, files, core=None) == ["a"]
    first = REGISTRY["a"]
    assert load(write(tmp_path / "copy.py", path.read_text().partition("\n")[2].strip()), files, core=None) == ["a"]
    assert REGISTRY["a"] is first and files["a"].path == str(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("REGISTRY['b'] = 1\nraise OSError('no disk')", "thing_file: .*b.py: OSError: no disk"),
        ("x = 1", "registers no thing; write REGISTRY"),
        ("REGISTRY['b'] = 1\nraise ValueError('taken')", r"b.py: taken$"),
    ],
)
def test_a_file_that_fails_leaves_nothing_registered(
    code: str, message: str, tmp_path: Path, files: dict[str, Described]
) -> None:
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "b.py", code), files)
    assert REGISTRY == {} and files == {}


def test_an_edited_file_says_that_a_new_process_is_needed_if_its_names_are_taken(
    tmp_path: Path, files: dict[str, Described]
) -> None:
    path = write(tmp_path / "c.py", "assert 'c' not in REGISTRY, 'taken'\nREGISTRY['c'] = 1")
    load(path, files)
    write(path, "assert 'c' not in REGISTRY, 'taken'\nREGISTRY['c'] = 2")
    with pytest.raises(ValueError, match="AssertionError: taken; it has changed since this process loaded it"):
        load(path, files)
    assert REGISTRY["c"] == 1


def test_a_file_that_is_missing_or_changed_is_named_with_what_to_do(
    tmp_path: Path, files: dict[str, Described]
) -> None:
    path = write(tmp_path / "d.py", "REGISTRY['d'] = 1")
    load(path, files)
    words = ("this run's thing", "the run", "submit again")
    require_unchanged("thing", files["d"], *words)
    write(path, "REGISTRY['d'] = 2")
    with pytest.raises(ValueError, match="has changed since the run was planned; put back .* or submit again"):
        require_unchanged("thing", files["d"], *words)
    path.unlink()
    with pytest.raises(ValueError, match="which defines this run's thing, is missing; put it back"):
        require_unchanged("thing", files["d"], *words)
    with pytest.raises(ValueError, match="thing_file: .* is missing; give the path"):
        load(path, files)


def test_an_interrupt_rolls_back_every_registry() -> None:
    names, others = {"old": 1}, {"metric": 2}
    with pytest.raises(KeyboardInterrupt), whole_or_not_at_all(names, others):
        names["new"], others["metric"] = 3, 4
        raise KeyboardInterrupt
    assert (names, others) == ({"old": 1}, {"metric": 2})


def test_a_file_imports_modules_from_beside_it_which_count_as_its_own(tmp_path: Path, files: dict[str, Any]) -> None:
    (tmp_path / "plugin_gain.py").write_text("import plugin_parts.two\nGAIN = plugin_parts.two.TWO + 1\n")
    (tmp_path / "plugin_parts").mkdir()
    (tmp_path / "plugin_parts" / "__init__.py").write_text("")
    (tmp_path / "plugin_parts" / "two.py").write_text("TWO = 2\n")
    (tmp_path / "unused.py").write_text("")
    path = write(tmp_path / "a.py", "import json\nfrom plugin_gain import GAIN\nREGISTRY['a'] = GAIN")
    assert load(path, files) == ["a"] and REGISTRY["a"] == 3
    found = [str(file.relative_to(tmp_path)) for file in files_beside(path)]
    assert found == ["a.py", "plugin_gain.py", "plugin_parts/__init__.py", "plugin_parts/two.py"]


def test_two_files_whose_modules_share_a_name_are_told_apart(tmp_path: Path, files: dict[str, Any]) -> None:
    for name, value in (("one", 1), ("two", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plugin_value.py").write_text(f"VALUE = {value}\n")
        write(tmp_path / name / "a.py", f"from plugin_value import VALUE\nREGISTRY['{name}'] = VALUE")
    assert load(tmp_path / "one" / "a.py", files) == ["one"] and load(tmp_path / "two" / "a.py", files) == ["two"]
    with pytest.raises(ValueError, match=r"three/a.py imports .*, but this process has imported another plugin_value"):
        load(tmp_path / "three" / "a.py", files)


@pytest.mark.parametrize("ending", ["import sys\nsys.exit()", "raise BaseException('odd')", "raise GeneratorExit"])
def test_a_file_that_ends_the_process_is_an_error_that_names_it(
    ending: str, tmp_path: Path, files: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"thing_file: .*b.py: (SystemExit|BaseException: odd|GeneratorExit)"):
        load(write(tmp_path / "b.py", ending), files)
    with pytest.raises(KeyboardInterrupt):
        load(write(tmp_path / "c.py", "raise KeyboardInterrupt"), files)
