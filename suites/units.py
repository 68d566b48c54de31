"""Units of evaluation: the parts of suites that are measured apart, and which of them a run still lacks.

Nothing here imports torch or a suite, so that the status of thousands of runs is quick. What a unit is called is in
`harness.records.units`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.run_folder import TRAIN, RunFolder, place_name


@dataclass(frozen=True)
class SuiteFile:
    """The file that defines a suite. path: absolute. sha256: of its content when it was loaded."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Evaluation:
    """The work of one unit.

    options: validated options of its suite as JSON values, but for those at their neutral value (mixers.identity), so
    that a new option changes no key; and the versions of its protocols, where they are not the first. fresh: whether it
    measures a fresh model instead of a trained one. suite_file: the file that defines the suite, None for built-in
    suites and those of packages.
    """

    options: dict[str, Any]
    fresh: bool = False
    suite_file: SuiteFile | None = None

    def key(self, weights_sha256: str | None) -> str:
        """Return the hash that identifies this evaluation of some weights; those of a fresh model do not count."""
        content = [self.options, None if self.fresh else weights_sha256]
        if self.suite_file is not None:  # its content, wherever it lies
            content.append(self.suite_file.sha256)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def place(self, unit: str) -> str:
        """Return the name under which a run's folder keeps this evaluation of a unit.

        Evaluations with other options, or of another suite file, have other places, so that experiments that share a
        run do not replace each other's results.
        """
        return place_name(unit, self.key(None))


def place(unit: str, units: Mapping[str, Evaluation]) -> str:
    """Return the name under which a run's folder keeps the work of a unit: `train`, or the evaluation's place."""
    return TRAIN if unit == TRAIN else units[unit].place(unit)


def results(folder: Path, unit: str, asked: Evaluation, weights_sha256: str | None) -> str | None:
    """Return the place of the records of an evaluation; None if they are not there.

    Earlier versions kept one evaluation of each unit, under the unit's name. Where it is the one that is asked for, it
    is found there.
    """
    key = asked.key(weights_sha256)
    return next((place for place in (asked.place(unit), unit) if RunFolder(folder).read_done(place) == key), None)


def missing(folder: Path, units: Mapping[str, Evaluation]) -> list[str]:
    """Return what a run still lacks, in the order in which it is done.

    That is `train`, unless every unit measures a fresh model, and then the units without records of its weights.
    """
    weights = RunFolder(folder).weights_sha256()
    fresh = bool(units) and all(evaluation.fresh for evaluation in units.values())
    train = [TRAIN] if weights is None and not fresh else []
    # No evaluation of a trained model has the key of one without weights.
    return train + [unit for unit, asked in units.items() if results(folder, unit, asked, weights) is None]
