"""What a submission keeps: itself, and the code of its jobs, so that editing the checkout changes none that waits.

runs/code/<hash>/                                the code, once for the same content
runs/submissions/<name>-<time>/experiment.yaml   the resolved experiment
                              /plan.json         its runs and their units
                              /jobs.json         Slurm's ids of its arrays by name
                              /arrays/           what each task of an array works on
                              /logs/             submitit's: scripts, pickles, output
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from harness.experiments.schema import Experiment
from harness.files import CHECKOUT, cache_dir, write_atomic
from harness.records.provenance import SNAPSHOT, git_state
from slurm.plan import RunPlan

PARTS = ("run.py", "pyproject.toml", "harness", "mixers", "suites", "slurm")


def snapshot(runs_root: Path, checkout: Path = CHECKOUT) -> Path:
    """A copy of the project's code in `code/` of the folder of runs, made once for the same content; its folder.

    In a git checkout that is what git tracks or would (ignored files are left out); elsewhere everything but bytecode.
    """
    files = _files(checkout)
    commit, dirty = git_state(checkout)
    digest = hashlib.sha256(json.dumps([commit, dirty]).encode())
    for file in files:
        digest.update(f"{file}\0".encode() + hashlib.sha256((checkout / file).read_bytes()).digest())
    target = runs_root / "code" / digest.hexdigest()[:16]
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    for file in files:
        (partial / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkout / file, partial / file)
    (partial / SNAPSHOT).write_text(json.dumps({"git_commit": commit, "git_dirty": dirty}))
    try:
        partial.rename(target)
    except OSError:  # another submission has made the same one meanwhile
        shutil.rmtree(partial)
    return target


def _files(checkout: Path) -> list[str]:
    """Relative paths of the code, sorted."""
    if (checkout / ".git").exists():
        listed = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PARTS]
        out = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        return sorted(f for f in set(out.split("\0")) if f and (checkout / f).is_file())
    found = [p for part in PARTS for p in [checkout / part, *(checkout / part).rglob("*")]]
    return sorted(str(p.relative_to(checkout)) for p in found if p.is_file() and "__pycache__" not in p.parts)


def environment(code: Path) -> dict[str, str]:
    """What jobs of a submission see: its code before that of the folder they are started in, and this cache."""
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "MIXERBENCH_CACHE": str(cache_dir())}


def open_submission(experiment: Experiment, plans: Sequence[RunPlan], runs_root: Path, cluster: str) -> Path:
    """Write down a new submission; its folder."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = runs_root / "submissions" / f"{experiment.name}-{stamp}"
    for attempt in range(1000):
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = folder.with_name(f"{experiment.name}-{stamp}-{attempt}")
    content = experiment.model_dump(mode="json", exclude_defaults=True)
    write_atomic(folder / "experiment.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    runs = [
        {
            "run": plan.config.run_id,
            "label": plan.config.label,
            "layout": plan.config.layout,
            "preset": plan.config.preset,
            "seed": plan.config.seed,
            "steps": plan.config.data.steps,
            "units": plan.units,
        }
        for plan in plans
    ]
    head = {"experiment": experiment.name, "cluster": cluster, "host": socket.gethostname(), "pid": os.getpid()}
    write_atomic(folder / "plan.json", json.dumps(head | {"time": time.time(), "runs": runs}).encode())
    return folder


def keep_mixer_files(
    experiment: Experiment, plans: Sequence[RunPlan], runs_root: Path
) -> tuple[Experiment, list[RunPlan]]:
    """The same, with the files that define mixers copied among the runs: editing one changes no job that waits."""
    kept: dict[str, Path] = {}
    for plan in plans:
        file = plan.config.mixer_file
        if file is not None and file.sha256 not in kept:
            content = Path(file.path).read_bytes()
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise ValueError(f"mixer_file: {file.path} has changed while it was being submitted; submit again")
            kept[file.sha256] = runs_root / "code" / f"mixer-{file.sha256[:16]}.py"
            write_atomic(kept[file.sha256], content)
    if not kept:
        return experiment, list(plans)

    def moved(plan: RunPlan) -> RunPlan:
        file = plan.config.mixer_file
        if file is None:
            return plan
        copy = file.model_copy(update={"path": str(kept[file.sha256])})
        config = plan.config.model_copy(update={"mixer_file": copy})
        return RunPlan(config, plan.folder, plan.units, plan.missing)

    files = [str(path) for path in kept.values()]
    return experiment.model_copy(update={"mixer_files": files}), [moved(plan) for plan in plans]
