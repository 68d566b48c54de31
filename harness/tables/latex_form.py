"""Tables in LaTeX: booktabs, one float for each suite, legible at the text width of a page."""

from __future__ import annotations

from collections.abc import Sequence

from harness.tables.blocks import Block, wrapped
from harness.tables.cells import BOLD, UNDERLINED, Text, unlabelled
from harness.tables.escaping import in_latex, plain

PREAMBLE = "needs \\usepackage{booktabs} \\usepackage[table]{xcolor}; the smallest print is that of \\scriptsize"
CHARACTERS = 72
"""Characters of \\footnotesize across the narrowest common text width, article's 345 points."""
GAP = 2
LINES = 50
"""Lines of \\footnotesize on a page of article, less a caption's."""
SMALL_CHARACTERS, SMALL_LINE = 90, 0.85
"""Characters of \\scriptsize across the text width, and the height of its lines in those of \\footnotesize."""


def latex(blocks: Sequence[Block], label: str, notes: Sequence[str], comments: Sequence[str]) -> str:
    """Floats of blocks, `tab:<label>` and `tab:<label>-<title>`. notes: below the last one. comments: at the top."""
    head = [f"% {PREAMBLE}", *(f"% {plain(text)}" for text in comments)]
    floats = []
    for i, block in enumerate(blocks):
        name = label if len(blocks) == 1 else f"{label}-{slug(block.title)}"
        floats += latex_floats(block, name, notes if i == len(blocks) - 1 else [])
    return "\n".join([*head, *floats]) + "\n"


def slug(title: str) -> str:
    """A title as part of a label: lower-case letters, digits and hyphens."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split())


def latex_floats(block: Block, label: str, notes: Sequence[str]) -> list[str]:
    """A block as a float; columns that do not fit side by side stand below one another.

    What does not fit on the page goes on in further floats, `tab:<label>-2` and so on. Notes that would fill more than
    a page are text after them.
    """
    pieces = [(height(part), tabular(part)) for part in (block.cut(CHARACTERS, GAP) if block.headings else [])]
    below = [*block.remarks, *notes]
    small = [f"{in_latex(note)}.\\par" for note in below]
    size = sum(-(-len(note) // SMALL_CHARACTERS) for note in below) * SMALL_LINE
    text = []
    if size > LINES:
        text = ["\n".join([f"{{\\scriptsize\\raggedright Notes on table~\\ref{{tab:{label}}}:\\par", *small]) + "}"]
    elif below:
        pieces.append((size, ["\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright", *small, "\\end{minipage}"]))
    pages: list[list[list[str]]] = [[]]
    used = 0.0
    for size, piece in pieces:
        if pages[-1] and used + size > LINES:
            pages.append([])
            used = 0.0
        pages[-1].append(piece)
        used += size + 1
    caption = in_latex(block.caption)
    floats = [
        latex_float(page, f"{caption}, continued" if n else caption, f"{label}-{n + 1}" if n else label)
        for n, page in enumerate(pages)
    ]
    return floats + text


def latex_float(pieces: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A float of some pieces, one below the other. caption: in LaTeX."""
    lines = [*("\\begin{table}[tp]", "\\centering", "\\footnotesize", "\\setlength{\\tabcolsep}{3pt}")]
    lines += [f"\\caption{{{caption}}}", f"\\label{{tab:{label}}}"]
    for i, piece in enumerate(pieces):
        lines += [*(["\\par\\medskip"] if i else []), *piece]
    return "\n".join([*lines, "\\end{table}"])


def height(block: Block) -> int:
    """Lines that a block takes: its headings, its groups, and its rows, which are two where the paper has a number."""
    heads = max((len(wrapped(detail)) + len(wrapped(top)) for top, detail in block.headings), default=0)
    rows = sum(2 if any(text.paper is not None for text in texts) else 1 for _, texts in block.rows)
    return heads + 1 + len(block.groups) + rows


def tabular(block: Block) -> list[str]:
    """The lines of a block's tabular."""
    width = len(block.headings)
    tops, rules, at = [], [], 2
    for top, n in block.spans:
        tops.append(f"\\multicolumn{{{n}}}{{c}}{{{stacked(top, 'c') if n == 1 else in_latex(top)}}}")
        rules += [f"\\cmidrule(lr){{{at}-{at + n - 1}}}"] if n > 1 else []
        at += n
    lines = [f"\\begin{{tabular}}{{l{'r' * width}}}", "\\toprule"]
    lines += [f" & {' & '.join(tops)} \\\\", *rules] if any(top for top, _ in block.headings) else []
    lines.append(f"mixer & {' & '.join(stacked(detail, 'r') for _, detail in block.headings)} \\\\")
    for group, rows in block.groups.items():
        lines += ["\\midrule", f"\\multicolumn{{{width + 1}}}{{l}}{{\\textit{{{in_latex(group)}}}}} \\\\"]
        lines += [f"{in_latex(unlabelled(row))} & {' & '.join(map(latex_text, texts))} \\\\" for row, texts in rows]
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def stacked(text: str, side: str) -> str:
    """A heading in short lines."""
    lines = [in_latex(line) for line in wrapped(text)]
    joined = "\\\\".join(lines)
    return joined if len(lines) < 2 else f"\\shortstack[{side}]{{{joined}}}"


def latex_text(text: Text) -> str:
    """A cell in LaTeX."""
    value = in_latex(text.value)
    value = {BOLD: f"\\textbf{{{value}}}", UNDERLINED: f"\\underline{{{value}}}"}.get(text.mark, value)
    if text.paper is not None:
        value = f"\\shortstack[r]{{\\strut {value}\\\\{{\\scriptsize\\itshape {in_latex(text.paper)}}}}}"
    side = {None: "", True: "\\cellcolor{teal!15}", False: "\\cellcolor{orange!25}"}[text.near]
    return side + value
