"""How fast an optimiser step of training is, beside other ways to take the same one with torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.experiments.matching import matched_config
from harness.experiments.schema import TrainConfig
from harness.model.language_model import build_model
from harness.training.device import wait
from harness.training.optim import build_optimizer, clip_gradients, learning_rate, parameter_groups

RECIPE = TrainConfig()
CHECKED = 3  # steps from equal weights, untimed, that every form takes before any is timed
ADAMW = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"fused": False, "foreach": False}}
# Of how far the weights move. A step moves a weight of size 1e-2 to 1 by 4e-4, where fp32 rounds it by 1e-9 to 6e-8.
TOLERANCE = 1e-4

Row = dict[str, Any]
Weights = list[Tensor]


def run(preset: str, steps: int, device: torch.device) -> list[Row]:
    """Milliseconds of one step of each form: gradients clipped where it clips, the learning rate set, and AdamW's step;
    over the parameters of the preset's Gated DeltaNet-2. Medians of `steps` turns in which every form takes one step.
    On CUDA also bytes a second, of those that a step must move: weight and both moments read and written, gradient
    read, and read once more for its norm.

    Gradients are fixed, their norm half the limit, as in most steps of training: so to clip them changes nothing, and
    all forms take the same steps. First each takes CHECKED of them from the same weights; RuntimeError where they end
    further apart than TOLERANCE of the way. Then all go on with the same weights and moments, in the same memory.
    """
    model = build_model(matched_config(preset, "recurrent", "gdn2"), seed=0).to(device)
    parameters, total = list(model.parameters()), CHECKED + steps
    for parameter, gradient in zip(parameters, _gradients(model), strict=True):
        parameter.grad = gradient
    start, moments = _copy(parameters), [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    wanted: Weights | None = None
    forms: dict[str, Callable[[int], None]] = {}
    for name, (clip, make) in _forms().items():
        optimizer = make(model)
        forms[name] = partial(_step, parameters, optimizer, clip, total)
        _restore(parameters, start)
        for number in range(1, CHECKED + 1):
            forms[name](number)
        wanted = wanted or _copy(parameters)
        apart = (_distance(parameters, wanted) / _distance(start, wanted)).item()
        if not apart <= TOLERANCE:
            raise RuntimeError(
                f"{name}: its weights end {apart:.1e} of the way that they moved from mixerbench's, more than "
                f"{TOLERANCE:g}; times of different steps are not compared"
            )
        for parameter, (mean, square) in zip(parameters, moments, strict=True):
            optimizer.state[parameter] |= {"exp_avg": mean, "exp_avg_sq": square}

    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(steps):
        first = turn % len(forms)
        for name in [*list(forms)[first:], *list(forms)[:first]]:
            times[name].append(_seconds(partial(forms[name], CHECKED + 1 + turn), device))
    count = sum(p.numel() for p in parameters)
    common = {"preset": preset, "steps": steps, "threads": torch.get_num_threads(), "version_torch": torch.__version__}
    return [_row(name, times[name], count, device) | common for name in forms]


def _forms() -> dict[str, tuple[Callable[..., Any] | None, Callable[[nn.Module], torch.optim.Optimizer]]]:
    """By name: what clips, and what makes the optimiser; training's first."""
    forms: dict[str, Any] = {"mixerbench": (clip_gradients, partial(build_optimizer, config=RECIPE))}
    for name, options in ADAMW.items():

        def make(model: nn.Module, options: dict[str, bool] = options) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameter_groups(model, RECIPE), lr=RECIPE.lr, betas=RECIPE.betas, **options)

        forms[f"AdamW {name}, clip_grad_norm_"] = (torch.nn.utils.clip_grad_norm_, make)
        forms[f"AdamW {name}, not clipped"] = (None, make)
    return forms


def _step(
    parameters: Weights, optimizer: torch.optim.Optimizer, clip: Callable[..., Any] | None, total: int, number: int
) -> None:
    if clip is not None:
        clip(parameters, RECIPE.clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(RECIPE, number, total)
    optimizer.step()


def _gradients(model: nn.Module) -> list[Tensor]:
    """One for each parameter, from a fixed seed; their norm is half of what training clips at."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(p.shape, generator=generator).to(p.device) for p in model.parameters()]
    scale = 0.5 * RECIPE.clip / torch.nn.utils.get_total_norm(drawn)
    return [gradient.mul_(scale) for gradient in drawn]


def _copy(parameters: Weights) -> Weights:
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def _restore(parameters: Weights, start: Weights) -> None:
    for parameter, value in zip(parameters, start, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def _distance(one: Weights, other: Weights) -> Tensor:
    return torch.stack([(p - q).norm() for p, q in zip(one, other, strict=True)]).norm()


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def _row(name: str, times: list[float], parameters: int, device: torch.device) -> Row:
    middle, clips = statistics.median(times), "not clipped" not in name
    moved = 4 * parameters * (7 + clips)
    return {
        "form": name,
        "clips": clips,
        "parameters": parameters,
        "ms": 1e3 * middle,
        "low_ms": 1e3 * min(times),
        "high_ms": 1e3 * max(times),
        "parameters_per_second": parameters / middle,
        "bytes_per_second": moved / middle if device.type == "cuda" else None,
        "device": str(device),
    }


def render(rows: list[Row]) -> str:
    """The rows as text."""
    on_gpu = rows[0]["bytes_per_second"] is not None
    lines = [f"{'form':32}{'ms a step':>12}{'lowest–highest':>20}{'parameters/s':>18}" + "      GB/s" * on_gpu]
    for r in rows:
        spread = f"{r['low_ms']:.2f}–{r['high_ms']:.2f}"
        line = f"{r['form']:32}{r['ms']:12.2f}{spread:>20}{r['parameters_per_second']:18,.0f}"
        lines.append(line + (f"{r['bytes_per_second'] / 1e9:10,.0f}" if on_gpu else ""))
    return "\n".join(lines)
