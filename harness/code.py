"""The code that runs: the content of what is imported, its commit, and how it differs from the code of an entry.

Two trees with equal content have the same hash, wherever they lie: a checkout, a submission's snapshot of it, or an
installed wheel. Nothing here imports torch: the status of thousands of runs must be quick.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.files import CHECKOUT, read_json

SOURCES = ("run.py", "harness", "mixers", "suites", "slurm")
"""The parts of the project that are imported. Of these, only Python files count: profiles of clusters and experiment
files are configuration, and data have hashes of their own."""
SNAPSHOT = "snapshot.json"
"""File in a submission's copy of a checkout that holds the original's commit and dirty flag."""
PLUGINS = ("mixerbench.mixers", "mixerbench.suites")
"""Entry point groups of the packages that add mixers or suites."""
DIGITS = 10
"""Digits of a hash that people read."""


@dataclass(frozen=True)
class Code:
    """The project's code as this process imports it.

    sha256: of all Python files with their paths. parts: the first digits of the same, for each of SOURCES. version: of
    the installed distribution, None if there is none. git_commit: commit of the checkout; None if the package runs from
    elsewhere or git is missing. git_dirty: whether a Python file differs from the commit or is not in it.
    """

    sha256: str
    parts: dict[str, str]
    version: str | None
    git_commit: str | None
    git_dirty: bool | None


@cache
def this_code() -> Code:
    """The code of this process. Read once: what is edited later is not what was imported."""
    return code_of(CHECKOUT)


def code_of(root: Path) -> Code:
    """The code in a folder that holds SOURCES."""
    parts = {part: _digest(root, part) for part in SOURCES}
    whole = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    short = {part: digest[:DIGITS] for part, digest in parts.items()}
    return Code(whole, short, version("mixerbench"), *git_state(root))


def _digest(root: Path, part: str) -> str:
    found = [root / part, *(root / part).rglob("*.py")]
    files = {str(path.relative_to(root)): path for path in found if path.is_file()}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
        known = read_json(root / SNAPSHOT, "submit again, which copies the code anew")
        return known["git_commit"], known["git_dirty"]
    if not (root / ".git").exists():
        return None, None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    paths = [part if part.endswith(".py") else f"{part}/*.py" for part in SOURCES]
    changed = [*git, "status", "--porcelain", "--untracked-files=all", "--", *paths]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=True)
        status = subprocess.run(changed, capture_output=True, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())


@cache
def plugin_versions() -> str | None:
    """Installed packages that add mixers or suites, as text (`name 1.2, other 0.3`); None if there are none."""
    points = [point for group in PLUGINS for point in metadata.entry_points(group=group) if point.dist is not None]
    return ", ".join(sorted({f"{point.dist.name} {point.dist.version}" for point in points})) or None


def files_sha256(modules: Mapping[str, tuple[str, str]]) -> str | None:
    """Hash of the files that define a mixer or a suite, wherever they lie; None if there are none.

    modules: (path, SHA-256) of each file by the name of its module, as mixers.plugins.sources gives them.
    """
    if not modules:
        return None
    return hashlib.sha256(json.dumps(sorted((name, sha) for name, (_, sha) in modules.items())).encode()).hexdigest()


def code_text(birth: Mapping[str, Any]) -> str:
    """The code of a provenance in words: commit, whether it had uncommitted changes, and content if it is known."""
    known = []
    if birth["git_commit"] is not None:
        known.append(birth["git_commit"][:DIGITS] + (" with uncommitted changes" if birth["git_dirty"] else ""))
    elif birth.get("code_version"):
        known.append(f"version {birth['code_version']}")
    else:
        known.append("commit not known")
    if birth.get("code_sha256"):
        known.append(f"content {birth['code_sha256'][:DIGITS]}")
    return ", ".join(known)


def changed_since(entry: Mapping[str, Any], files: str | None) -> list[str]:
    """Parts of the code that differ between an entry of a run's history and this process: parts of the project, files
    that define mixers or suites, packages with plugins. Empty if nothing does, or if the entry does not tell.

    files: hash of the files that would define the mixer and the suite now (`files_sha256`); None without any, or if
    they are not known.
    """
    now = this_code()
    if entry.get("code_sha256") is None:  # written before contents were recorded
        same = entry.get("git_commit") in (None, now.git_commit) and not entry.get("git_dirty")
        return [] if same else ["commit"]
    parts: dict[str, str] = entry.get("parts", {})
    changed = [part for part in SOURCES if parts.get(part) != now.parts[part]] if parts else []
    if not changed and entry["code_sha256"] != now.sha256:
        changed = ["code"]
    if files is not None and entry.get("files_sha256") not in (None, files):
        changed.append("the files of its mixer or suite")
    if entry.get("plugins") != plugin_versions():
        changed.append(f"plugins ({entry.get('plugins') or 'none'}, now {plugin_versions() or 'none'})")
    return changed


def contributing(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a history that the result rests on, oldest first.

    An entry starts from `reached`: a step of training, or a number of answers. Work beyond the start of a later entry
    was lost and done again, so an entry counts only if it starts before all later ones.
    """
    kept: list[dict[str, Any]] = []
    for entry in reversed(list(entries)):
        if not kept or entry["reached"] < kept[-1]["reached"]:
            kept.append(dict(entry))
    return kept[::-1]
