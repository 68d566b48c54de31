"""Training throughput: tokens per second of whole training steps, over shapes of batch × length.

A step is the forward pass under training's autocast, the backward pass, gradient clipping and the optimiser's step, all
in eager mode. Tokens are random and already on the device, and only the gradient norm is read back: making batches and
logging are not timed. Models are fresh, since weights do not change the amount of computation.

The suite measures one model; `suites/bench/training.py` compares all models of a preset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from harness.experiments.schema import TrainConfig
from harness.model.language_model import LanguageModel
from harness.records.record import Measurement
from harness.training.device import matmul_rate, recipe_dtype
from harness.training.optim import build_optimizer, clip_gradients
from harness.training.wrappers import masked_loss
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared.timing import (
    Shape,
    check_distinct_shapes,
    median_stderr,
    random_tokens,
    time_calls,
    unless_out_of_memory,
)


class Config(SuiteConfig):
    """Options of the throughput suite."""

    shapes: list[Shape] = Field(
        default=[Shape(batch=b, length=n) for b, n in ((8, 2048), (4, 4096), (2, 8192), (1, 16384))], min_length=1
    )
    """Batches of training steps; the default is the paper's, 16,384 tokens each (arXiv 2605.22791, figure 2)."""
    steps: PositiveInt = 10
    """Steps per timed window."""
    windows: int = Field(default=7, ge=2)
    """Timed windows per shape."""
    warm_up: PositiveInt = 3
    """Untimed steps before the first window of a shape, in which kernels are compiled and tuned."""

    _distinct = field_validator("shapes")(check_distinct_shapes)


@register_suite("throughput", title="tokens per second, MFU and memory of training steps of a fresh model")
class Throughput(Suite):
    """Training steps of one fresh model, timed over shapes of batch × length."""

    Config = Config

    def measure(
        self, model: LanguageModel, recipe: TrainConfig, config: Config, progress: Progress = silent
    ) -> list[Measurement]:
        """Return the speed of a model's training steps, as tasks `batch_<n>` by row length. Its weights are changed.

        Each shape gets its tokens per second, the median over windows; `mfu`, its FLOPs as a fraction of the rate of
        matrix products on the device, left out with the reason where it would exceed 1; and on CUDA the peak memory of
        all tensors, model and optimiser included. A shape that does not fit into memory gets `train_out_of_memory`
        instead.
        """
        device = model.embedding.weight.device
        dtype = recipe_dtype(recipe, device)
        ceiling = matmul_rate(device, dtype)
        optimizer = build_optimizer(model, recipe)
        taken: dict[Shape, tuple[list[float], float | None] | None] = {}
        for shape in config.shapes:
            taken[shape] = unless_out_of_memory(
                lambda shape=shape: time_windows(model, optimizer, recipe, dtype, shape, config), device
            )
            optimizer.zero_grad(set_to_none=True)  # a failed step leaves gradients in the next shape's memory
            ceiling = max(ceiling, matmul_rate(device, dtype))  # other work on the device lowers it for a moment
            progress(f"{shape.batch} × {shape.length}" + (": out of memory" if taken[shape] is None else ""))
        settings = config.model_dump(exclude={"shapes"}) | {
            "vocab_size": model.config.vocab_size,
            "optimizer_step": "included",
            "compile": "none",
        }
        measurements = [Measurement(self.name, "device", "matmul_tflops", ceiling / 1e12, None, 1 + len(taken))]
        for shape in config.shapes:
            where = {"suite": self.name, "task": f"batch_{shape.batch}", "length": shape.length}
            where["settings"] = {"batch": shape.batch} | settings
            if (windows := taken[shape]) is None:
                measurements.append(Measurement(metric="train_out_of_memory", value=1.0, stderr=None, n=1, **where))
                continue
            times, peak = windows
            rate, error = median_stderr([config.steps * shape.batch * shape.length / t for t in times])
            part = model.cost(shape.length).flops_per_token / ceiling
            counts = {"n": len(times), **where}
            measurements.append(Measurement(metric="train_tokens_per_second", value=rate, stderr=error, **counts))
            if rate * part <= 1:
                measurements.append(Measurement(metric="mfu", value=rate * part, stderr=error * part, **counts))
            else:
                progress(
                    f"{shape.batch} × {shape.length}: no MFU: its FLOP/s are {rate * part:.2f} times what matrix "
                    "products reached here; other work on the device slows them down, measure on an idle one"
                )
            if peak is not None:
                measurements.append(Measurement(metric="peak_memory_bytes", value=peak, stderr=None, n=1, **where))
        return measurements


def time_windows(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    recipe: TrainConfig,
    dtype: torch.dtype,
    shape: Shape,
    config: Config,
) -> tuple[list[float], float | None]:
    """Return the seconds of each window after warm-up, and the peak memory in bytes; None except on CUDA."""
    device = model.embedding.weight.device
    loss = mean_loss(model, random_tokens(shape, model.config.vocab_size, device))

    def step() -> None:
        training_step(loss, model, optimizer, recipe, dtype)

    time_calls(step, config.warm_up, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [time_calls(step, config.steps, device) for _ in range(config.windows)]
    return times, float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def mean_loss(model: LanguageModel, tokens: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes training's loss on tokens [B, T + 1], with every target counted."""
    counted = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    return lambda: masked_loss(model, tokens[:, :-1], tokens[:, 1:], counted)[0] / counted.numel()


def training_step(
    loss: Callable[[], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: TrainConfig,
    dtype: torch.dtype,
) -> None:
    """Take one optimiser step on `loss`, which is computed under autocast to `dtype`."""
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        value = loss()
    value.backward()
    clip_gradients(model.parameters(), recipe.clip)
    optimizer.step()
