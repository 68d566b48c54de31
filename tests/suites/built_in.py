"""The registry of a new process, for tests that load suites from files."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from harness.records.metrics import BUILT_IN, METRICS
from suites import registry


@contextmanager
def built_in_only() -> Iterator[None]:
    """Only built-in suites and metrics are registered at first; afterwards the registry is as it was before."""
    suites = {name: registry.suite(name) for name in registry.BUILT_IN}
    with patch.dict(METRICS), patch.object(registry, "_suites", suites), patch.object(registry, "_files", {}):
        for name in METRICS.keys() - BUILT_IN:
            del METRICS[name]
        yield
