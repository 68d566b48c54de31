"""Provenance of a number: the code, packages, device and command that made it."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from harness.files import CHECKOUT

PACKAGES = {
    "version_torch": "torch",
    "version_triton": "triton",
    "version_fla": "flash-linear-attention",
    "version_mamba_ssm": "mamba-ssm",
    "version_lm_eval": "lm-eval",
    "version_transformers": "transformers",
}
"""Package whose version each field holds."""
SNAPSHOT = "snapshot.json"
"""File in a submission's copy of a checkout that holds the original's commit and dirty flag."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The birth certificate of a number. A version is None if the package is not installed.

    git_commit: commit of the project's checkout; None if the package runs from elsewhere or git is missing.
    git_dirty: whether files that are not ignored differ from the commit, untracked ones included.
    device: name of the GPU or model of the CPU. backend: the implementation that ran the mixer.
    threads: CPU threads of torch. time: UTC, ISO 8601, to the second.
    """

    config_hash: str
    git_commit: str | None
    git_dirty: bool | None
    version_python: str
    version_torch: str | None
    version_triton: str | None
    version_fla: str | None
    version_mamba_ssm: str | None
    version_lm_eval: str | None
    version_transformers: str | None
    device: str
    dtype: str
    backend: str
    threads: int
    time: str
    command: str


def provenance(
    config_hash: str,
    device: str | torch.device,
    dtype: str | torch.dtype,
    backend: str,
    command: str | None = None,
) -> Provenance:
    """Provenance of the numbers that this process produces.

    command: the command line to record if it is not this process's own, as in a job started by a scheduler.
    """
    commit, dirty = git_state(CHECKOUT)
    return Provenance(
        config_hash=config_hash,
        git_commit=commit,
        git_dirty=dirty,
        version_python=platform.python_version(),
        **{field: version(package) for field, package in PACKAGES.items()},
        device=device_name(torch.device(device)),
        dtype=str(dtype).removeprefix("torch."),
        backend=backend,
        threads=torch.get_num_threads(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv) if command is None else command,
    )


def version(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the repository whose top folder is `root`; (None, None) without one or without git.

    A repository further up does not count: an environment inside some checkout is not that checkout's code. A snapshot
    of a checkout reports the state of the original.
    """
    if (root / SNAPSHOT).is_file():
        known = json.loads((root / SNAPSHOT).read_text(encoding="utf-8"))
        return known["git_commit"], known["git_dirty"]
    if not (root / ".git").exists():
        return None, None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())


def device_name(device: torch.device) -> str:
    """Name of the GPU, or model of the CPU (its architecture if the system does not tell the model)."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
