"""Foreign text in tables and pages. In every form it is data: no markup, command or formula.

Labels, devices, notes, times and error texts come from records, which anyone may have written.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
"""Line breaks, control characters, and characters that turn the direction of writing."""
SURROGATE = re.compile("[\ud800-\udfff]")
MARKDOWN = re.compile(
    r"[\\`*|$]"
    r"|<(?=[A-Za-z/!?])|&(?=[#A-Za-z]\w*;)"  # elements and entities
    r"|(?<=\])\("  # links
    r"|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~"  # emphasis; _ inside a word is none
)
ENTITIES = {"<": "&lt;", "&": "&amp;"}
LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "`": "\\textasciigrave{}"},
    **{"[": "{[}", "*": "{*}"},  # after a line break they would be its argument
    **{"<": "$<$", ">": "$>$", "|": "$|$", "±": "$\\pm$", "–": "--", "−": "$-$", "↑": "$\\uparrow$"},
    **{"↓": "$\\downarrow$", "≈": "$\\approx$", "≠": "$\\neq$", "√": "$\\surd$"},
}
LATEX_LACKS = frozenset("«»ÐÞðþ")
"""Characters below 256 that LaTeX's default encoding of fonts does not have."""
FORMULA = ("=", "+", "-", "@")
"""First characters that make a spreadsheet compute a cell."""
ELEMENTS = frozenset(
    ["b", "br", "caption", "div", "h3", "li", "p", "section", "span", "style"]
    + ["table", "tbody", "td", "th", "thead", "tr", "u", "ul"]
)
ATTRIBUTES = frozenset(("class", "colspan", "scope", "tabindex"))


def plain(text: str) -> str:
    """Text on one line that can be encoded: control characters become spaces, lone surrogates U+FFFD."""
    return SURROGATE.sub("\ufffd", BLANK.sub(" ", text))


def in_markdown(text: str) -> str:
    """Text for markdown, inside a table or outside."""
    return MARKDOWN.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), plain(text))


def in_html(text: str) -> str:
    """Text for HTML, inside an element."""
    return escape(plain(text), quote=False)


def in_latex(text: str) -> str:
    """Text for LaTeX with special characters escaped; characters that its fonts lack become U+ and their code."""
    return "".join(LATEX.get(c, c if ord(c) < 256 and c not in LATEX_LACKS else f"U+{ord(c):04X}") for c in plain(text))


def csv_cell(text: str) -> str:
    """Text for a cell of a CSV file. What a spreadsheet would compute gets an apostrophe in front."""
    shown = plain(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


class _Tags(HTMLParser):
    """Collects what a fragment has besides the elements and attributes of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.foreign += [f"<{tag}>"] * (tag not in ELEMENTS) + [f"{k}=" for k, _ in attrs if k not in ATTRIBUTES]


def foreign_markup(fragment: str) -> list[str]:
    """Elements and attributes of an HTML fragment that no table has."""
    parser = _Tags()
    parser.feed(fragment)
    parser.close()
    return parser.foreign
