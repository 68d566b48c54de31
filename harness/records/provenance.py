"""Where a number was made: code, packages, device and command, gathered once for every record."""

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
# In a copy of a checkout that a submission keeps: what git said of the original.
SNAPSHOT = "snapshot.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The birth certificate of a number. A version is None when the package is not installed.

    git_commit, git_dirty: of the project's checkout; None when the package runs from elsewhere or git is missing.
    git_dirty: tracked or untracked, not ignored, files differ from the commit.
    device: the name of the GPU or the model of the CPU. backend: which implementation ran the mixer.
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
    """Everything that this process knows about how its numbers come about.

    command: the command line to record where it is not this process's own, as in a job started by a scheduler.
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
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the repository whose top is `root`; (None, None) where that is none or git cannot read it.

    A repository further up does not count: an environment inside some checkout is not that checkout's code. A
    snapshot of a checkout has what was true of it.
    """
    if (root / SNAPSHOT).is_file():
        known = json.loads((root / SNAPSHOT).read_text())
        return known["git_commit"], known["git_dirty"]
    if not (root / ".git").exists():
        return None, None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's model where the system tells it and its architecture where not."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
