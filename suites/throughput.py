"""Training throughput of matched models: tokens a second of whole training steps, over shapes of batch × length.

A step is what training does between two batches: forward pass under training's autocast, backward pass, clipping of the
gradients and the optimiser's step, all of it eager. Tokens are random and already on the device, and the loss is not
read back, so what is left out is the making of batches and the log. Models are fresh: weights do not change how much is
computed.

As a suite it measures one model (`measure`); `bench` measures those of a preset, one after another.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from pydantic import Field, PositiveInt, field_validator

from harness.config import Closed, TrainConfig
from harness.matching import matched_config
from harness.model import LanguageModel, Layout, build_model
from harness.optim import build_optimizer
from harness.presets import preset as find_preset
from harness.provenance import provenance
from harness.records import Measurement
from harness.train import activation_dtype, masked_loss
from mixers import registry

Row = dict[str, Any]
Result = TypeVar("Result")

SUITE = "throughput"
RECIPE = TrainConfig()
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")


class Shape(Closed):
    """batch: sequences. length: tokens of each."""

    batch: PositiveInt
    length: PositiveInt


def different(shapes: list[Shape]) -> list[Shape]:
    """The shapes, each once; a validator."""
    for shape in shapes:
        if shapes.count(shape) > 1:
            raise ValueError(f"{shape.batch} × {shape.length} is listed twice; list each shape once")
    return shapes


class Config(Closed):
    """shapes: of training steps, by default the paper's (arXiv 2605.22791, figure 2): 16,384 tokens each. steps: in a
    window. windows: that are timed. warm_up: steps at a shape before its first window: kernels are compiled and tuned
    in the first, memory is laid out by then."""

    shapes: list[Shape] = Field(
        default=[Shape(batch=b, length=n) for b, n in ((8, 2048), (4, 4096), (2, 8192), (1, 16384))], min_length=1
    )
    steps: PositiveInt = 10
    windows: int = Field(default=7, ge=2)
    warm_up: PositiveInt = 3

    _different = field_validator("shapes")(different)


def measure(
    model: LanguageModel, recipe: TrainConfig, config: Config, progress: Callable[[str], None] = lambda line: None
) -> list[Measurement]:
    """What training steps of a model take where it is, in tasks `batch_<n>` by length of the rows.

    Its weights are changed. For every shape the median over windows of tokens a second; its FLOPs as a part of what
    matrix products reach on the device (`mfu`); on CUDA the peak of the memory that tensors took, model and optimiser
    included. A shape that does not fit the memory has `train_out_of_memory` instead of all these.
    """
    device = model.embedding.weight.device
    dtype = activation_dtype(recipe, device)
    ceiling = matmul_rate(device, dtype)
    optimizer = build_optimizer(model, recipe)
    taken: dict[Shape, tuple[list[float], float | None] | None] = {}
    for shape in config.shapes:
        taken[shape] = unless_out_of_memory(
            lambda shape=shape: time_windows(model, optimizer, recipe, dtype, shape, config), device
        )
        optimizer.zero_grad(set_to_none=True)  # those of a step that failed half-way are in the way of the next shape
        ceiling = max(ceiling, matmul_rate(device, dtype))  # a moment in which others use the device lowers it
        progress(f"{shape.batch} × {shape.length}" + (": out of memory" if taken[shape] is None else ""))
    settings = config.model_dump(exclude={"shapes"}) | {
        "vocab_size": model.config.vocab_size,
        "optimizer_step": "included",
        "compile": "none",
    }
    found = [Measurement(SUITE, "device", "matmul_tflops", ceiling / 1e12, None, MATMULS * (1 + len(taken)))]
    for shape in config.shapes:
        where = {"suite": SUITE, "task": f"batch_{shape.batch}", "length": shape.length}
        where["settings"] = {"batch": shape.batch} | settings
        if (windows := taken[shape]) is None:
            found.append(Measurement(metric="train_out_of_memory", value=1.0, stderr=None, n=1, **where))
            continue
        times, peak = windows
        rate, error = middle([config.steps * shape.batch * shape.length / t for t in times])
        part = model.cost(shape.length).flops_per_token / ceiling
        found += [
            Measurement(metric="train_tokens_per_second", value=rate, stderr=error, n=len(times), **where),
            Measurement(metric="mfu", value=rate * part, stderr=error * part, n=len(times), **where),
        ]
        if peak is not None:
            found.append(Measurement(metric="peak_memory_bytes", value=peak, stderr=None, n=1, **where))
    return found


def time_windows(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    recipe: TrainConfig,
    dtype: torch.dtype,
    shape: Shape,
    config: Config,
    until: float = math.inf,
) -> tuple[list[float], float | None]:
    """Seconds of each window of training steps, after warm-up, and on CUDA the peak of memory in them, in bytes. Fewer
    windows, or none, where `until`, a moment of time.perf_counter, comes first."""
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (shape.batch, shape.length + 1), generator=generator).to(device)
    counted = torch.ones(shape.batch, shape.length, dtype=torch.bool, device=device)

    def step() -> None:
        training_step(model, optimizer, recipe, tokens, counted, dtype)

    times: list[float] = []
    if timed(step, config.warm_up, device, until) is None:
        return times, None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    while len(times) < config.windows and (took := timed(step, config.steps, device, until)) is not None:
        times.append(took)
    return times, float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def timed(work: Callable[[], None], count: int, device: torch.device, until: float = math.inf) -> float | None:
    """Seconds of so many calls; None where `until` came before the last of them began."""
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        if time.perf_counter() >= until:
            return None
        work()
    wait(device)
    return time.perf_counter() - started


def middle(values: Sequence[float]) -> tuple[float, float]:
    """Median and its standard error, √(π/2) that of the mean, as for normal values: too large where outliers are what
    makes them differ."""
    error = math.sqrt(math.pi / 2 / len(values)) * statistics.stdev(values)
    return statistics.median(values), error


def unless_out_of_memory(work: Callable[[], Result], device: torch.device) -> Result | None:
    """What `work` returns; None where the device's memory does not suffice for it, all it took being given back."""
    try:
        return work()
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
    release(device)
    return None


