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
from harness.run_folder import Collection
from harness.tables.collection import read_table
from harness.tables.escaping import foreign_markup, in_html
from harness.tables.html_form import SHARED

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --paper: #fff; --line: #e0e0e0; --card: #f4f6f8;
  --link: #0b57a4 }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #b0b0b0; --paper: #16181c;
  --line: #3a3d42; --card: #202329; --link: #8ab8ee } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1180px; padding: 16px }
h1 { font-size: 1.6em; margin: 0 0 4px } h2 { font-size: 1.2em; margin: 1.8em 0 .4em } h3 { font-size: 1em }
a { color: var(--link) } :focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
.skip { position: absolute; left: -999px } .skip:focus { position: static }
nav ul { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; padding: 0; margin: 8px 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 2px 16px; margin: 12px 0 }
.card .mixerbench { font-size: 15px; --paper: var(--card) }
.facts, footer, figcaption, dt { color: var(--soft); font-size: .9em }
.wide { overflow-x: auto; margin-bottom: 1em }
.plain { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums }
.plain caption { text-align: left; font-weight: bold; white-space: nowrap; padding: 4px 0 }
.plain th, .plain td { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--line); vertical-align: top }
.plain td, .plain tbody th { white-space: nowrap }
.plain thead th { min-width: 4.5em; vertical-align: bottom }
.plain th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); font-weight: normal }
figure { margin: 0 0 1.2em } img { max-width: 100%; height: auto; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: 10px; font-size: .8em }
.item { margin: 0 0 1.4em 1em } .asked { max-height: 16em; overflow: auto; margin: 4px 0 }
.said td:nth-child(2) { text-align: left; white-space: pre-wrap; min-width: 8em }
dl { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 2px 14px; font-size: .85em }
dd { margin: 0; overflow-wrap: anywhere } summary { cursor: pointer; padding: 2px 0 }
.dt-search { margin: 4px 0 } .dt-search input { margin-left: 8px; font: inherit; color: inherit; padding: 2px 6px;
  background: var(--paper); border: 1px solid var(--soft); border-radius: 4px }
.dt-orderable-asc { cursor: pointer } .dt-column-header, .dt-column-header div { display: inline }
.dt-column-order::after { content: " ↕"; color: var(--soft) }
.dt-ordering-asc .dt-column-order::after { content: " ↑" } .dt-ordering-desc .dt-column-order::after { content: " ↓" }
@media screen and (max-width: 700px) { body { padding: 10px } img { max-width: none; width: 720px }
  figure { overflow-x: auto } dl { grid-template-columns: 1fr }
  .plain tbody th { max-width: 9em; white-space: normal } }
@media print { body { max-width: none; font-size: 10pt } nav, .skip, .dt-search { display: none }
  .wide, .asked { overflow: visible } .asked { max-height: none } .plain td { white-space: normal }
  details::details-content { content-visibility: visible }
  h2, h3, caption { break-after: avoid } figure, tr, .card { break-inside: avoid } }
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
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; "
    "form-action 'none'"
)
"""The page's content security policy: a browser runs the report's own scripts, told by their hashes, and no other, and
fetches nothing for it."""
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
    pages = [_table(path) for path in sorted(folder.glob("table*.html"))]
    # All pages have the verdicts; the summary is that of the paper's table, if there is one.
    shared = {section.partition(">")[0]: section for page in pages for section in SHARED.findall(page)}
    numbers = read_table(folder, allow_mixed=True)
    raw_files = [files.records, files.samples, files.answers, files.runs, files.table("table", "csv")]
    raw = [f'<a href="{path.name}">{path.name}</a>' for path in raw_files if path.exists()]
    card = "".join(f'<div class="mixerbench">{section}</div>' for section in shared.values())
    none = f'<p class="facts">No data, or no columns, for: {", ".join(lacking)}.</p>' if lacking else ""
    sections = {
        "Summary": f'<div class="card">{card}</div>' if card else "",
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
    sections = {title: body for title, body in sections.items() if body}
    anchors = {title: "-".join(title.lower().split()) for title in sections}
    contents = "".join(f'<li><a href="#{anchors[title]}">{title}</a></li>' for title in sections)
    code, hashes = explore.scripts()
    name = in_html(experiment.name)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(scripts=hashes)}">'
        f"<title>{name} – Mixerbench</title><style>{STYLE}</style></head><body>",
        '<a class="skip" href="#main">Skip to the results</a>',
        f"<header><h1>{name}</h1><p>{in_html(experiment.description)}</p>"
        f'<p class="facts">{len(runs)} runs, {len(records):,} records, measured from {in_html(records["time"].min())} '
        f"to {in_html(records['time'].max())}</p></header>",
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav><main id="main">',
        *(f'<section><h2 id="{anchors[title]}">{title}</h2>{body}</section>' for title, body in sections.items()),
        f"</main>{code}</body></html>\n",
    ]
    write_atomic(files.report, "\n".join(parts).encode())
    return files.report


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
