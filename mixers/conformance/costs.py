"""Checks of a mixer's declared cost: parameters, state, FLOPs and bytes against measured ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mixers.conformance.trial import Outcome, Trial, demand, floating, state_after, state_bytes, state_kinds

COST_TOKENS = 256
# Tolerated ratio of declared and counted FLOPs: it covers the rounding of a formula, never a forgotten term.
COUNTED = 1.02
# The mean over n steps leaves out the first token, which weighs 1/n: a fifth of the tolerance.
MEAN_STEPS, MEAN = 512, 0.01


def _parameters(trial: Trial) -> Outcome:
    mixer = trial.mixer()
    declared, real = mixer.cost(COST_TOKENS).parameters, sum(p.numel() for p in mixer.parameters())
    return abs(declared - real), 0, f"declared {declared:,}, there are {real:,}"


def _state(trial: Trial) -> Outcome:
    sums, growing = state_kinds(trial)
    mixer = trial.mixer()
    declared = mixer.cost(COST_TOKENS).state_floats
    state = floating(state_after(mixer, trial.tokens(1, COST_TOKENS)))
    total = sum(v.numel() for v in state.values())
    # Tails need not be declared. Nor need small sums next to the largest one, such as Mamba-3's angles and the last
    # token's rotated key.
    summed, cached = ([state[key].numel() for key in keys] for keys in (sums, growing))
    least = max([0.5 * sum(summed), *summed]) + sum(cached) or 0.5 * total
    # A window may count the token being computed, which is not in its cache: one more entry along the tokens.
    most = total + sum(v.numel() // v.shape[1] for key, v in state.items() if key not in sums and v.dim() > 2)
    off = max(declared / most, least / declared) if declared > 0 else float("inf")
    return off, 1.0, f"declared {declared:,}, carried {total:,} of which {least:,.0f} must be declared"


class _Elementwise(TorchDispatchMode):
    """Count the numbers that elementwise operations produce."""

    floats = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags:
            self.floats += out.numel()
        return out


def _counted(trial: Trial) -> tuple[float, int, int]:
    """Return three FLOP counts of the token after COST_TOKENS tokens: declared, in matrix products, and elementwise.

    An elementwise operation counts one FLOP per number that it produces.
    """
    mixer, step = trial.mixer(), trial.tokens(1, 1)
    state = state_after(mixer, trial.tokens(1, COST_TOKENS))
    products, elementwise = FlopCounterMode(display=False), _Elementwise()
    for mode in (products, elementwise):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:  # the CPU's fused attention is not counted
            mixer(step, state, return_state=True)
    return mixer.cost(COST_TOKENS).decode_flops, products.get_total_flops(), elementwise.floats


def _products(trial: Trial) -> Outcome:
    declared, products, _ = _counted(trial)
    demand(declared > 0, f"decode_flops: {declared} cannot be")
    return products / declared, COUNTED, f"one step: {products:,} FLOPs of products, declared {declared:,.0f}"


def _flops(trial: Trial) -> Outcome:
    declared, products, elementwise = _counted(trial)
    ratio = declared / max(1, products + elementwise)
    return ratio, COUNTED, f"one step: declared {declared:,.0f}, with elementwise {products + elementwise:,} counted"


def _mean(trial: Trial) -> Outcome:
    mixer = trial.mixer()
    declared = mixer.cost(MEAN_STEPS).flops_per_token
    mean = sum(mixer.cost(i).decode_flops for i in range(1, MEAN_STEPS)) / (MEAN_STEPS - 1)  # cost(0) is undefined
    return abs(declared / mean - 1), MEAN, f"flops_per_token {declared:,.0f}, mean of {MEAN_STEPS} steps {mean:,.0f}"


def _bytes(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(torch.float32), trial.tokens(1, COST_TOKENS, torch.bfloat16)
    declared, read = mixer.cost(COST_TOKENS).decode_bytes, state_bytes(floating(state_after(mixer, x)))
    return read / max(declared, 1), 1.0, f"a step reads at least {read:,} bytes of state, declared {declared:,}"


COSTS: dict[str, Callable[[Trial], Outcome]] = {
    "cost: parameters": _parameters,
    "cost: state": _state,
    "cost: products": _products,
    "cost: FLOPs": _flops,
    "cost: mean": _mean,
    "cost: bytes": _bytes,
}
"""Checks of declared costs by name, in the order in which they run."""
