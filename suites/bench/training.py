"""Training throughput of the matched models of a preset on this machine, optionally against fla's model classes.

Compared: the preset's mixers with each other and, with `against_fla`, each with fla's model class of the same shape
(`suites.bench.fla_models`). On: whole training steps of [batch, length] random tokens, optimiser step included. How
often: up to `Config.windows` windows of `steps` steps after warm-up, as many as the mixer's share of the time allows;
ours and fla's take windows in turns. Spread: the 20th and 80th percentile over windows next to the median.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from harness.experiments.matching import matched_config, meta_model
from harness.experiments.presets import preset as find_preset
from harness.experiments.schema import TrainConfig
from harness.model.language_model import Layout, ModelConfig, build_model
from harness.records.provenance import provenance
from harness.training.device import matmul_rate, recipe_dtype
from harness.training.optim import build_optimizer
from mixers import registry
from suites.bench.fla_models import build_fla, fla_absent, load_kernels
from suites.bench.rendering import aligned, commit_text
from suites.shared.timing import (
    Shape,
    error_line,
    in_turns,
    median_p20_p80,
    random_tokens,
    release_memory,
    time_calls,
)
from suites.throughput import Config, mean_loss, training_step

log = logging.getLogger(__name__)

Row = dict[str, Any]
Step = Callable[[], None]

OURS, FLA = "mixerbench", "fla"
RECIPE = TrainConfig()


def run(
    preset: str,
    mixers: list[str] | None = None,
    layout: Layout = "recurrent",
    length: int = 2048,
    batch: int = 8,
    steps: int = 10,
    device: str = "cuda",
    seconds: float = 300,
    progress: Callable[[str], Any] = print,
    against_fla: bool = False,
) -> list[Row]:
    """Return one row per mixer of the preset, or per named mixer: training tokens/s and utilisation.

    utilisation: the model's own FLOPs per second as a fraction of the rate that matrix products reach on the device.
    layout: of every mixer except attention, which has its own. seconds: shared by all mixers; a step that has begun is
    finished, so they can be exceeded by one step.

    against_fla: adds, after each row, a row of fla's model class of the same shape. Both get the same tokens, recipe
    and clipping, and take windows in turns. `parameter_ratio` is fla's over ours. If the architecture is the same,
    `speed_ratio` is ours over fla's in tokens/s, and utilisation follows from our FLOP count at fla's MLP width;
    otherwise `differs` says why neither is given. Both models are on the device at the same time, and the peak memory
    of each excludes the memory that the other holds.

    A model that cannot be matched or built, does not fit in memory or fails has `refused`; one that the time did not
    suffice for has `left_out`. Neither has a number. Raises ValueError naming the argument, before any work.
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
    if against_fla:
        _require_comparable(where, layout)
        load_kernels()
    config = Config(shapes=[Shape(batch=batch, length=length)], steps=steps)
    dtype = recipe_dtype(RECIPE, where)
    deadline = time.perf_counter() + seconds
    ceiling = matmul_rate(where, dtype)
    birth = asdict(provenance("", where, dtype, "auto"))
    common: Row = {key: value for key, value in birth.items() if key not in ("config_hash", "backend", "command")}
    common |= {
        "preset": preset,
        "length": length,
        "batch": batch,
        "steps": steps,
        "warm_up": config.warm_up,
        "optimizer_step": "included",
        "compile": "none",
        "matmul_flop_per_s": ceiling,
    }
    rows: list[Row] = []
    for i, name in enumerate(names):
        mixer_layout: Layout = "attention" if name == "attention" else layout
        base = common | {"mixer": name, "display": registry.get(name).display, "layout": mixer_layout}
        base |= {"refused": None, "left_out": None, "differs": None, "tokens_per_s": None}
        left = deadline - time.perf_counter()
        if left <= 0:
            omission = {"left_out": f"not started: {seconds:g} s were used up"}
            fields = {which: omission for which in ((OURS, FLA) if against_fla else (OURS,))}
        else:
            share = time.perf_counter() + left / (len(names) - i)
            fields = _measure_mixer(preset, mixer_layout, name, against_fla, where, dtype, config, share)
        for which, measured in fields.items():
            row = base | {"implementation": which} | measured
            if row["tokens_per_s"] is not None and row.get("flops_per_token") is not None:
                row["flop_per_s"] = row["tokens_per_s"] * row["flops_per_token"]
                row["utilisation"] = row["flop_per_s"] / ceiling
            rows.append(row)
            progress(f"{name}{'' if which == OURS else ', fla'}: {_result_text(row)}")
    return rows


