"""Tables byte for byte, in all four forms.

After an intended change, `MIXERBENCH_WRITE_GOLDENS=1 pytest tests/harness/tables/test_forms.py` rewrites the files of
tests/harness/tables/golden; read them before you commit them.
"""

from __future__ import annotations

import csv
import html.parser
import io
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.tables.comparison import comparison
from harness.tables.forms import Table
from harness.tables.html_form import SHARED
from harness.tables.paper import paper_table, printed_table
from harness.tables.verdicts import MET, NOT_MET, UNDECIDED, Verdict
from tests.harness.tables.table_records import RUNS, expectation, golden_records, of_table2, of_table5, record, store

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("comparison", "table2", "table5", "table3-printed", "table5-printed")
FORMS = ("md", "tex", "csv", "html")


def make(name: str, folder: Path) -> Table:
    if name == "comparison":
        return comparison(store(folder, golden_records()), runs=RUNS)
    if name == "table2":
        frame, runs, samples = of_table2(folder)
        return paper_table("table2", frame, runs, samples, expected=expectation("table2", acc=12, lambada_ppl=0.3))
    if name == "table5":
        frame, runs, samples = of_table5(folder)
        return paper_table("table5", frame, runs, samples, expected=expectation("table5", acc=0.9, contains=1.0))
    return printed_table(name.removesuffix("-printed"))


def written(table: Table, name: str, form: str) -> str:
    return {"md": table.markdown, "tex": lambda: table.latex(name), "csv": table.csv, "html": table.html}[form]()


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_the_golden_ones_in_every_form(name, tmp_path):
    table = make(name, tmp_path)
    for form in FORMS:
        path, text = GOLDEN / f"{name}.{form}", written(table, name, form)
        if os.environ.get("MIXERBENCH_WRITE_GOLDENS") == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode())
        assert text.encode() == path.read_bytes(), f"{path.name} differs"


class Shape(html.parser.HTMLParser):
    """Collects the width of every row of a fragment, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.widths: list[list[int]] = []

    def handle_starttag(self, tag, attrs):
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "table":
            self.widths.append([])
        elif tag == "tr":
            self.widths[-1].append(0)
        elif tag in ("td", "th"):
            self.widths[-1][-1] += int(dict(attrs).get("colspan", 1))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_well_made(name, tmp_path):
    table = make(name, tmp_path)
    shape = Shape()
    shape.feed(table.html())
    assert not shape.open and all(len(set(widths)) == 1 for widths in shape.widths)
    assert "http" not in table.html() and "<script" not in table.html()
    frame = pd.read_csv(io.StringIO(table.csv()))
    assert len(frame) == len(table.rows)
    text = table.markdown()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    latex = table.latex(name)
    for own in latex.split("\\begin{tabular}{")[1:]:
        columns = own.partition("}")[0]
        body = own.partition("\\end{tabular}")[0]
        for line in [line for line in body.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
    visible = re.sub(r"(?m)^%.*$", "", latex)
    assert not re.search(r"[±−–↑↓≈≠]", visible)
    braces = re.sub(r"\\\\|\\[{}]", "", visible)  # without line breaks and escaped braces
    assert braces.count("{") == braces.count("}")
    for environment in set(re.findall(r"\\begin\{(\w+)\}", visible)):
        assert visible.count(f"\\begin{{{environment}}}") == visible.count(f"\\end{{{environment}}}")


def test_verdicts_stand_below_the_numbers_in_every_form_but_csv(tmp_path):
    table = make("comparison", tmp_path)
    bare = {form: written(table, "comparison", form) for form in FORMS}
    table.truths = [
        Verdict(MET, "a|b is < 3", "2 & 1"),
        Verdict(NOT_MET, "c holds", "−1", "arXiv 1"),
        Verdict(UNDECIDED, "d", ""),
    ]
    assert table.csv() == bare["csv"]
    text = table.markdown()
    section = text[text.index("### Truths") : text.index("\n- ")]
    assert section.splitlines() == [
        "### Truths",
        "",
        "1 met, 1 not met, 1 undecided",
        "",
        "| verdict | truth | numbers |",
        "| --- | --- | --- |",
        "| met | a\\|b is < 3 | 2 & 1 |",
        "| **not met** | c holds (arXiv 1) | −1 |",
        "| **undecided** | d |  |",
    ]
    assert text.replace(section + "\n", "") == bare["md"]
    (found,) = SHARED.findall(table.html())
    assert table.html().replace(found, "") == bare["html"]
    assert '<th scope="row" class="near">met</th><td>a|b is &lt; 3</td><td>2 &amp; 1</td>' in found
    assert '<th scope="row" class="far">not met</th><td>c holds (arXiv 1)</td>' in found
    assert '<th scope="row">undecided</th>' in found
    assert "met: a$|$b is $<$ 3: 2 \\& 1.\\par" in table.latex(
        "x"
    ) and "not met: c holds (arXiv 1): $-$1" in table.latex("x")


def test_a_csv_has_one_header_and_numbers_below_it(tmp_path):
    rows = list(csv.reader(make("table2", tmp_path).csv().splitlines()))
    header = rows[0]
    assert len(set(header)) == len(header)
    numbers = [cell for row in rows[1:] for cell in row[3:] if cell]
    assert numbers and all(float(cell) == float(cell) for cell in numbers)


def test_a_bar_in_a_label_does_not_break_the_table(tmp_path):
    text = comparison(store(tmp_path, [record("a|b", "piqa", "acc", 0.5, 0.1, mixer="gdn2")])).markdown()
    assert "| recurrent | a\\|b | 50.0 ± 10.0" in text
