"""Text of the benchmarks: aligned tables, and the versions that rows were measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns are left-aligned and two spaces apart."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def commit_text(row: Mapping[str, Any]) -> str:
    """Return the commit that a row was measured on, shortened to ten digits, or `commit unknown`."""
    return f"commit {(row['git_commit'] or 'unknown')[:10]}"
