"""Tables in HTML: what a screen reader, a keyboard and a dark screen need."""

from __future__ import annotations

from harness.tables.comparison import comparison
from harness.tables.html_form import SHARED, STYLE
from harness.tables.verdicts import MET, Verdict
from tests.harness.tables.table_records import RUNS, golden_records, store
from tests.harness.tables.test_escaping import Page


def test_every_table_has_a_caption_and_every_heading_its_scope(tmp_path):
    table = comparison(store(tmp_path, golden_records()), runs=RUNS)
    table.truths = [Verdict(MET, "a", "1")]
    page = Page(table.html())
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") == len(table.blocks()) + 1
    bare = [attrs for tag, attrs in page.elements if tag == "th" and not any(a.startswith("scope=") for a in attrs)]
    assert not bare
    assert all("tabindex=0" in attrs for tag, attrs in page.elements if tag == "div" and "class=wide" in attrs)


def test_the_summary_stands_first_and_is_found_again(tmp_path):
    table = comparison(store(tmp_path, golden_records()), runs=RUNS)
    bare = table.html()
    table.summary = ["a <b> & c", "d"]
    (found,) = SHARED.findall(table.html())
    assert "<li>a &lt;b&gt; &amp; c</li>\n<li>d</li>" in found and table.html().replace(found, "") == bare
    assert table.html().index("In short") < table.html().index("<table>")


def test_the_style_knows_dark_screens_and_paper():
    assert "prefers-color-scheme: dark" in STYLE and "@media print" in STYLE and "position: sticky" in STYLE
