"""Evaluation of one unit of a suite on a run, from loading its weights to writing its records."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from harness.experiments.run_config import RunConfig, read_config
from harness.lm.journal import Journal
from harness.lm.load import load_lm
from harness.records.provenance import Provenance, entry, provenance
from harness.records.record import Measurement, Record
from harness.records.store import write_records
from harness.records.units import suite_of
from harness.run_folder import RunFolder
from harness.training import checkpoint
from harness.training.device import this_device
from suites.interface import Progress, silent
from suites.registry import require_file, stored_config, suite
from suites.units import Evaluation

log = logging.getLogger(__name__)


def evaluate(
    folder: Path,
    unit: str,
    evaluation: Evaluation,
    label: str,
    command: str,
    progress: Progress = silent,
) -> None:
    """Measure one unit of a suite on a trained run and write its records, whole or not at all.

    An evaluation that was killed resumes after the last answers that it wrote to disk. If the code has changed since,
    it asks anew: a record names the code that gave all of its answers. Raises ValueError if the run is not trained, the
    suite does not take the options, or the file that defines the suite has changed.
    """
    require_file(evaluation.suite_file)
    config = read_config(folder)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    chosen, lm = suite(suite_of(unit)), load_lm(folder)
    key = evaluation.key(checkpoint.digest(lm.model.state_dict()))
    run, place = RunFolder(folder), evaluation.place(unit)
    files = (config.mixer_file, evaluation.suite_file)
    birth = provenance(
        config.hash, this_device(), lm.dtype, lm.model.backend(lm.dtype, gradients=False), command, files
    )
    answers = run.answers(place, answers_key(key, birth))
    for other in run.all_answers(place):
        if other != answers:  # of other weights, or by other code
            other.unlink()
    options = stored_config(chosen.name, evaluation.options)
    journal = Journal(lm, answers, progress)
    fallbacks = lm.model.fallbacks(lm.dtype, gradients=False)
    for line in fallbacks:
        log.warning(line)
    run.append_history(place, entry(birth, len(journal.answers), processes=1, fallbacks=fallbacks))
    measurements = chosen.stamped(options, chosen.run(journal, options, progress))
    keep(folder, place, measurements, birth, config, label, key)
    answers.unlink(missing_ok=True)


def answers_key(key: str, birth: Provenance) -> str:
    """Key of the answers to an evaluation: everything that may change them.

    key: of the evaluation, with its weights. The machine, its threads, the moment and the command do not count, so that
    an evaluation may move; its history names every machine.
    """
    ignored = ("device", "threads", "time", "command", "git_commit", "git_dirty", "code_version")
    content = {name: value for name, value in asdict(birth).items() if name not in ignored}
    return hashlib.sha256(json.dumps([key, content], sort_keys=True).encode()).hexdigest()


def keep(
    folder: Path,
    place: str,
    measurements: Sequence[Measurement],
    birth: Provenance,
    config: RunConfig,
    label: str,
    key: str,
) -> None:
    """Write the measurements of a unit as records of a run at its place, and the mark that they are there last."""
    write_records(
        folder,
        place,
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
    RunFolder(folder).write_done(place, key)