def release(device: torch.device) -> None:
    """Give back what a failed or finished measurement holds."""
    gc.collect()  # a failed step leaves its graph in a cycle with the traceback
    if device.type == "cuda":
        torch.cuda.empty_cache()


MATMULS = 10


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in a dtype: the best of ten, each of some milliseconds."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(MATMULS):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def training_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    recipe: TrainConfig,
    tokens: torch.Tensor,
    counted: torch.Tensor,
    dtype: torch.dtype,
) -> None:
    """One step on tokens [B, T + 1], of whose targets those in counted [B, T] make the loss."""
    autocast = torch.autocast(tokens.device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        loss = masked_loss(model, tokens, counted) / counted.numel()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench(
    preset: str,
    mixers: list[str] | None = None,
    layout: Layout = "recurrent",
    length: int = 2048,
    batch: int = 8,
    steps: int = 10,
    device: str = "cuda",
    seconds: float = 300,
    progress: Callable[[str], Any] = print,
) -> list[Row]:
    """A row for each mixer of the preset, or for those named: tokens/s of training steps at [batch, length] tokens, and
    the model's own FLOPs as a part of what matrix products reach on the device. layout: of all but attention.

    Median, 20th and 80th percentile are over windows of `steps` steps, as many as the mixer's share of `seconds` allows
    and Config's at most, after warm-up. A mixer that cannot be matched, or does not fit the memory, has `refused`, one
    that the time did not suffice for has `left_out`, and neither has a number. A step that has begun is finished, so
    `seconds` can be exceeded by one. Raises ValueError naming the argument, before any work.
    """
    scale = find_preset(preset)
    names = list(scale.mixers) if mixers is None else mixers
    where = _device(device)
    for name in names:
        registry.get(name)
    for name, value in (("length", length), ("batch", batch), ("steps", steps), ("seconds", seconds)):
        if not value > 0:
            raise ValueError(f"{name}: expected more than 0, got {value}")
    if not names:
        raise ValueError("mixers: an empty list; name at least one, or none for all of the preset")
    if layout not in ("recurrent", "hybrid"):
        raise ValueError(f"layout: {layout!r} is none of recurrent, hybrid; attention, a mixer, is always its own")
    config = Config(shapes=[Shape(batch=batch, length=length)], steps=steps)
    dtype = activation_dtype(RECIPE, where)
    deadline = time.perf_counter() + seconds
    ceiling = matmul_rate(where, dtype)
    rows: list[Row] = []
    for i, name in enumerate(names):
        own: Layout = "attention" if name == "attention" else layout
        row: Row = {
            "mixer": name,
            "display": registry.get(name).display,
            "layout": own,
            "preset": preset,
            "length": length,
            "batch": batch,
            "steps": steps,
            "warm_up": config.warm_up,
            "optimizer_step": "included",
            "compile": "none",
            "refused": None,
            "left_out": None,
            "tokens_per_s": None,
            "matmul_flop_per_s": ceiling,
        }
        birth = asdict(provenance("", where, dtype, "auto"))
        row |= {key: value for key, value in birth.items() if key not in ("config_hash", "backend", "command")}
        left = deadline - time.perf_counter()
        if left <= 0:
            row["left_out"] = f"not started: {seconds:g} s were used up"
        else:
            try:
                model = build_model(matched_config(preset, own, name), seed=0).to(where)
                share = time.perf_counter() + left / (len(names) - i)
                row |= _timed_row(model, dtype, config, share)
            except Exception as error:  # no match, no memory, a kernel that does not compile: the reason is the result
                row["refused"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            model = None  # before the next is built
            release(where)
        if row["tokens_per_s"] is not None:
            row["utilisation"] = row["flop_per_s"] / ceiling
        rows.append(row)
        progress(f"{name}: {_result(row)}")
    return rows


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} is none that torch knows; use cuda or cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: training runs on cuda or cpu, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: torch sees no {name} here; use cpu")
    return device


def _timed_row(model: LanguageModel, dtype: torch.dtype, config: Config, until: float) -> Row:
    """Times of one model, until a moment of time.perf_counter; `left_out` where it did not last for one window."""
    (shape,) = config.shapes
    cost = model.cost(shape.length)
    row: Row = {
        "backend": model.backend(dtype),
        "non_embedding_params": cost.non_embedding_params,
        "embedding_params": cost.embedding_params,
        "state_floats_per_layer": cost.state_floats_per_layer,
        "flops_per_token": cost.flops_per_token,
    }
    times, peak = time_windows(model, build_optimizer(model, RECIPE), RECIPE, dtype, shape, config, until)
    if not times:
        return row | {"left_out": "its share of the time did not last for warm-up and one window of steps"}
    rates = [config.steps * shape.batch * shape.length / t for t in times]
    # One window has no spread, and to say 0 would claim one.
    low, *_, high = statistics.quantiles(rates, n=5, method="inclusive") if len(rates) > 1 else (None, None)
    return row | {
        "windows": len(rates),
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_p20": low,
        "tokens_per_s_p80": high,
        "ms_per_step": 1e3 * statistics.median(times) / config.steps,
        "flop_per_s": statistics.median(rates) * cost.flops_per_token,
        "peak_memory_bytes": peak,
    }


def _result(row: Row) -> str:
    if row["tokens_per_s"] is None:
        return f"refused: {row['refused']}" if row["refused"] else f"left out: {row['left_out']}"
    return f"{row['tokens_per_s']:,.0f} tokens/s{_spread(row)}"


def _spread(row: Row) -> str:
    if row["tokens_per_s_p20"] is None:
        return ""
    return f" [{row['tokens_per_s_p20']:,.0f}–{row['tokens_per_s_p80']:,.0f}]"


def render(rows: list[Row]) -> str:
    """The rows of `bench` as a table; below it, what was refused or left out, and why."""
    first = rows[0]
    lines = [
        f"{first['preset']}, {first['batch']} × {first['length']} tokens a step, {first['dtype']}, {first['device']}, "
        f"threads={first['threads']}, torch {first['version_torch']}, commit {(first['git_commit'] or 'unknown')[:10]}",
        f"tokens/s: median [20th–80th percentile] of up to {Config().windows} windows of {first['steps']} training "
        "steps, optimiser step included; parameters without embeddings; utilisation: model FLOPs of "
        f"{first['matmul_flop_per_s'] / 1e12:.3g} TFLOP/s, the best that square matrix products reached here",
    ]
    table = [["mixer", "layout", "parameters", "tokens/s", "ms/step", "TFLOP/s", "utilisation", "peak GiB", "windows"]]
    for row in rows:
        if row["tokens_per_s"] is None:
            continue
        memory = row["peak_memory_bytes"]
        table.append(
            [
                row["display"],
                row["layout"],
                f"{row['non_embedding_params']:,}",
                f"{row['tokens_per_s']:,.0f}{_spread(row)}",
                f"{row['ms_per_step']:.1f}",
                f"{row['flop_per_s'] / 1e12:.3g}",
                f"{row['utilisation']:.1%}",
                "–" if memory is None else f"{memory / 2**30:.2f}",
                str(row["windows"]),
            ]
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines += ["  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([*lines, *(f"{r['display']}: {_result(r)}" for r in rows if r["tokens_per_s"] is None)])
