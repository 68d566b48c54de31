"""What training says about itself: metrics, spikes of the loss, a profile, and whether its kernels' gradients are
right on this device."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.experiments.schema import RunConfig, TrainConfig
from harness.files import write_atomic
from harness.model.language_model import LanguageModel
from mixers import Mixer
from mixers.backends import TORCH

MATMULS = 10
SPIKE_WINDOW = 100  # losses that the next is held against
SPIKE_LEAST = 20  # fewer say little about their spread
SPIKE_DEVIATIONS = 6.0
PROFILE_STEPS = 3  # recorded ones, behind as many that are not

log = logging.getLogger(__name__)

Write = Callable[[dict[str, float]], None]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in a dtype: the best of ten, each of some milliseconds."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype, generator=generator)
    best = 0.0
    for _ in range(MATMULS):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


@cache
def ceiling(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """`matmul_rate` with so many CPU threads, measured once in a process."""
    return matmul_rate(device, dtype)


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss lies more than SPIKE_DEVIATIONS standard deviations above the mean of the last SPIKE_WINDOW before
    it; never where there are fewer than SPIKE_LEAST."""
    window = before[-SPIKE_WINDOW:]
    if len(window) < SPIKE_LEAST:
        return False
    return loss > statistics.fmean(window) + SPIKE_DEVIATIONS * statistics.stdev(window)


@contextlib.contextmanager
def metrics_files(run_dir: Path, step: int) -> Iterator[Write]:
    """Opens metrics.jsonl and tensorboard/ of a run that goes on behind `step`; gives what writes a line to both.

    Lines of later steps, which the run will do again, are dropped. A number that is not finite becomes null.
    """
    from torch.utils.tensorboard import SummaryWriter

    path = run_dir / "metrics.jsonl"
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_atomic(path, "".join(line + "\n" for line in lines).encode())
    writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step or None)
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
    """The step of a metrics line; infinite for one that was cut off when its process died."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


def require_tracker(config: TrainConfig) -> None:
    """Raises ValueError when the package that metrics are to go to is not there."""
    if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
        raise ValueError(
            f"train.tracker: {config.tracker} is not installed; pip install {config.tracker}, or leave the field out"
        )


@contextlib.contextmanager
def tracked(config: RunConfig, run_dir: Path) -> Iterator[Write]:
    """Gives what sends a line of metrics to the run's tracker, where it has one: to the project WANDB_PROJECT,
    `mixerbench` by default, as a run of the same id that goes on when this one does. wandb keeps its files among the
    run's, trackio where TRACKIO_DIR says.

    Raises ValueError when the tracker cannot begin. One that fails later is named in the log, once, and left alone:
    metrics.jsonl has everything.
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
            f"train.tracker: {name} does not begin ({reason}); log in, have it work offline, or leave the field out"
        ) from error
    lost = False

    def write(line: dict[str, float]) -> None:
        nonlocal lost
        if lost:
            return
        try:
            tracker.log({k: v for k, v in line.items() if k != "step"}, step=int(line["step"]))
        except Exception as error:
            lost = True
            log.warning(f"{name} takes no more metrics ({error}); metrics.jsonl has them all")

    failed = {}
    try:
        yield write
    except BaseException:
        failed = {"exit_code": 1} if name == "wandb" else {}
        raise
    finally:
        with contextlib.suppress(Exception):  # as above
            tracker.finish(**failed)


@contextlib.contextmanager
def profiled(folder: Path | None, device: torch.device) -> Iterator[Callable[[], None]]:
    """Gives what is called after every step. Where there is a folder, PROFILE_STEPS steps are recorded behind as many
    others, and it gets `trace.json`, for chrome://tracing or Perfetto, and `operators.txt`: the ten costliest."""
    if folder is None:
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    folder.mkdir(parents=True, exist_ok=True)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]

    def write(run: Any) -> None:
        run.export_chrome_trace(str(folder / "trace.json"))
        table = run.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=11)
        lines = [line for line in table.splitlines() if not line.lstrip().startswith("ProfilerStep")]  # no operator
        write_atomic(folder / "operators.txt", "\n".join(lines).encode())

    plan = schedule(wait=PROFILE_STEPS - 1, warmup=1, active=PROFILE_STEPS, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write, record_shapes=True) as run:
        yield run.step


class GradientsWrong(RuntimeError):
    """A kernel's gradients are not those of the torch form; the message names mixer, backend, device and tensor."""


# As in mixers.conformance: bf16 rounds at 2^-8, and a gradient lies behind some twenty roundings, forwards and
# backwards. fp32 on a GPU may go through TF32, which rounds at 2^-11.
BOUNDS = {torch.bfloat16: 32 * 2**-8, torch.float32: 32 * 2**-11}
CHECK_TOKENS = 75  # more than a chunk, and no multiple of one


def check_gradients(model: LanguageModel, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Compare the gradients of each kind of mixer that a kernel serves with those of its torch form in float64, on this
    device, on a few tokens; a line for each. Those that torch serves are not compared; nor are those that have no
    torch form, and of these the line says so.

    Raises GradientsWrong for an error beyond BOUNDS, and beyond three times that of the torch form in `dtype`.
    """
    lines: dict[str, str] = {}
    for index, block in enumerate(model.blocks):
        kind = json.dumps(model.config.block_mixer(index))
        backend = block.mixer.serving(device, dtype)
        if backend == TORCH.name or kind in lines:
            continue
        name = model.config.block_mixer(index)[0]
        if TORCH in block.mixer.backends:
            lines[kind] = _compared(block.mixer, backend, device, dtype, name)
        else:
            lines[kind] = f"{name}: {backend}, not compared: it has no form in torch"
    return list(lines.values())


def _compared(mixer: Mixer, backend: str, device: torch.device, dtype: torch.dtype, name: str) -> str:
    generator = torch.Generator().manual_seed(0)
    x, towards = torch.randn(2, 2, CHECK_TOKENS, mixer.d_model, generator=generator).bfloat16().to(device)

    def gradients(form: str, precision: torch.dtype) -> dict[str, Tensor]:
        kept = torch.float64 if precision == torch.float64 else torch.float32  # as in training: bf16 by autocast alone
        own = copy.deepcopy(mixer).to(device, kept)
        own.backend = form
        given = x.to(kept).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            y = own(given)[0]
        (y * towards.to(y)).sum().backward()
        named = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
        return {key: gradient.double() for key, gradient in ({"x": given.grad} | named).items()}

    exact = gradients(TORCH.name, torch.float64)
    found, usual = gradients(backend, dtype), gradients(TORCH.name, dtype)
    worst, where = 0.0, "none"
    for key, expected in exact.items():
        scale = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
        error = float((found[key] - expected).norm() / scale) if key in found else float("inf")
        # The gradient of a decay can cancel to nothing; how much of it a dtype leaves, the torch form shows.
        bound = max(BOUNDS[dtype], 3 * float((usual[key] - expected).norm() / scale))
        if not error <= bound:  # nan too
            raise GradientsWrong(
                f"{name}: {backend} on {device} computes a wrong gradient of {key} in {dtype}: relative error "
                f"{error:.3g}, at most {bound:.3g} is rounding; install other versions of its packages, or disable it"
            )
        if error >= worst:
            worst, where = error, key
    return f"{name}: {backend}, largest relative error of a gradient {worst:.2g}, of {where}"
