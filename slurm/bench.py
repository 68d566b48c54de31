"""Benchmark of planning and `status` for an experiment with thousands of runs, over synthetic markers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.experiments.schema import Experiment
from harness.files import CHECKOUT, write_atomic
from harness.run_folder import RunFolder, Summary
from slurm.plan import RunPlan, plan
from slurm.snapshot import open_submission
from slurm.state import ended, started, write_status
from suites.units import TRAIN

MIXERS = ["gdn2", "gated_deltanet", "kda", "mamba2", "attention"]


def run(count: int) -> list[dict[str, Any]]:
    """Time planning and `status` for an experiment of at least `count` runs with ten evaluations each.

    Returns one row per measurement: `what`, `seconds`, `runs`, `units`. Planning is timed in this process, before
    anything is done, with nine combinations to tune on two seeds, and with a mix of finished, running, queued and
    failed runs; `status` as a whole command.
    """
    seeds = list(range(-(-count // len(MIXERS))))
    fields: dict[str, Any] = {
        "name": "many",
        "preset": "cpu-600k",
        "mixers": MIXERS,
        "seeds": seeds,
        "data": {"phases": [{"tokens": 1_000_000, "seq_len": 256, "rows": {"text": 8}}]},
        "suites": {
            "language": {"tasks": ["heldout"]},
            "recall": {"samples": 8},
            "ruler": {"lengths": [256 * n for n in range(1, 9)], "haystack": "corpus"},
        },
    }
    tuning = {
        "grid": {"train.lr": [1e-3, 3e-3, 1e-2], "train.init_gain": [2**-2.5, 0.7, "upstream"]},
        "seeds": [len(seeds), len(seeds) + 1],
        "choose": {"suite": "recall", "task": "mqar", "metric": "acc"},
    }
    experiment = Experiment.model_validate(fields)
    tuned = Experiment.model_validate(fields | {"tuning": tuning})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [_timed("plan, nothing done", lambda: plan(experiment, root))]
        rows.append(_timed("plan, tuned", lambda: plan(tuned, root)))
        plans = plan(experiment, root)
        open_submission(experiment, plans, root, "slurm")
        for index, planned in enumerate(plans):
            _mark(planned, index)
        rows.append(_timed("plan, partly done", lambda: plan(experiment, root)))
        command = [sys.executable, str(CHECKOUT / "run.py"), "status", "many", "--runs", folder]
        rows.append(_timed("status, the command", lambda: subprocess.run(command, check=True, capture_output=True)))
    return [row | {"runs": len(plans), "units": len(plans[0].units)} for row in rows]


def _timed(what: str, call: Callable[[], object]) -> dict[str, Any]:
    begin = time.perf_counter()
    call()
    return {"what": what, "seconds": time.perf_counter() - begin}


def _mark(run: RunPlan, index: int) -> None:
    """Write the markers of a run that is done, partly evaluated, training, failed or untouched, in turn."""
    kind = index % 5
    if kind == 4:
        return
    started(run.folder, TRAIN, "log")
    if kind == 3:
        ended(run.folder, TRAIN, "failed", "step 17: loss nan")
        write_status(run.folder, TRAIN, "failed", "step 17: loss nan")
    elif kind == 2:
        write_status(run.folder, TRAIN, "running", step=17, steps=489, loss=3.2, tokens_per_second=9e3, seconds_left=99)
    else:
        RunFolder(run.folder).write_summary(synthetic_summary(run), {})
        for number, (unit, evaluation) in enumerate(run.units.items()):
            if kind == 0 or number < 5:
                place, folder = run.place(unit), RunFolder(run.folder)
                write_atomic(folder.records(place), b"{}\n")
                folder.write_done(place, evaluation.key("0"))
            else:
                write_status(run.folder, run.place(unit), "queued", "as recall-0", job=f"12_{index}")


def synthetic_summary(run: RunPlan) -> Summary:
    """A summary whose numbers are all one."""
    config = run.config
    names = {"run": config.run_id, "label": config.label, "mixer": config.mixer, "layout": config.layout}
    counts = ("non_embedding_params", "embedding_params", "state_floats_per_layer", "steps", "tokens_seen")
    numbers = dict.fromkeys((*counts, "flops_per_token", "train_loss", "tokens_per_second"), 1)
    return Summary(**names, **numbers, preset=config.preset, seed=config.seed, mlp_widths=[1], weights_sha256="0")


def render(rows: list[dict[str, Any]]) -> str:
    """The rows of `run` as text, one line each."""
    return "\n".join(
        f"{r['what']:24} {r['runs']:6} runs × {r['units']} evaluations  {r['seconds']:6.2f} s" for r in rows
    )