def _require_comparable(device: torch.device, layout: Layout) -> None:
    if device.type != "cuda":
        raise ValueError(
            f"against_fla: fla's chunk kernels are Triton's, tuned on a GPU at their first call, and this is {device}; "
            "leave --against-fla out, or run on a machine with a CUDA device"
        )
    if layout != "recurrent":
        raise ValueError(f"against_fla: models of fla are compared in the recurrent layout, not {layout}; use it")


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


def _measure_mixer(
    preset: str,
    layout: Layout,
    mixer: str,
    against_fla: bool,
    device: torch.device,
    dtype: torch.dtype,
    config: Config,
    until: float,
) -> dict[str, Row]:
    """Return the measured fields of each implementation, by name.

    until: the moment of time.perf_counter at which the mixer's share of the time ends.
    """
    try:
        model_config = matched_config(preset, layout, mixer)
    except ValueError as error:
        return {OURS: {"refused": error_line(error)}}
    (shape,) = config.shapes
    rows: dict[str, Row] = {OURS: {}}
    builders = {OURS: partial(_ours, model_config, shape, device, dtype, rows[OURS])}
    if against_fla:
        rows[FLA] = {}
        if (absent := fla_absent(mixer)) is None:
            builders[FLA] = partial(_fla, model_config, shape, device, dtype, rows[FLA])
        else:
            rows[FLA]["refused"] = absent
    for which, result in time_in_turns(builders, config, device, until).items():
        rows[which] |= result if isinstance(result, dict) else _time_fields(*result, config)
    if against_fla and "non_embedding_params" in rows[FLA] and "non_embedding_params" in rows[OURS]:
        ours, theirs = rows[OURS], rows[FLA]
        theirs["parameter_ratio"] = theirs["non_embedding_params"] / ours["non_embedding_params"]
        if theirs["differs"] is None and "tokens_per_s" in ours and "tokens_per_s" in theirs:
            theirs["speed_ratio"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
    return rows


def _ours(config: ModelConfig, shape: Shape, device: torch.device, dtype: torch.dtype, row: Row) -> Step:
    """Return a training step of our model; its size, backend and MLP widths are added to `row`."""
    model = build_model(config, seed=0).to(device)
    cost = model.cost(shape.length)
    row |= asdict(cost) | {"backend": model.backend(dtype), "mlp_widths": config.mlp_widths}
    row["fallbacks"] = model.fallbacks(dtype)
    for line in row["fallbacks"]:
        log.warning(line)
    loss = mean_loss(model, random_tokens(shape, config.vocab_size, device))
    return partial(training_step, loss, model, build_optimizer(model, RECIPE), RECIPE, dtype)


def _fla(config: ModelConfig, shape: Shape, device: torch.device, dtype: torch.dtype, row: Row) -> Step:
    """Return a training step of fla's model; its size, class and difference from ours are added to `row`."""
    built = build_fla(config, device)
    row |= {"backend": built.name, "non_embedding_params": built.non_embedding_params, "differs": built.differs}
    if built.differs is None:
        widths = [built.mlp_width] * config.layers
        cost = meta_model(config.model_copy(update={"mlp_widths": widths})).cost(shape.length)
        row |= {"mlp_widths": widths, "flops_per_token": cost.flops_per_token}
    tokens = random_tokens(shape, config.vocab_size, device)
    optimizer = build_optimizer(built.model, RECIPE)
    return partial(training_step, partial(built.loss, tokens), built.model, optimizer, RECIPE, dtype)


def time_in_turns(
    builders: dict[str, Callable[[], Step]], config: Config, device: torch.device, until: float = math.inf
) -> dict[str, tuple[list[float], float | None] | Row]:
    """Return per name the seconds of each window and on CUDA the peak memory in bytes, else fields that say why not.

    builders: functions that build a training step, by name. They run one after another, and each step warms up before
    the next is built; then the steps take windows in turns, and the first in a turn is the last in the next. until: a
    moment of time.perf_counter after which no window starts. The peak memory of each excludes the memory that the
    others hold. A name without a result has `refused` (an error, on one line) or `left_out`.
    """
    steps: dict[str, Step] = {}
    held: dict[str, int] = {}
    missing: dict[str, Row] = {}
    times: dict[str, list[float]] = {name: [] for name in builders}
    peaks: dict[str, int] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; if it raises, drop the step of `name` and record the error as its result."""
        try:
            return work()
        except Exception as error:
            missing[name] = {"refused": error_line(error)}
        steps.pop(name, None)

    for name, build in builders.items():
        before = _allocated(device)
        if (step := attempt(name, build)) is not None:
            steps[name] = step
            attempt(name, partial(time_calls, step, config.warm_up, device, until))
        step = None
        if name in missing:  # nothing holds its model any more
            release_memory(device)
        held[name] = _allocated(device) - before
    turn = 0
    while turn < config.windows and time.perf_counter() < until:
        for name in in_turns(steps, turn):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            took = attempt(name, partial(time_calls, steps[name], config.steps, device, until))
            if took is not None:
                times[name].append(took)
                others = sum(held[other] for other in steps if other != name)
                peak = torch.cuda.max_memory_allocated(device) - others if device.type == "cuda" else 0
                peaks[name] = max(peaks.get(name, 0), peak)
            elif name in missing:
                release_memory(device)
        turn += 1
    for name in steps:
        if not times[name]:
            missing[name] = {"left_out": "its share of the time did not last for warm-up and one window of steps"}
    steps.clear()  # frees the models before the next mixer's are built
    release_memory(device)
    return {
        name: missing[name] if name in missing else (times[name], float(peaks[name]) if device.type == "cuda" else None)
        for name in builders
    }


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _time_fields(times: list[float], peak: float | None, config: Config) -> Row:
    (shape,) = config.shapes
    rates = [config.steps * shape.batch * shape.length / t for t in times]
    # One window has no spread; 0 would claim one.
    median, low, high = median_p20_p80(rates) if len(rates) > 1 else (rates[0], None, None)
    return {
        "windows": len(rates),
        "tokens_per_s": median,
        "tokens_per_s_p20": low,
        "tokens_per_s_p80": high,
        "ms_per_step": 1e3 * statistics.median(times) / config.steps,
        "peak_memory_bytes": peak,
    }


def _result_text(row: Row) -> str:
    if row["tokens_per_s"] is None:
        return f"refused: {row['refused']}" if row["refused"] else f"left out: {row['left_out']}"
    return f"{row['tokens_per_s']:,.0f} tokens/s{_spread_text(row)}"


def _spread_text(row: Row) -> str:
    if row["tokens_per_s_p20"] is None:
        return ""
    return f" [{row['tokens_per_s_p20']:,.0f}–{row['tokens_per_s_p80']:,.0f}]"


def _model_name(row: Row) -> str:
    return row["display"] if row["implementation"] == OURS else f"{row['display']}, fla's"


def render(rows: list[Row]) -> str:
    """Return the rows as a table, followed by refusals, omissions and the differences of fla's models."""
    first = rows[0]
    with_fla = any(row["implementation"] == FLA for row in rows)
    lines = [
        f"{first['preset']}, {first['batch']} × {first['length']} tokens per step, {first['dtype']}, "
        f"{first['device']}, threads={first['threads']}, torch {first['version_torch']}, {commit_text(first)}",
        f"tokens/s: median [20th–80th percentile] of up to {Config().windows} windows of {first['steps']} training "
        "steps, optimiser step included; parameters without embeddings; utilisation: model FLOPs of "
        f"{first['matmul_flop_per_s'] / 1e12:.3g} TFLOP/s, the best that square matrix products reached here",
    ]
    table = [["mixer", "layout", "parameters", "tokens/s", "ms/step", "TFLOP/s", "utilisation", "peak GiB", "windows"]]
    if with_fla:
        lines.append(
            f"fla's: its own model classes, flash-linear-attention {first['version_fla']}, in turns with ours; "
            "ours / fla's: tokens/s, where the architecture is the same"
        )
        table[0].append("ours / fla's")
    for row in rows:
        if row["tokens_per_s"] is None:
            continue
        memory = row["peak_memory_bytes"]
        table.append(
            [
                _model_name(row),
                row["layout"],
                f"{row['non_embedding_params']:,}",
                f"{row['tokens_per_s']:,.0f}{_spread_text(row)}",
                f"{row['ms_per_step']:.1f}",
                f"{row['flop_per_s'] / 1e12:.3g}" if "flop_per_s" in row else "–",
                f"{row['utilisation']:.1%}" if "utilisation" in row else "–",
                "–" if memory is None else f"{memory / 2**30:.2f}",
                str(row["windows"]),
            ]
            + ([f"{row['speed_ratio']:.2f}" if "speed_ratio" in row else ""] if with_fla else [])
        )
    lines += aligned(table)
    lines += [f"FALLBACK, {line}" for row in rows for line in row.get("fallbacks", ())]
    lines += [
        f"{_model_name(r)}: {r['differs']}; {r['parameter_ratio']:.0%} of our parameters"
        for r in rows
        if r["differs"] is not None and "parameter_ratio" in r
    ]
    return "\n".join([*lines, *(f"{_model_name(r)}: {_result_text(r)}" for r in rows if r["tokens_per_s"] is None)])
