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
from harness.records.store import load
from harness.run_folder import Collection
from harness.tables.escaping import foreign_markup, in_html
from harness.tables.html_form import SHARED

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 1180px;
       padding: 16px }
h1 { font-size: 1.6em; margin: 0 0 4px } h2 { font-size: 1.2em; margin: 1.6em 0 .4em }
.facts, footer { color: #555; font-size: .9em }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch }
.plain { border-collapse: collapse; font-size: .85em }
.plain th, .plain td { text-align: right; padding: 2px 8px; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }
.plain th:first-child, .plain td:first-child { text-align: left }
figure { margin: 0 0 1.2em } img { max-width: 100%; height: auto }
figcaption { color: #555; font-size: .9em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 10px; font-size: .8em }
dl { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 2px 14px; font-size: .85em }
dd { margin: 0; overflow-wrap: anywhere } dt { color: #555 }
a { color: #0b57a4 }
@media screen and (max-width: 700px) { figure { overflow-x: auto } img { max-width: none; width: 720px } }
@media print { body { max-width: none; font-size: 10pt } .wide { overflow: visible } details > * { display: block }
  h2 { break-after: avoid } figure, tr { break-inside: avoid } }
"""
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
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page's content security policy: a browser runs no script of it and fetches nothing for it."""
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
    runs = Collection(folder).read_runs()
    drawn, lacking = _figures(folder, columns)
    pages = [_table(path) for path in sorted(folder.glob("table*.html"))]
    # All pages have the verdicts; the summary is that of the paper's table, if there is one.
    shared = {section.partition(">")[0]: section for page in pages for section in SHARED.findall(page)}
    tables = [SHARED.sub("", page) for page in pages]
    files = Collection(folder)
    raw_files = [files.records, files.samples, files.runs, files.table("table", "csv")]
    names = [path.name for path in raw_files if path.exists()]
    raw = [f'<a href="{name}">{name}</a>' for name in names]
    parts = [
        f"<h1>{in_html(experiment.name)}</h1><p>{in_html(experiment.description)}</p>",
        f'<p class="facts">{len(runs)} runs, {len(records):,} records, measured from {in_html(records["time"].min())} '
        f"to {in_html(records['time'].max())}</p>",
        *[f'<div class="mixerbench">{section}</div>' for section in shared.values()],
        *tables,
        "<h2>Figures</h2>",
        *drawn,
        f'<p class="facts">No data, or no columns, for: {", ".join(lacking)}.</p>' if lacking else "",
        f'<h2>Models</h2><div class="wide">{_models(runs)}</div>',
        f"<h2>Configuration</h2>{_configuration(experiment)}",
        f"<h2>Provenance</h2>{_provenance(records)}",
        f"<h2>Records</h2><p>{', '.join(raw)}: beside this page.</p>",
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{in_html(experiment.name)} – Mixerbench</title><style>{STYLE}</style></head><body>"
    )
    path = Collection(folder).report
    write_atomic(path, "\n".join([head, *filter(None, parts), "</body></html>\n"]).encode())
    return path


def _table(path: Path) -> str:
    """A table as HTML. Raises ValueError if the file holds anything else, since it may come from somebody else."""
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
        drawn.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return drawn, lacking


def _models(runs: pd.DataFrame) -> str:
    columns = [name for name in MODEL if name in runs and runs[name].notna().any()]
    head = "".join(f"<th>{MODEL[name]}</th>" for name in columns)
    rows = ["".join(f"<td>{_cell(row[name])}</td>" for name in columns) for _, row in runs.iterrows()]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


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
    """Provenance of the records: one line per field, with every value that occurs."""
    fields = [name for name in records if name in BIRTH or name.startswith("version_")]
    lines = [f"<dt>{in_html(name)}</dt><dd>{in_html(_values(records[name].unique()))}</dd>" for name in fields]
    return f"<dl>{''.join(lines)}</dl>"


def _values(values: Sequence[Any]) -> str:
    return "; ".join(sorted("none" if v is None or v != v else str(v) for v in values))
