"""Parts of the report that a reader sorts and filters: numbers by suite, and items on which models disagree."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.records.stats import mean_stderr
from harness.records.store import load_samples
from harness.report.explore import LIBRARY, MOST_ITEMS, items, scripts, suites
from harness.tables.comparison import comparison
from harness.tables.forms import Table
from tests.harness.tables.table_records import HOSTILE, record, store
from tests.harness.tables.test_escaping import Page

N = 100


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Two models that differ on items 10 to 49, solve the first ten and fail on the rest."""
    records = []
    for label, share in ((HOSTILE[0], 10), ("kda", 50)):
        scores = (np.arange(N) < share).astype(float)
        own = {"samples": tuple(scores), "settings": {"items": "x"}, "mixer": "kda"}
        records.append(record(label, "piqa", "acc", *mean_stderr(scores), N, **own))
        records.append(record(label, "boolq", "acc", 0.5, 0.01, mixer="kda"))
    records = [replace(each, run=f"run-{share}") for each, share in zip(records, "1122", strict=True)]
    return comparison(store(tmp_path, records), samples=load_samples(tmp_path))


def test_each_suite_is_a_table_that_sorts_by_number_and_shows_text_as_text(table: Table) -> None:
    page = Page(suites(table))
    assert page.texts()[:3] == ["model", "layout", "PIQA acc ↑"] and HOSTILE[0] in page.texts()
    orders = [a for tag, attrs in page.elements if tag == "td" for a in attrs]
    assert orders == ["data-order=10", "data-order=50", "data-order=50", "data-order=50"]
    assert "script" not in {tag for tag, _ in page.elements}


def test_items_that_tell_models_apart_are_counted_and_shown_with_each_score(table: Table) -> None:
    text = items(table)
    said = "PIQA acc: 40 of 100 items told models apart; all score 1 on 10 and 0 on 50"
    assert text.count("<details") == 1 and said in text  # BoolQ has no scores
    shown = re.findall(r'<th scope="row">(\d+)</th><td>0</td><td>1</td>', text)
    assert shown == [str(i) for i in range(10, 10 + MOST_ITEMS)]


def test_the_policy_names_each_script_by_its_hash_and_the_library_has_its_licence() -> None:
    code, hashes = scripts()
    found = re.findall(r"<script>(.*?)</script>", code, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    assert hashes == " ".join(f"'sha256-{digest}'" for digest in digests) and len(found) == 2
    assert found[0].startswith("/* The MIT License (MIT) Copyright SpryMedia") and "http" in found[0]
    assert {path.name for path in LIBRARY.iterdir()} == {"LICENSE", "dataTables.min.js"}
