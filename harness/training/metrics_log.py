"""Metrics of a run in training: metrics.jsonl, TensorBoard, a tracker, and a profile."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from harness.experiments.run_config import RunConfig
from harness.experiments.schema import TrainConfig
from harness.files import write_atomic
from harness.run_folder import RunFolder

PROFILE_STEPS = 3  # steps that are recorded, after as many that are not

log = logging.getLogger(__name__)

Write = Callable[[dict[str, float]], None]
"""Writes one line of metrics, which includes `step`."""


@contextlib.contextmanager
def metrics_files(run_dir: Path, step: int) -> Iterator[Write]:
    """Open metrics.jsonl and tensorboard/ of a run that resumes after `step`, and yield a function that writes to both.

    Lines of later steps are dropped: the run repeats these steps. A number that is not finite becomes null.
    """
    from torch.utils.tensorboard import SummaryWriter

    path = RunFolder(run_dir).metrics
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if _step_of(line) <= step]
        write_atomic(path, "".join(line + "\n" for line in lines).encode())
    writer = SummaryWriter(str(RunFolder(run_dir).tensorboard), purge_step=step or None)
    with contextlib.closing(writer), open(path, "a", encoding="utf-8") as file:

        def write(line: dict[str, float]) -> None:
            finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
            file.write(json.dumps(finite) + "\n")
            file.flush()
            for key, value in finite.items():
                if key != "step" and value is not None:
                    writer.add_scalar(key, value, line["step"])

        yield write


def _step_of(line: str) -> float:
    """Step of a metrics line; infinite if the line is damaged, as by the death of its process."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def require_tracker(config: TrainConfig) -> None:
    """Raise ValueError if the package of `train.tracker` is not installed."""
    if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
        raise ValueError(
            f"train.tracker: {config.tracker} is not installed; pip install {config.tracker}, or leave the field out"
        )


@contextlib.contextmanager
def tracked(config: RunConfig, run_dir: Path) -> Iterator[Write]:
    """Yield a function that sends a line of metrics to the run's tracker; it does nothing if the run has none.

    Metrics go to the project WANDB_PROJECT (default `mixerbench`), to a run of the same id that resumes when this one
    does. wandb keeps its files in the run's folder, trackio in TRACKIO_DIR.

    Raises ValueError if the tracker cannot start. If it fails later, the log says so once and training continues
    without it: metrics.jsonl has everything.
    """
    name = config.train.tracker
    if name is None:
        yield lambda line: None
        return
    tracker = importlib.import_module(name)
    place = {"id": config.run_id, "dir": str(run_dir)} if name == "wandb" else {}
    try:
        tracker.init(
            project=os.environ.get("WANDB_PROJECT", "mixerbench"),
            name=config.run_id,
            group=config.label,
            config=config.model_dump(mode="json"),
            resume="allow",
            **place,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"train.tracker: {name} does not start ({reason}); log in, set it to work offline, or leave the field out"
        ) from error
    lost = False

    def write(line: dict[str, float]) -> None:
        nonlocal lost
        if lost:
            return
        try:
            finite = {key: value for key, value in line.items() if key != "step" and math.isfinite(value)}
            tracker.log(finite, step=int(line["step"]))
        except Exception as error:
            lost = True
            log.warning(f"{name} accepts no more metrics ({error}); metrics.jsonl has them all")

    failed = {}
    try:
        yield write
    except BaseException:
        failed = {"exit_code": 1} if name == "wandb" else {}
        raise
    finally:
        with contextlib.suppress(Exception):  # metrics.jsonl has everything
            tracker.finish(**failed)


@contextlib.contextmanager
def profiled(folder: Path | None, device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield a function to call after every step. It does nothing if `folder` is None.

    PROFILE_STEPS steps are recorded after as many others. The folder gets `trace.json` for chrome://tracing or
    Perfetto, and `operators.txt` with the ten costliest operators.
    """
    if folder is None:
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    folder.mkdir(parents=True, exist_ok=True)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]

    def write(run: Any) -> None:
        run.export_chrome_trace(str(folder / "trace.json"))
        table = run.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=11)
        # The profiler lists each step as if it were an operator.
        lines = [line for line in table.splitlines() if not line.lstrip().startswith("ProfilerStep")]
        write_atomic(folder / "operators.txt", "\n".join(lines).encode())

    plan = schedule(wait=PROFILE_STEPS - 1, warmup=1, active=PROFILE_STEPS, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write, record_shapes=True) as run:
        yield run.step
