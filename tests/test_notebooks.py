"""The notebooks run from top to bottom on what is committed, and what they show was made that way."""

import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from harness.files import CHECKOUT

pytestmark = pytest.mark.long

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
MEBIBYTE = 2**20


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Outputs that a reader should not see: errors, warnings, paths of the machine that ran the notebook."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    found = [str(o) for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    return found + [str(o)[:500] for o in outputs if str(CHECKOUT) in str(o) or tempfile.gettempdir() + "/" in str(o)]


def test_there_are_notebooks() -> None:
    assert [path.stem.partition("_")[0] for path in NOTEBOOKS] == [str(n) for n in range(1, 7)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_from_top_to_bottom(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    shown = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert faults(notebook) == []
    assert path.stat().st_size < MEBIBYTE  # a clone carries every version


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # for other tests; interpreted kernels cannot be compiled
    notebook = read(path)
    # Two minutes are what they take at most on two idle cores; the limit is for a machine that does other work.
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert faults(notebook) == []
