"""The frame of every page: its style, contents and scripts, and the policy that lets no other script run."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.report import explore
from harness.tables.escaping import in_html

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
.said caption { white-space: normal } .said th, .said td { text-align: left }
.said td:nth-child(2) { white-space: pre-wrap; min-width: 8em }
dl { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 2px 14px; font-size: .85em }
dd { margin: 0; overflow-wrap: anywhere } summary { cursor: pointer; padding: 2px 0 }
.dt-search { margin: 4px 0 } .dt-search input { margin-left: 8px; font: inherit; color: inherit; padding: 2px 6px;
  background: var(--paper); border: 1px solid var(--soft); border-radius: 4px }
.dt-orderable-asc { cursor: pointer } .dt-column-header, .dt-column-header div { display: inline }
.dt-column-order::after { content: " ↕"; color: var(--soft) }
.dt-ordering-asc .dt-column-order::after { content: " ↑" } .dt-ordering-desc .dt-column-order::after { content: " ↓" }
@media screen and (max-width: 700px) { body { padding: 10px } img { max-width: none; width: 720px }
  figure { overflow-x: auto } dl { grid-template-columns: 1fr }
  .plain tbody th { max-width: 9em; white-space: normal } .card .mixerbench .truths td { min-width: 6em } }
@media print { body { max-width: none; font-size: 10pt } nav, .skip, .dt-search { display: none }
  .wide, .asked { overflow: visible } .asked { max-height: none } .plain td { white-space: normal }
  details:not(.scores)::details-content { content-visibility: visible }
  h2, h3, caption { break-after: avoid } figure, tr, .card { break-inside: avoid } }
"""
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; "
    "form-action 'none'"
)
"""The page's content security policy: a browser runs the report's own scripts, told by their hashes, and no other, and
fetches nothing for it."""


def document(title: str, description: str, facts: str, sections: Mapping[str, str]) -> str:
    """A page that needs no network and no other file.

    title, description, facts: texts. sections: HTML by heading, also a text; those without HTML are left out.
    """
    shown = {heading: body for heading, body in sections.items() if body}
    anchors = {heading: "-".join(re.findall(r"[\w.-]+", heading)) for heading in shown}
    contents = "".join(f'<li><a href="#{anchors[heading]}">{in_html(heading)}</a></li>' for heading in shown)
    code, hashes = explore.scripts()
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(scripts=hashes)}">'
        f"<title>{in_html(title)} – Mixerbench</title><style>{STYLE}</style></head><body>",
        '<a class="skip" href="#main">Skip to the results</a>',
        f'<header><h1>{in_html(title)}</h1><p>{in_html(description)}</p><p class="facts">{in_html(facts)}</p></header>',
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav><main id="main">',
        *(
            f'<section><h2 id="{anchors[heading]}">{in_html(heading)}</h2>{body}</section>'
            for heading, body in shown.items()
        ),
        f"</main>{code}</body></html>\n",
    ]
    return "\n".join(parts)
