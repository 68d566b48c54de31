"""Evaluation of one unit of a suite on a run, from loading its weights to writing its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.experiments.schema import RunConfig
from harness.files import write_atomic
from harness.lm.journal import Journal
from harness.lm.load import load_lm
from harness.records.provenance import Provenance, provenance
from harness.records.store import Measurement, Record, write_records
from harness.training import checkpoint
from harness.training.device import this_device
from harness.training.run_folder import read_config
from suites import suite
from suites.units import evaluation_key


def evaluate(
    folder: Path,
    unit: str,
    options: dict[str, Any],
    label: str,
    command: str,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a unit of a suite on a trained run and write its records, whole or not at all. One that was killed goes on
    behind the last answers that it wrote down.

    Raises ValueError for a run that is not trained or options that the suite does not take.
    """
    config = read_config(folder)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    module, lm = suite(unit.partition("@")[0]), load_lm(folder)
    key = evaluation_key(options, checkpoint.digest(lm.model.state_dict()))
    answers = folder / "answers" / f"{unit}-{key[:12]}.jsonl"
    for other in answers.parent.glob(f"{unit}-*.jsonl"):
        if other != answers:  # of other options or other weights
            other.unlink()
    measurements = module.run(Journal(lm, answers, progress), module.Config(**options), progress=progress)
    birth = provenance(config.hash, this_device(), lm.dtype, backend=lm.model.backend(lm.dtype), command=command)
    keep(folder, unit, measurements, birth, config, label, key)


def keep(
    folder: Path,
    unit: str,
    measurements: Sequence[Measurement],
    birth: Provenance,
    config: RunConfig,
    label: str,
    key: str,
) -> None:
    """Write what a unit has measured as records of a run, and that it is done."""
    write_records(
        folder,
        unit,
        [
            Record.of(
                m,
                birth,
                run=config.run_id,
                label=label,
                mixer=config.mixer,
                layout=config.layout,
                preset=config.preset,
                seed=config.seed,
            )
            for m in measurements
        ],
    )
    write_atomic(folder / "records" / f"{unit}.done", key.encode())
