"""Tables in LaTeX: booktabs, one float for each suite, legible at the text width of a page."""

from __future__ import annotations

from collections.abc import Sequence

from harness.tables.blocks import Block, wrapped
from harness.tables.cells import BOLD, UNDERLINED, Text, unlabelled
from harness.tables.escaping import in_latex, plain

PREAMBLE = "needs \\usepackage{booktabs} \\usepackage[table]{xcolor}; the smallest print is that of \\scriptsize"
CHARACTERS = 66
"""Characters of \\footnotesize across the narrowest common text width, article's 345 points."""
GAP = 2


def latex(blocks: Sequence[Block], label: str, notes: Sequence[str], comments: Sequence[str]) -> str:
    """Floats of blocks, `tab:<label>` and `tab:<label>-<title>`. notes: below the last one. comments: at the top."""
    head = [f"% {PREAMBLE}", *(f"% {plain(text)}" for text in comments)]
    floats = []
    for i, block in enumerate(blocks):
        name = label if len(blocks) == 1 else f"{label}-{slug(block.title)}"
        floats.append(latex_float(block, name, notes if i == len(blocks) - 1 else []))
    return "\n".join([*head, *floats]) + "\n"


def slug(title: str) -> str:
    """A title as part of a label: lower-case letters, digits and hyphens."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split())


def latex_float(block: Block, label: str, notes: Sequence[str]) -> str:
    """A block as a float; columns that do not fit side by side stand below one another."""
    lines = [*("\\begin{table}[tp]", "\\centering", "\\footnotesize", "\\setlength{\\tabcolsep}{3pt}")]
    lines += [f"\\caption{{{in_latex(block.caption)}}}", f"\\label{{tab:{label}}}"]
    for i, part in enumerate(block.cut(CHARACTERS, GAP) if block.headings else []):
        lines += [*(["\\par\\medskip"] if i else []), *tabular(part)]
    below = [*block.remarks, *notes]
    if below:
        lines += ["\\par\\medskip", "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright"]
        lines += [f"{in_latex(note)}.\\par" for note in below] + ["\\end{minipage}"]
    return "\n".join([*lines, "\\end{table}"])


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
