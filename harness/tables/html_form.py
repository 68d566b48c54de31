"""Tables in HTML: a fragment with its own style, for screens bright and dark, phones, keyboards and paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.tables.blocks import Block
from harness.tables.cells import BOLD, UNDERLINED, Text, unlabelled
from harness.tables.escaping import in_html
from harness.tables.verdicts import MET, NOT_MET, Verdict, tally, truth_text

STYLE = """\
<style>
.mixerbench { --ink: #1a1a1a; --soft: #555; --paper: #fff; --line: #999; --near: #d5efe3; --far: #fbdcc8 }
@media screen and (prefers-color-scheme: dark) { .mixerbench { --ink: #e8e8e8; --soft: #b0b0b0; --paper: #16181c;
  --line: #666; --near: #17422f; --far: #5a2c12 } }
.mixerbench { color: var(--ink); font: 13px/1.4 system-ui, sans-serif }
.mixerbench .wide { overflow-x: auto; margin-bottom: 1.2em }
.mixerbench table { border-collapse: collapse }
.mixerbench caption { text-align: left; font-weight: bold; padding: 4px 7px; white-space: nowrap }
.mixerbench th, .mixerbench td { padding: 2px 7px; text-align: right; vertical-align: top; white-space: nowrap }
.mixerbench thead th { border-bottom: 1px solid var(--line); font-weight: normal; white-space: normal;
  min-width: 4.5em }
.mixerbench tbody th { text-align: left; font-weight: normal }
.mixerbench tbody th, .mixerbench thead th:first-child { position: sticky; left: 0; background: var(--paper) }
.mixerbench thead th:first-child { text-align: left }
.mixerbench .group { font-style: italic }
.mixerbench .paper { color: var(--soft); font-size: 11px }
.mixerbench .near { background: var(--near) }
.mixerbench .far { background: var(--far) }
.mixerbench .truths td { text-align: left; white-space: normal; min-width: 12em }
.mixerbench .truths thead th { text-align: left }
.mixerbench p, .mixerbench li { max-width: 75em }
@media print { .mixerbench .wide { overflow: visible } .mixerbench tr { break-inside: avoid }
  .mixerbench th, .mixerbench td { padding: 1px 3px; white-space: normal } }
</style>"""
SHARED = re.compile(r'<section class="(?:summary|truths)">.*?</section>\n?', re.DOTALL)
"""The sections of a fragment that all tables of a collection share: the summary and the verdicts."""


def html(
    blocks: Sequence[Block],
    summary: Sequence[str],
    truths: Sequence[Verdict],
    marks: Sequence[str],
    notes: Sequence[str],
) -> str:
    """A fragment of all blocks with the summary first. marks: notes with markup; notes: foreign text.

    Colour, like ≈ and ≠, says whether our number is within the tolerance of the paper's.
    """
    parts = [STYLE, '<div class="mixerbench">']
    if summary:
        parts += ['<section class="summary">', "<h3>In short</h3>", "<ul>"]
        parts += [*(f"<li>{in_html(line)}</li>" for line in summary), "</ul>", "</section>"]
    parts += [html_block(block) for block in blocks]
    parts += [html_truths(truths)] if truths else []
    parts += ["<ul>", *(f"<li>{note}</li>" for note in marks), *(f"<li>{in_html(note)}</li>" for note in notes)]
    return "\n".join([*parts, "</ul>", "</div>"]) + "\n"


def html_block(block: Block) -> str:
    """A block as a table, which scrolls by itself, with its remarks."""
    remarks = [f"<p>{in_html(remark)}</p>" for remark in block.remarks]
    if not block.headings:
        return "\n".join([f"<h3>{in_html(block.title)}</h3>", *remarks])
    tops = "".join(f'<th scope="colgroup" colspan="{n}">{in_html(top)}</th>' for top, n in block.spans)
    details = "".join(f'<th scope="col">{in_html(detail)}</th>' for _, detail in block.headings)
    head = [f"<tr><td></td>{tops}</tr>"] if any(top for top, _ in block.headings) else []
    lines = ['<div class="wide" tabindex="0">', "<table>", f"<caption>{in_html(block.caption)}</caption>", "<thead>"]
    lines += [*head, f'<tr><th scope="col">mixer</th>{details}</tr>', "</thead>"]
    for group, rows in block.groups.items():
        lines.append("<tbody>")
        lines.append(
            f'<tr><th class="group" scope="rowgroup" colspan="{len(block.headings) + 1}">{in_html(group)}</th></tr>'
        )
        for row, texts in rows:
            cells = "".join(map(html_text, texts))
            lines.append(f'<tr><th scope="row">{in_html(unlabelled(row))}</th>{cells}</tr>')
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>", "</div>", *remarks])


def html_text(text: Text) -> str:
    """A cell in HTML."""
    value = in_html(text.value)
    value = {BOLD: f"<b>{value}</b>", UNDERLINED: f"<u>{value}</u>"}.get(text.mark, value)
    if text.paper is not None:
        value += f'<br><span class="paper">paper {in_html(text.paper)}</span>'
    side = {None: "", True: ' class="near"', False: ' class="far"'}[text.near]
    return f"<td{side}>{value}</td>"


def html_truths(truths: Sequence[Verdict]) -> str:
    """The section of verdicts."""
    lines = ['<section class="truths">', "<h3>Truths</h3>", '<div class="wide" tabindex="0">', "<table>"]
    lines += [f"<caption>{tally(truths)}</caption>", "<thead>"]
    lines += ["<tr>" + "".join(f'<th scope="col">{name}</th>' for name in ("verdict", "truth", "numbers")) + "</tr>"]
    lines += ["</thead>", "<tbody>"]
    for v in truths:
        side = {MET: ' class="near"', NOT_MET: ' class="far"'}.get(v.outcome, "")
        cells = "".join(f"<td>{in_html(text)}</td>" for text in (truth_text(v), v.numbers))
        lines.append(f'<tr><th scope="row"{side}>{v.outcome}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", "</div>", "</section>"])
