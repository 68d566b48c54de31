"""Fixtures of the tests of RULER: a tokenizer, an empty cache, and small passages in place of the Hub's."""

import pytest

from suites.ruler import haystack
from suites.ruler import samples as ruler_samples
from tests.suites.retriever import tokenizer
from tests.suites.ruler.reading import hotpotqa_rows, squad_rows


@pytest.fixture(scope="session")
def tok():
    """The embedded tokenizer."""
    return tokenizer()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of cached samples, empty before every test."""
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    return tmp_path / "ruler"


@pytest.fixture
def data(monkeypatch):
    """Small SQuAD-like and HotpotQA-like passages, in reach without the Hub."""
    small = {"squad": haystack.squad_passages(squad_rows()), "hotpotqa": haystack.hotpotqa_passages(hotpotqa_rows())}
    monkeypatch.setattr(ruler_samples, "passages", lambda name, source: small[name])
