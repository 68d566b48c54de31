"""Estimated cost of training runs: FLOPs, disk, memory and GPU hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from harness.experiments.run_config import RunConfig
from harness.records.provenance import device_name
from harness.records.record import KEY
from harness.records.store import load
from harness.run_folder import record_files
from harness.training.device import ceiling, recipe_dtype, this_device
from harness.training.distributed import Sharding
from harness.training.estimate import UTILISATION, estimate


def cost_here(runs: Sequence[RunConfig], runs_root: Path) -> str:
    """Describe in one line what training runs costs on this machine.

    Without measured speeds, the estimate of hours assumes UTILISATION of the rate of matrix products measured on this
    GPU. On a CPU the hours are unknown.
    """
    device, tflops = this_device(), None
    if device.type == "cuda" and runs:
        dtype = recipe_dtype(runs[0].train, device)
        tflops = ceiling(device, dtype, torch.get_num_threads()) / 1e12
    return cost_of(runs, tflops, UTILISATION, measured_speeds(runs_root), device_name(device))


def measured_speeds(runs_root: Path) -> pd.DataFrame:
    """All records of the suite `throughput` in a folder of runs, the latest where a run has several of a number."""
    frame = pd.concat([load([]), *map(load, record_files(runs_root, "throughput"))], ignore_index=True)
    return frame.sort_values("time", kind="stable").drop_duplicates(KEY, keep="last")


def cost_of(
    runs: Sequence[RunConfig],
    tflops: float | None,
    utilisation: float,
    speeds: pd.DataFrame,
    device: str | None,
    processes: int = 1,
    sharding: Sharding = "ddp",
) -> str:
    """Describe in one line what training these runs costs, each on `processes` processes.

    tflops: dense peak of one GPU in TFLOP/s, of which training reaches the fraction `utilisation`; None if unknown.
    speeds: records of the suite `throughput`. Where they cover a run's model on `device`, its hours follow from the
    measured tokens per second, otherwise from its FLOPs.
    """
    if not runs:
        return "nothing to train"
    estimates = [estimate(run, tflops or 1.0, utilisation, speeds, device, processes, sharding) for run in runs]
    flops, disk = sum(e.training_flops for e in estimates), sum(e.disk_bytes for e in estimates)
    memory = max(e.memory_bytes for e in estimates)
    holder = "one process" if processes == 1 else f"each of {processes} processes ({sharding})"
    line = (
        f"training: {len(runs)} runs, {flops:.3g} FLOPs, {_gb(disk)} of disk, {_gb(memory)} of memory for "
        f"weights, gradients and optimiser of {holder}, activations not counted"
    )
    measured = sum(e.measured for e in estimates)
    if tflops is None and measured < len(runs):
        return f"{line}; GPU hours unknown: set `tflops` in a profile, or measure with the suite `throughput`"
    hours = sum(e.device_hours for e in estimates)
    bases = [f"{measured} runs at the speed measured on {device}"] if measured else []
    if measured < len(runs):
        others = f"{len(runs) - measured} runs " if measured else ""
        bases.append(f"{others}at {utilisation:.0%} of {tflops:,.0f} TFLOP/s (from the FLOPs, not measured)")
    return f"{line}; {hours:,.1f} GPU hours, {' and '.join(bases)}, without evaluation"


def disk_of(runs: Sequence[RunConfig]) -> str:
    """Describe in one line the checkpoints that training these runs leaves, by kind, and those that pruning keeps."""
    estimates = [estimate(run, 1.0, UTILISATION) for run in runs]
    kept, last = sum(e.disk_bytes for e in estimates), sum(e.checkpoint_bytes for e in estimates)
    return (
        f"checkpoints: {_gb(kept // 3)} of weights and {_gb(kept - kept // 3)} of the optimiser's state in the end, "
        f"{_gb(last)} in all after `runs prune --keep last`; records and logs are not counted"
    )


def _gb(size: int) -> str:
    gb = size / 1e9
    return f"{gb:,.1f} GB" if gb >= 1 else f"{gb:.2g} GB"
