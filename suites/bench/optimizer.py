"""An optimiser step of training against other ways to take the same step with torch: milliseconds.

Compared: training's own clipping and AdamW with torch's fused, foreach and loop forms, clipped and not. On: the
parameters of a preset's Gated DeltaNet-2. How often: `steps` turns, in each of which every form takes one step; the
forms take turns at going first. Spread: the fastest and slowest step next to the median.

Forms are timed only if they take the same steps: the gradients are fixed, with half the norm that training clips at,
as in most steps of training, so clipping changes nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.experiments.matching import matched_config
from harness.experiments.schema import TrainConfig
from harness.model.language_model import build_model
from harness.training.optim import build_optimizer, clip_gradients, learning_rate, parameter_groups
from suites.shared.timing import time_calls

RECIPE = TrainConfig()
CHECKED = 3  # untimed steps that every form takes from equal weights before any form is timed
ADAMW = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"fused": False, "foreach": False}}
# Relative to how far the weights move. A step moves a weight of size 1e-2 to 1 by 4e-4, and fp32 rounds it by 1e-9 to
# 6e-8.
TOLERANCE = 1e-4

Row = dict[str, Any]
Weights = list[Tensor]


def run(preset: str, steps: int, device: torch.device) -> list[Row]:
    """Return one row per form: milliseconds of a step, that is, clipping if the form clips, and AdamW's update.

    On CUDA a row also has the bytes per second of the traffic that a step needs: weight and both moments read and
    written, the gradient read, and read once more for its norm.

    Each form first takes CHECKED steps from the same weights. Raises RuntimeError if a form ends further from
    training's weights than TOLERANCE of the distance that they moved. All forms are then timed on the same weights and
    moments in the same memory.
    """
    model = build_model(matched_config(preset, "recurrent", "gdn2"), seed=0).to(device)
    parameters, total = list(model.parameters()), CHECKED + steps
    for parameter, gradient in zip(parameters, _gradients(model), strict=True):
        parameter.grad = gradient
    start, moments = _copy(parameters), [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    reference: Weights | None = None
    forms: dict[str, Callable[[int], None]] = {}
    for name, (clip, make) in _forms().items():
        optimizer = make(model)
        forms[name] = partial(_step, parameters, optimizer, clip, total)
        _restore(parameters, start)
        for number in range(1, CHECKED + 1):
            forms[name](number)
        reference = reference or _copy(parameters)
        apart = (_distance(parameters, reference) / _distance(start, reference)).item()
        if not apart <= TOLERANCE:
            raise RuntimeError(
                f"{name}: its weights end {apart:.1e} of the distance moved away from mixerbench's, more than "
                f"{TOLERANCE:g}; times of different steps are not compared"
            )
        for parameter, (mean, square) in zip(parameters, moments, strict=True):
            optimizer.state[parameter] |= {"exp_avg": mean, "exp_avg_sq": square}

    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(steps):
        first = turn % len(forms)
        for name in [*list(forms)[first:], *list(forms)[:first]]:
            times[name].append(time_calls(partial(forms[name], CHECKED + 1 + turn), 1, device))
    count = sum(p.numel() for p in parameters)
    common = {"preset": preset, "steps": steps, "threads": torch.get_num_threads(), "version_torch": torch.__version__}
    return [_row(name, times[name], count, device) | common for name in forms]


def _forms() -> dict[str, tuple[Callable[..., Any] | None, Callable[[nn.Module], torch.optim.Optimizer]]]:
    """Return the clipping function, if any, and the maker of the optimiser by form; training's own form is first."""
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
    """Return one gradient per parameter, from a fixed seed, with half the norm that training clips at."""
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


def _row(name: str, times: list[float], parameters: int, device: torch.device) -> Row:
    median, clips = statistics.median(times), "not clipped" not in name
    moved = 4 * parameters * (7 + clips)
    return {
        "form": name,
        "clips": clips,
        "parameters": parameters,
        "ms": 1e3 * median,
        "low_ms": 1e3 * min(times),
        "high_ms": 1e3 * max(times),
        "parameters_per_second": parameters / median,
        "bytes_per_second": moved / median if device.type == "cuda" else None,
        "device": str(device),
    }


def render(rows: list[Row]) -> str:
    """Return the rows as text, under a header that says what was measured."""
    first = rows[0]
    on_gpu = first["bytes_per_second"] is not None
    lines = [
        f"{first['preset']}, {first['parameters']:,} parameters, {first['device']}, threads={first['threads']}, "
        f"torch {first['version_torch']}; medians of {first['steps']} steps, lowest and highest",
        f"{'form':32}{'ms per step':>12}{'lowest–highest':>20}{'parameters/s':>18}" + "      GB/s" * on_gpu,
    ]
    for r in rows:
        spread = f"{r['low_ms']:.2f}–{r['high_ms']:.2f}"
        line = f"{r['form']:32}{r['ms']:12.2f}{spread:>20}{r['parameters_per_second']:18,.0f}"
        lines.append(line + (f"{r['bytes_per_second'] / 1e9:10,.0f}" if on_gpu else ""))
    return "\n".join(lines)
