"""Fixtures: a finished experiment, and for tests that need a real Slurm one cluster per session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster.minislurm import MiniSlurm, installed, running
from tests.slurm.experiments import call, experiment


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """A folder with an experiment of one run, which is trained and evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    experiment(folder, small_data, mixers=["attention"], suites={"recall": {"pairs": [2], "samples": 4}})
    call(folder, "submit", "--cluster", "debug")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`: tiny.yaml, and runs/ of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path
