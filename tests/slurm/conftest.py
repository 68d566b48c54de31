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


class FakeSlurm:
    """Slurm's commands as scripts that note how they are called and accept everything; nothing ever runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        config = "MaxArraySize = 1001\nKillWait = 30 sec\nAccountingStorageType = (null)\nClusterName = fake"
        partition = "PartitionName=main Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP"
        self.answer("scontrol", f'case "$*" in *config) echo "{config}";; *partition*) echo "{partition}";; esac')
        self.answer("sinfo", 'echo "main|n1|64|256000|gpu:a100:4|a100"')
        self.answer(
            "sbatch",
            'for last; do :; done; case "$*" in --test-only*) cat > $LOG/tested;; *) n=$(ls $LOG | grep -c script);'
            " cp $last $LOG/script-$n; env > $LOG/env-$n; echo Submitted batch job 10$n;; esac",
        )
        each = """n=${s##*-}; echo "10$n|$(sed -n 's/^#SBATCH --comment=//p' $s | tr -d "'")" """
        self.answer("squeue", f'case "$*" in *--me*) for s in $LOG/script-*; do {each}; done;; esac')
        for command in ("scancel", "srun"):
            self.answer(command, "true")

    def answer(self, command: str, body: str) -> None:
        """Let a command do this, in sh."""
        path = self.folder / "bin" / command
        path.write_text(f'#!/bin/sh\nLOG={self.folder}\necho "{command} $*" >> $LOG/calls\n{body}\n')
        path.chmod(0o755)

    def calls(self, command: str) -> list[str]:
        """The arguments of each call of a command so far."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [line.removeprefix(f"{command} ") for line in lines if line.startswith(f"{command} ")]

    def scripts(self) -> list[str]:
        """The batch scripts that were submitted, in their order."""
        paths = sorted(self.folder.glob("script-*"), key=lambda path: int(path.name.partition("-")[2]))
        return [path.read_text() for path in paths]

    def environments(self) -> list[dict[str, str]]:
        """The environment of each call of sbatch that submitted something."""
        texts = [path.read_text() for path in sorted(self.folder.glob("env-*"))]
        return [dict(line.split("=", 1) for line in text.splitlines() if "=" in line) for text in texts]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's commands on the PATH, as far as a submission needs them."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path}/slurm/bin:{os.environ['PATH']}")
    return fake
