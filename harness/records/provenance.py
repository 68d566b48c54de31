"""Provenance of a number: the code, packages, device and command that made it."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from harness.code import files_sha256, plugin_versions, this_code, version
from mixers.plugins import Modules, SourceFile, sources

PACKAGES = {
    "version_torch": "torch",
    "version_triton": "triton",
    "version_fla": "flash-linear-attention",
    "version_mamba_ssm": "mamba-ssm",
    "version_lm_eval": "lm-eval",
    "version_transformers": "transformers",
}
"""Package whose version each field holds."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The birth certificate of a number. A version is None if the package is not installed.

    git_commit: commit of the project's checkout; None if the package runs from elsewhere or git is missing.
    git_dirty: whether a Python file of the project differs from the commit or is not in it.
    version_torch: with its build, such as `2.12.0+cu130`.
    device: name of the GPU or model of the CPU. backend: the implementation that ran the mixer.
    threads: CPU threads of torch. time: UTC, ISO 8601, to the second.
    code_sha256: content of the project's Python files. code_version: of the installed distribution, None without one.
    files_sha256: content of the files that define the mixer and the suite, and of what they import from beside
        themselves; None if they are built in. plugins: packages that add mixers or suites, with versions.
    These four are None in records that were written before contents were recorded.
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
    code_sha256: str | None = None
    code_version: str | None = None
    files_sha256: str | None = None
    plugins: str | None = None


def provenance(
    config_hash: str,
    device: str | torch.device,
    dtype: str | torch.dtype,
    backend: str,
    command: str | None = None,
    files: Iterable[SourceFile | None] = (),
) -> Provenance:
    """Provenance of the numbers that this process produces.

    command: the command line to record if it is not this process's own, as in a job started by a scheduler. files: what
    defines the mixer and the suite, if they are not built in.
    """
    code = this_code()
    versions = {field: version(package) for field, package in PACKAGES.items()}
    return Provenance(
        config_hash=config_hash,
        git_commit=code.git_commit,
        git_dirty=code.git_dirty,
        version_python=platform.python_version(),
        **versions | {"version_torch": torch.__version__},  # the distribution's version may lack the CUDA build
        device=device_name(torch.device(device)),
        dtype=str(dtype).removeprefix("torch."),
        backend=backend,
        threads=torch.get_num_threads(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv) if command is None else command,
        code_sha256=code.sha256,
        code_version=code.version,
        files_sha256=files_now(files),
        plugins=plugin_versions(),
    )


def entry(birth: Provenance, reached: int, **more: Any) -> dict[str, Any]:
    """An entry of a history: the start of a training or of an evaluation.

    reached: the step, or the number of answers, that it starts from. more: what else tells two starts apart, such as
    the number of processes. Besides, `parts` holds what `harness.code.changed_since` compares.
    """
    return asdict(birth) | {"reached": reached, "parts": this_code().parts} | more


def files_now(files: Iterable[SourceFile | None]) -> str | None:
    """Hash of the files that define a mixer and a suite, with what they import from beside them; None without any."""
    return files_sha256(_modules(files))


def _modules(files: Iterable[SourceFile | None]) -> Modules:
    given = [file for file in files if file is not None]
    return {f"{number}{name}": each for number, file in enumerate(given) for name, each in sources(file).items()}


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
