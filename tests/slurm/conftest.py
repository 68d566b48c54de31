"""Fixtures for tests that need a real Slurm: one cluster per session, started when a test first asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster.minislurm import MiniSlurm, installed, running


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slurm") and not installed():
        pytest.skip("Slurm is not installed; `make test-slurm` installs it from Debian's packages (root)")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[MiniSlurm]:
    """Two nodes of 16 CPUs and two fake GPUs, with accounting; see cluster/minislurm.py."""
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_without_accounting() -> Iterator[MiniSlurm]:
    """The same without slurmdbd: sacct fails, accounts and QOS mean nothing."""
    with running(accounting=False) as cluster:
        yield cluster


@pytest.fixture
def slurm_at_hand(slurm_cluster: MiniSlurm, monkeypatch: pytest.MonkeyPatch) -> MiniSlurm:
    """slurm_cluster, also for Slurm's commands that this process calls."""
    for name in os.environ.keys() - slurm_cluster.env.keys():
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.env[name])
    return slurm_cluster
