"""The frame of a page: headings that the contents lead to, and texts that stay texts."""

from __future__ import annotations

import re

from harness.report.document import document
from tests.harness.tables.table_records import HOSTILE
from tests.harness.tables.test_escaping import Page


def test_contents_lead_to_every_section_that_has_something() -> None:
    page = document("name", "text", "facts", {"What it is": "<p>a</p>", "Empty": "", "b.c-d": "<p>b</p>"})
    links = re.findall(r'href="#([^"]+)"', page[: page.index("<main")])
    assert links == ["main", "What-it-is", "b.c-d"]
    assert re.findall(r'<h2 id="([^"]+)">', page) == links[1:] and "Empty" not in page[: page.index("<script>")]


def test_foreign_titles_and_headings_are_texts() -> None:
    page = document(HOSTILE[0], HOSTILE[1], HOSTILE[2], {HOSTILE[0]: "<p>a</p>"})
    tags = [tag for tag, _ in Page(page).elements]
    assert tags.count("h1") == 1 and "img" not in tags and "table" not in tags and tags.count("script") == 2
