"""The index: one HTML page over all experiments of a folder of runs, with each one's summary and its report."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from harness.files import write_atomic
from harness.report.document import document
from harness.report.page import card, tables
from harness.run_folder import Collection, collections, index_file, read_parquet, submitted
from harness.tables.escaping import in_html

HEADINGS = ("experiment", "mixers", "runs", "failed", "records", "measured until", "page")


def write_index(runs_root: Path) -> Path:
    """Write index.html beside the collections of a folder of runs. Returns its path.

    An experiment that was submitted and not collected is named with the command that collects it; one that cannot be
    read, with the reason. Raises ValueError if nothing was submitted or collected.
    """
    found = collections(runs_root)
    waiting = sorted(submitted(runs_root) - {each.path.name for each in found})
    if not found and not waiting:
        raise ValueError(f"{runs_root}: no experiment was submitted or collected there; give another --runs")
    rows: list[str] = []
    sections: dict[str, str] = {}
    for each in found:
        try:
            cells, body = _experiment(each)
        except ValueError as error:
            cells, body = ["–"] * (len(HEADINGS) - 1), f"<p>Cannot be read: {in_html(str(error))}</p>"
        rows.append(_row(each.path.name, cells))
        sections[each.path.name] = body
    for name in waiting:
        ask = f"not collected: <code>run.py collect {in_html(name)}</code>"
        rows.append(_row(name, [*["–"] * (len(HEADINGS) - 2), ask]))
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    overview = (
        '<div class="wide" tabindex="0"><table class="plain sortable"><caption>one row an experiment</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    facts = f"{len(found)} collected, {len(waiting)} not collected"
    page = document("Experiments", "All experiments of a folder of runs.", facts, {"Overview": overview, **sections})
    path = index_file(runs_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode())
    return path


def _row(name: str, cells: list[str]) -> str:
    return f'<tr><th scope="row">{in_html(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _experiment(files: Collection) -> tuple[list[str], str]:
    """The cells of an experiment's row, and its section. Raises ValueError if the collection is damaged."""
    experiment, runs = files.read_experiment(), files.read_runs()
    records = read_parquet(files.records)
    failed = int(runs["failure"].notna().sum()) if "failure" in runs else 0
    mixers = ", ".join(dict.fromkeys(map(str, runs["label"])))
    numbers = [f"{len(runs):,}", f"{failed:,}", f"{len(records):,}", in_html(str(records["time"].max()))]
    parts = [f"<p>{in_html(str(experiment.get('description') or ''))}</p>", card(tables(files.path))]
    return [in_html(mixers), *numbers, _page(files)], "".join(parts)


def _page(files: Collection) -> str:
    """A link to the report, or the command that writes it."""
    name = files.path.name
    if not files.report.is_file():
        return f"<code>run.py report {in_html(name)}</code>"
    return f'<a href="{quote(name)}/{files.report.name}">report of {in_html(name)}</a>'
