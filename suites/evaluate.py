"""Evaluation of one unit of a suite on a run, from loading its weights to writing its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from harness.experiments.run_config import RunConfig, read_config
from harness.lm.journal import Journal
from harness.lm.load import load_lm
from harness.records.provenance import Provenance, provenance
from harness.records.record import Measurement, Record
from harness.records.store import write_records
from harness.records.units import suite_of
from harness.run_folder import RunFolder
from harness.training import checkpoint
from harness.training.device import this_device
from suites.interface import Progress, silent
from suites.registry import require_file, stored_config, suite
from suites.units import Evaluation


def evaluate(
    folder: Path,
    unit: str,
    evaluation: Evaluation,
    label: str,
    command: str,
    progress: Progress = silent,
) -> None:
    """Measure one unit of a suite on a trained run and write its records, whole or not at all.

    An evaluation that was killed resumes after the last answers that it wrote to disk. Raises ValueError if the run is
    not trained, the suite does not take the options, or the file that defines the suite has changed.
    """
    require_file(evaluation.suite_file)
    config = read_config(folder)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    chosen, lm = suite(suite_of(unit)), load_lm(folder)
    key = evaluation.key(checkpoint.digest(lm.model.state_dict()))
    answers = RunFolder(folder).answers(unit, key)
    for other in RunFolder(folder).all_answers(unit):
        if other != answers:  # answers to other options, or from other weights
            other.unlink()
    options = stored_config(chosen.name, evaluation.options)
    measurements = chosen.run(Journal(lm, answers, progress), options, progress)
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
    """Write the measurements of a unit as records of a run, and its `.done` file last."""
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
    RunFolder(folder).write_done(unit, key)
