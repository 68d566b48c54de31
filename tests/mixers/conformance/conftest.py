"""Run the kit as on a CPU outside the tests: without Triton's interpreter, for which fla's kernels are not made."""

import pytest

from mixers.registry import entries


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    entries()  # imported first: the kernels' launcher takes `interpreted` by name and keeps the real one
    monkeypatch.setattr("mixers.backends.interpreted", lambda: False)
