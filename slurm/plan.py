"""The plan of an experiment: its runs, and which training and evaluations each still lacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.data.synthetic import recall_words
from harness.data.tokenizer import load_tokenizer
from harness.experiments.expand import expand
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment
from harness.records.units import suite_of
from harness.training.batches import data_sha256, open_data
from harness.training.metrics_log import require_tracker
from suites.registry import check as check_suite
from suites.registry import evaluations, load_files
from suites.units import Evaluation, missing


@dataclass(frozen=True)
class RunPlan:
    """One run of an experiment, and what it still lacks.

    folder: holds everything the run produces. units: its evaluations, by unit name (a suite, or SUITE@LENGTH).
    missing: the units without results, in the order in which they are done; `train` comes first.
    """

    config: RunConfig
    folder: Path
    units: dict[str, Evaluation]
    missing: list[str]


def check(experiment: Experiment) -> None:
    """Check everything that training and evaluation need and `plan` does not look at.

    Raises ValueError if the training data are unsound or too short, if data of a suite are missing, or if the tracker
    is not installed. Writes the shards of the embedded corpus if they do not exist yet. Checks nothing for an
    experiment without training.
    """
    if not experiment.data.phases:
        return
    require_tracker(experiment.train)
    tokenizer = load_tokenizer(experiment.data.tokenizer)
    data = open_data(experiment.data)
    for phase in experiment.data.phases if data is not None else ():
        if "text" in phase.rows:
            data.windows("train", phase.seq_len)
        if phase.rows.keys() - {"text"}:
            recall_words(tokenizer)
    for name, options in experiment.suites.items():
        check_suite(name, options, tokenizer)


def plan(experiment: Experiment, runs_root: Path) -> list[RunPlan]:
    """All runs of an experiment, and what each still lacks.

    An experiment without training needs no data and no tokenizer: its models have the preset's vocabulary. Raises
    ValueError for unknown mixers or suites, invalid options, an impossible match, or a missing tokenizer or data set.
    """
    load_files(experiment.suite_files)
    units: dict[str, Evaluation] = {}
    for name, options in experiment.suites.items():
        units |= evaluations(name, options)
    if experiment.data.phases:
        runs = expand(experiment, len(load_tokenizer(experiment.data.tokenizer)), data_sha256(experiment.data))
    elif units and all(evaluation.fresh for evaluation in units.values()):
        runs = expand(experiment, None, "none")
    else:
        needing = (
            ", ".join(dict.fromkeys(suite_of(u) for u in units if not units[u].fresh)) or "an experiment without suites"
        )
        raise ValueError(f"data.phases: none, and {needing} needs trained models; say what they are trained on")
    folders = [runs_root / config.run_id for config in runs]
    return [RunPlan(c, f, units, missing(f, units)) for c, f in zip(runs, folders, strict=True)]
