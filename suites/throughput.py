"""Training throughput of matched models: tokens a second of whole training steps, one mixer after another.

A step is what training does between two batches: forward pass under training's autocast, backward pass, clipping of the
gradients and the optimiser's step. Tokens are random and already on the device, and the loss is not
read back, so what is left out is the making of batches and the log.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from harness.config import TrainConfig
from harness.matching import matched_config
from harness.model import LanguageModel, ModelConfig, build_model
from harness.optim import build_optimizer
from harness.presets import preset as find_preset
from harness.provenance import provenance
from harness.train import activation_dtype, masked_loss
from mixers import registry

Row = dict[str, Any]

WARM_UP = 3  # steps before the first window: kernels are compiled and tuned in the first, memory is laid out by then
WINDOWS = 7
RECIPE = TrainConfig()


def run(
    preset: str,
    mixers: list[str] | None = None,
    length: int = 2048,
    batch: int = 8,
    steps: int = 10,
    device: str = "cuda",
    seconds: float = 300,
    progress: Callable[[str], Any] = print,
) -> list[Row]:
    """A row for each mixer of the preset, or for those named: tokens/s of training steps at [batch, length] tokens, and
    the model's own FLOPs as a part of what matrix products reach on the device.

    Median, 20th and 80th percentile are over windows of `steps` steps, as many as the mixer's share of `seconds` allows
    and WINDOWS at most, after warm-up. A mixer that cannot be matched, or does not fit the memory, has `refused`, one
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
    dtype = activation_dtype(RECIPE, where)
    deadline = time.perf_counter() + seconds
    ceiling = matmul_rate(where, dtype)
    rows: list[Row] = []
    for i, name in enumerate(names):
        layout = "attention" if name == "attention" else "recurrent"
        row: Row = {
            "mixer": name,
            "display": registry.get(name).display,
            "layout": layout,
            "preset": preset,
            "length": length,
            "batch": batch,
            "steps": steps,
            "optimizer_step": "included",
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
                config = matched_config(preset, layout, name)
                share = time.perf_counter() + left / (len(names) - i)
                row |= measure(config, length, batch, steps, where, dtype, share)
            except Exception as error:  # no match, no memory, a kernel that does not compile: the reason is the result
                row["refused"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            gc.collect()  # a failed step leaves its graph in a cycle with the traceback
            if where.type == "cuda":
                torch.cuda.empty_cache()
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


def measure(
    config: ModelConfig, length: int, batch: int, steps: int, device: torch.device, dtype: torch.dtype, until: float
) -> Row:
    """Times of one model, until a moment of time.perf_counter; `left_out` where it did not last for one window."""
    model = build_model(config, seed=0).to(device)
    cost = model.cost(length)
    optimizer = build_optimizer(model, RECIPE)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch, length + 1), generator=generator).to(device)
    counted = torch.ones(batch, length, dtype=torch.bool, device=device)
    row: Row = {
        "backend": model.backend(dtype),
        "non_embedding_params": cost.non_embedding_params,
        "embedding_params": cost.embedding_params,
        "state_floats_per_layer": cost.state_floats_per_layer,
        "flops_per_token": cost.flops_per_token,
    }

    def window(count: int) -> float | None:
        """Seconds of `count` steps; None where the time ran out before the last of them."""
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            if time.perf_counter() >= until:
                return None
            training_step(model, optimizer, tokens, counted, dtype)
        _wait(device)
        return time.perf_counter() - started

    too_short = {"left_out": "its share of the time did not last for warm-up and one window of steps"}
    if window(WARM_UP) is None:
        return row | too_short
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    while len(times) < WINDOWS and (took := window(steps)) is not None:
        times.append(took)
    if not times:
        return row | too_short
    rates = [steps * batch * length / t for t in times]
    # One window has no spread, and to say 0 would claim one.
    low, *_, high = statistics.quantiles(rates, n=5, method="inclusive") if len(rates) > 1 else (None, None)
    middle = statistics.median(rates)
    return row | {
        "windows": len(rates),
        "tokens_per_s": middle,
        "tokens_per_s_p20": low,
        "tokens_per_s_p80": high,
        "ms_per_step": 1e3 * statistics.median(times) / steps,
        "flop_per_s": middle * cost.flops_per_token,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in a dtype: the best of ten, each of some milliseconds."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def training_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
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
    torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
    optimizer.step()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _result(row: Row) -> str:
    if row["tokens_per_s"] is None:
        return f"refused: {row['refused']}" if row["refused"] else f"left out: {row['left_out']}"
    return f"{row['tokens_per_s']:,.0f} tokens/s{_spread(row)}"


def _spread(row: Row) -> str:
    if row["tokens_per_s_p20"] is None:
        return ""
    return f" [{row['tokens_per_s_p20']:,.0f}–{row['tokens_per_s_p80']:,.0f}]"


def render(rows: list[Row]) -> str:
    """The rows as a table; below it, what was refused or left out, and why."""
    first = rows[0]
    lines = [
        f"{first['preset']}, {first['batch']} × {first['length']} tokens a step, {first['dtype']}, {first['device']}, "
        f"threads={first['threads']}, torch {first['version_torch']}, commit {(first['git_commit'] or 'unknown')[:10]}",
        f"tokens/s: median [20th–80th percentile] of up to {WINDOWS} windows of {first['steps']} training steps, "
        "optimiser step included; parameters without embeddings; utilisation: model FLOPs of "
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
