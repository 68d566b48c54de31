"""The text that benchmarks share: aligned columns and the commit of a row."""

from suites.bench.rendering import aligned, commit_text


def test_columns_are_aligned_and_lines_end_without_blanks() -> None:
    assert aligned([["a", "bb", "c"], ["long", "b", ""]]) == ["a     bb  c", "long  b"]


def test_a_commit_is_shortened_and_an_unknown_one_named() -> None:
    assert commit_text({"git_commit": "0123456789abcdef"}) == "commit 0123456789"
    assert commit_text({"git_commit": None}) == "commit unknown"
