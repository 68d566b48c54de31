"""Settings that every test runs under: no network, fixed threads, no retries against a Hub that cannot be reached."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # The Triton kernels run on CPU tensors then. It must be said before triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from harness import progress
from harness.data.prepare import prepare
from suites.shared import offline


@pytest.fixture(scope="session")
def offline_data() -> Path:
    """The language tasks on this machine, downloaded once into the project's cache."""
    return offline.fetch()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a little real prose: the first chapters of the embedded corpus' Austen."""
    from harness.data.corpus import documents

    folder = tmp_path_factory.mktemp("data")
    texts = [d.text for d, _ in zip(documents("train", ["austen"]), range(12), strict=False)]
    source = folder / "prose.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return prepare(source, "embedded", folder / "shards").folder


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(progress, "SILENCE", 3600.0)  # what a command prints does not depend on this machine's speed


def pytest_configure() -> None:
    # Workers of pytest-xdist share two cores: more threads than that only wait for each other.
    torch.set_num_threads(1)
