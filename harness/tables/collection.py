"""The tables of a collection, written next to its records in every form."""

from __future__ import annotations

from pathlib import Path

from harness.experiments.schema import Experiment
from harness.files import write_atomic
from harness.records.store import load, load_samples
from harness.run_folder import Collection
from harness.tables.comparison import comparison
from harness.tables.forms import Table
from harness.tables.paper import PAPER_TABLES, belongs, paper_table, printed_by
from harness.tables.summary import summary
from harness.tables.truths import judge, judge_paper
from harness.tables.verdicts import Verdict


def read_table(folder: Path | str, columns: list[str] | None = None, allow_mixed: bool = False) -> Table:
    """Compare the records of a collection, and write nothing. Arguments and errors are those of `comparison`."""
    collection = Collection(Path(folder))
    collection.require()
    return comparison(load(folder), columns, collection.read_runs(), load_samples(folder), allow_mixed)


def write_table(
    folder: Path, columns: list[str] | None, allow_mixed: bool, experiment: Experiment | None = None
) -> Table:
    """Compare the records of a collection. Writes table.md, .tex, .csv and .html next to them; returns the table.

    If the experiment measures a table of the paper, the comparison is also written in the paper's layout (table2.md and
    so on), and that table is returned, unless `columns` are given or no column of the paper's table has records.
    Its `truths` are the verdicts on the experiment's truths and on the paper's numbers; a table of some `columns` has
    none.
    Raises ValueError if nothing was collected, or records of a column were measured differently.
    """
    Collection(folder).require()
    frame, samples = load(folder), load_samples(folder)
    runs = Collection(folder).read_runs()
    expected = None if experiment is None else experiment.expectation
    table = comparison(frame, columns, runs, samples, allow_mixed, expected)
    shown = [("table", table)]
    which = experiment.expected.table if experiment is not None and experiment.expected is not None else None
    if which in PAPER_TABLES and columns is None and belongs(which, frame).any():
        shown.append((which, paper_table(which, frame, runs, samples, allow_mixed, expected)))
    verdicts: list[Verdict] = []
    if experiment is not None and columns is None:
        verdicts = judge(experiment, frame, samples)
    if expected is not None and columns is None:
        verdicts += judge_paper(shown[-1][1], expected, printed_by(expected.table, runs))
    for name, found in shown:
        found.truths = verdicts
        found.summary = summary(found, runs, verdicts)
        write_forms(folder, name, found)
    return found


def write_forms(folder: Path, name: str, table: Table) -> None:
    """Write a table as <name>.md, .tex, .csv and .html."""
    forms = {"md": table.markdown(), "tex": table.latex(name), "csv": table.csv(), "html": table.html()}
    for ending, text in forms.items():
        write_atomic(Collection(folder).table(name, ending), text.encode())
