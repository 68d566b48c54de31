"""Settings that every test runs under: no network, fixed threads, no retries against a Hub that cannot be reached."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


def pytest_configure() -> None:
    # Workers of pytest-xdist share two cores: more threads than that only wait for each other.
    torch.set_num_threads(1)
