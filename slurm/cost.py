"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from harness.experiments.schema import RunConfig
from harness.records.provenance import device_name
from harness.records.store import load
from harness.training.device import ceiling, recipe_dtype, this_device
from harness.training.distributed import Sharding
from harness.training.estimate import estimate
from slurm.plan import RunPlan
from slurm.profile import Profile
from suites.units import TRAIN


def cost_here(plans: Sequence[RunPlan], runs_root: Path) -> str:
    """What training takes that is left of these runs, on this machine, in words. Where nothing was measured, hours are
    those at the share of a profile's default of what matrix products reach on its GPU; on a CPU they are not known."""
    trained = [plan.config for plan in plans if TRAIN in plan.missing]
    device, tflops = this_device(), None
    if device.type == "cuda" and trained:
        dtype = recipe_dtype(trained[0].train, device)
        tflops = ceiling(device, dtype, torch.get_num_threads()) / 1e12
    share = Profile.model_fields["utilisation"].default
    return cost_of(trained, tflops, share, _speeds(runs_root), device_name(device))


def _speeds(runs_root: Path) -> pd.DataFrame:
    """Records of throughput that runs have left."""
    return load(sorted(runs_root.glob("*/records/throughput.jsonl")))


def cost_of(
    runs: Sequence[RunConfig],
    tflops: float | None,
    utilisation: float,
    speeds: pd.DataFrame,
    device: str | None,
    processes: int = 1,
    sharding: Sharding = "ddp",
) -> str:
    """What training these runs takes, by so many processes each, in words: estimated from tokens a second where
    `speeds`, records of the suite `throughput`, has them of these models on this device, else from the FLOPs of their
    mixers."""
    if not runs:
        return "nothing to train"
    estimates = [estimate(run, tflops or 1.0, utilisation, speeds, device, processes, sharding) for run in runs]
    flops, disk = sum(e.training_flops for e in estimates), sum(e.disk_bytes for e in estimates)
    memory = max(e.memory_bytes for e in estimates)
    held = "one process" if processes == 1 else f"each of {processes} processes ({sharding})"
    line = (
        f"training: {len(runs)} runs, {flops:.3g} FLOPs, {_gb(disk)} of disk, {_gb(memory)} of memory for "
        f"weights, gradients and optimiser of {held}, activations not counted"
    )
    measured = sum(e.measured for e in estimates)
    if tflops is None and measured < len(runs):
        return f"{line}; GPU hours unknown: set `tflops` in a site's profile, or measure with the suite `throughput`"
    hours = sum(e.device_hours for e in estimates)
    bases = [f"{measured} runs at the speed measured on {device}"] if measured else []
    if measured < len(runs):
        others = f"{len(runs) - measured} runs " if measured else ""
        bases.append(f"{others}at {utilisation:.0%} of {tflops:,.0f} TFLOP/s (from the FLOPs, not measured)")
    return f"{line}; {hours:,.1f} GPU hours, {' and '.join(bases)}, without evaluation"


def _gb(size: int) -> str:
    gb = size / 1e9
    return f"{gb:,.1f} GB" if gb >= 1 else f"{gb:.2g} GB"
