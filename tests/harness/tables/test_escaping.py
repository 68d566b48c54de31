"""Foreign text is data in every form of a table: read back, it is the text, and nothing else is there."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from harness.records.store import load
from harness.run_folder import Collection
from harness.tables.comparison import comparison
from harness.tables.escaping import csv_cell, foreign_markup, in_html, in_latex, in_markdown, plain
from harness.tables.forms import Table
from tests.harness.tables.table_records import HOSTILE, hostile_collection

LABELS = [" ".join(plain(text).split()) for text in HOSTILE]


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts of its cells."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(f"{name}={value}" for name, value in attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data

    def texts(self) -> list[str]:
        return [" ".join(cell.split()) for cell in self.cells]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = hostile_collection(tmp_path_factory.mktemp("hostile") / "collection")
    return comparison(load(folder), None, Collection(folder).read_runs(), {}, True, None)


def test_a_page_has_the_elements_of_tables_alone_and_shows_each_label(table: Table) -> None:
    page = Page(table.html())
    assert foreign_markup(table.html()) == []
    assert {tag for tag, _ in page.elements} == {
        *("style", "div", "h3", "p", "table", "caption", "thead", "tbody", "tr", "th", "td", "b", "u", "ul", "li")
    }
    assert {a for _, attrs in page.elements for a in attrs} == {
        *("class=mixerbench", "class=group", "class=wide", "tabindex=0", *(f"colspan={n}" for n in (1, 2))),
        *(f"scope={scope}" for scope in ("col", "colgroup", "row", "rowgroup")),
    }
    assert set(LABELS) <= set(page.texts())


def test_markdown_renders_to_the_elements_of_tables_alone_and_shows_each_label(table: Table) -> None:
    text = table.markdown()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", text)
    page = Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    tags = {"h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "u", "p"}
    assert {tag for tag, _ in page.elements} <= tags
    assert all(a.startswith("style=text-align:") for _, attrs in page.elements for a in attrs)
    assert set(LABELS) <= set(page.texts())
    assert sum(tag == "h3" for tag, _ in page.elements) == len(table.blocks())


def test_latex_has_no_command_of_the_data_and_no_comment_ends_early(table: Table) -> None:
    text = table.latex("x")
    head, _, body = text.partition("\\begin{table}")
    assert "\\input" not in body and "\\textbackslash{}input" in body
    assert all(line.startswith("% ") for line in head.splitlines())
    labels = [line.partition(" & ")[0] for line in body.splitlines() if line.endswith("\\\\")]
    for label in HOSTILE:
        assert in_latex(label) in labels
        # Without its escapes a label has no character that LaTeX would act upon.
        bare = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\$[<>|]\$|\{[*[]\}", "", in_latex(label))
        assert not re.search(r"[\\{}$&%#^_~`\x00-\x1f\x7f-\x9f]", bare), bare


def test_no_cell_of_a_csv_is_a_formula_and_its_lines_are_those_of_the_table(table: Table) -> None:
    lines = table.csv().splitlines()
    rows = list(csv.reader(lines))
    assert len(rows) == 1 + len(table.rows)
    for cell in (cell for row in rows for cell in row):
        assert not cell.lstrip().startswith(("=", "+", "@")) and not re.match(r"\s*-[^0-9.]", cell), cell
    label = rows[0].index("label")
    assert {row[label].removeprefix("'") for row in rows[1:]} == {*map(plain, HOSTILE), f"{HOSTILE[1]}!"}
    assert len(pd.read_csv(io.StringIO(table.csv()))) == len(table.rows)


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("s_niah_2@4096", "Gated DeltaNet-2, erase range 2", "16.0 ± 0.3 [15.4, 16.6]", "[a] novels: 1 < 2"):
        assert in_markdown(text) == csv_cell(text) == plain(text) == text
    assert in_html('"Q" & it\'s') == '"Q" &amp; it\'s'
    assert plain("a\ud800b").encode() == "a\ufffdb".encode()


@pytest.mark.parametrize("fragment", ["<p onclick=x>", "<a href=x>", "<svg/onload=x>", "<td style=x>", "<SCRIPT>"])
def test_what_no_table_has_is_found_in_a_fragment(fragment: str) -> None:
    assert foreign_markup(f"<div class='mixerbench'><h3>x</h3>{fragment}</div>")


def test_a_table_of_somebody_else_with_more_in_it_stops_the_report(tmp_path: Path) -> None:
    from harness.experiments.load import load_experiment
    from harness.report.page import report

    folder = hostile_collection(tmp_path / "c")
    (folder / "table2.html").write_text("<table><script>x</script></table>")
    with pytest.raises(ValueError, match=r"table2.html: holds <script>, which no table does; delete it"):
        report(folder, load_experiment("demo"))
