"""The report: tables, figures, configuration and provenance of a collection on one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.experiments.schema import Experiment
from harness.figures import FIGURES, WITH_COLUMNS, write_figure
from harness.files import write_atomic
from harness.records.store import load, load_answers
from harness.report import explore
from harness.report.answers import questions
from harness.report.document import document
from harness.run_folder import Collection
from harness.tables.collection import read_table
from harness.tables.escaping import foreign_markup, in_html
from harness.tables.html_form import SHARED

CAPTIONS = {
    "curves": "Training curves",
    "scores": "Scores",
    "ruler": "Needles over context length",
    "recall": "Recall over difficulty",
    "mqar": "Associative recall over pairs",
    "state": "Associative recall over the size of the state",
    "positions": "Associative recall by place and distance",
    "learning": "Associative recall over tokens of training",
    "tuning": "Scores of tuned values",
    "pareto": "Quality against state size and throughput",
    "throughput": "Training throughput over length",
    "decode": "Reading, decoding and state over context",
    "ablations": "Ablations",
    "kernels": "Kernel time against the device's roofline",
}
MODEL = {
    "label": "model",
    "layout": "layout",
    "preset": "scale",
    "seed": "seed",
    "non_embedding_params": "parameters",
    "state_floats_per_layer": "state a layer",
    "flops_per_token": "FLOPs a token",
    "tokens_seen": "tokens",
    "train_loss": "loss, nats",
    "tokens_per_second": "tokens/s",
    "failure": "failed",
}
BIRTH = [
    *("git_commit", "git_dirty", "code_sha256", "code_version", "files_sha256", "plugins"),
    *("device", "dtype", "backend", "threads", "command"),
]


def report(folder: Path, experiment: Experiment, columns: list[str] | None = None) -> Path:
    """Write report.html of a collection from its records and the tables next to them. Returns its path.

    The page needs no network and no other file; it links to the raw records next to it. columns: for the figures that
    take columns. Figures without data or without columns are left out, and the page says so. Raises ValueError if
    nothing was collected, or if a table beside the records holds more than tables do.
    """
    records = load(folder)
    files = Collection(folder)
    runs = files.read_runs()
    drawn, lacking = _figures(folder, columns)
    pages = tables(folder)
    numbers = read_table(folder, allow_mixed=True)
    raw_files = [files.records, files.samples, files.answers, files.runs, files.table("table", "csv")]
    raw = [f'<a href="{path.name}">{path.name}</a>' for path in raw_files if path.exists()]
    summed = card(pages)
    none = f'<p class="facts">No data, or no columns, for: {", ".join(lacking)}.</p>' if lacking else ""
    sections = {
        "Summary": summed,
        "Tables": "".join(SHARED.sub("", page) for page in pages),
        "Numbers to sort and filter": explore.suites(numbers),
        "What was asked, what each model said": questions(numbers, load_answers(folder)),
        "Items on which models disagree": explore.items(numbers),
        "Figures": "\n".join([*drawn, none]),
        "Models": _models(runs),
        "Configuration": _configuration(experiment),
        "Provenance": _provenance(records),
        "Records": f"<p>{', '.join(raw)}: beside this page.</p>",
    }
    facts = (
        f"{len(runs)} runs, {len(records):,} records, measured from {records['time'].min()} to {records['time'].max()}"
    )
    page = document(experiment.name, experiment.description, facts, sections)
    write_atomic(files.report, page.encode())
    return files.report


def tables(folder: Path) -> list[str]:
    """The tables of a collection as HTML, the paper's after our own.

    Raises ValueError if a file holds anything else, since it may come from somebody else.
    """
    return [_table(path) for path in sorted(folder.glob("table*.html"))]


def card(pages: Sequence[str]) -> str:
    """Summary and verdicts of a collection's tables; empty if they have none.

    All tables have the verdicts; the summary is that of the paper's table, if there is one.
    """
    shared = {section.partition(">")[0]: section for page in pages for section in SHARED.findall(page)}
    parts = "".join(f'<div class="mixerbench">{section}</div>' for section in shared.values())
    return f'<div class="card">{parts}</div>' if parts else ""


def _table(path: Path) -> str:
    fragment = path.read_text(encoding="utf-8")
    if foreign := foreign_markup(fragment):
        raise ValueError(f"{path}: holds {foreign[0]}, which no table does; delete it and write it again with `table`")
    return fragment


def _figures(folder: Path, columns: list[str] | None) -> tuple[list[str], list[str]]:
    """Figures that the collection has data for, as HTML, and the names of the others."""
    drawn, lacking = [], []
    for what in FIGURES:
        try:
            paths = write_figure(folder, what, columns if what in WITH_COLUMNS else None)
        except ValueError:  # data or columns are missing; the page names the figure
            lacking.append(what)
            continue
        (svg,) = [path for path in paths if path.suffix == ".svg"]
        source = base64.b64encode(svg.read_bytes()).decode()
        caption = CAPTIONS.get(what, what)
        image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{source}">'
        drawn.append(f'<figure tabindex="0">{image}<figcaption>{caption}</figcaption></figure>')
    return drawn, lacking


def _models(runs: pd.DataFrame) -> str:
    columns = [name for name in MODEL if name in runs and runs[name].notna().any()]
    head = "".join(f'<th scope="col">{MODEL[name]}</th>' for name in columns)
    rows = []
    for _, row in runs.iterrows():
        first, *rest = (_cell(row[name]) for name in columns)
        rows.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{text}</td>" for text in rest)}</tr>')
    return (
        '<div class="wide" tabindex="0"><table class="plain sortable"><caption>one row a run</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{int(value):,}" if isinstance(value, float | int) else in_html(str(value))


def _configuration(experiment: Experiment) -> str:
    content = experiment.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    shown = "\n".join(map(in_html, text.splitlines()))
    return f"<details><summary>{in_html(experiment.name)}.yaml, resolved</summary><pre>{shown}</pre></details>"


def _provenance(records: pd.DataFrame) -> str:
    """Provenance of the records, one line per field with every value that occurs; fields that differ come first."""
    fields = [name for name in records if name in BIRTH or name.startswith("version_")]
    parts = []
    for title, several in (("Differs between records", True), ("The same in all records", False)):
        own = [name for name in fields if (records[name].nunique(dropna=False) > 1) == several]
        lines = [f"<dt>{in_html(name)}</dt><dd>{in_html(_values(records[name].unique()))}</dd>" for name in own]
        parts += [f"<h3>{title}</h3><dl>{''.join(lines)}</dl>"] if lines else []
    return "".join(parts)


def _values(values: Sequence[Any]) -> str:
    return "; ".join(sorted("none" if v is None or v != v else str(v) for v in values))
