"""Running lm-eval's own tasks, and turning what they log into measurements.

Tasks are given by lm-eval's YAML files and loaded one by one: no index of all its tasks, and none of the global seeds
that `simple_evaluate` sets. Everything is zero-shot.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import Any
from unittest import mock

import datasets
import lm_eval.api.task
import lm_eval.tasks
import yaml
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import Task

from harness.records import stats
from harness.records.store import Measurement
from suites.shared.lm_requests import fingerprint, mean_measurement

TASKS_ROOT = Path(lm_eval.tasks.__file__).parent
"""Where lm-eval's own YAML files lie."""


class TaskDumper(yaml.SafeDumper):
    """Writes functions as lm-eval reads them: `!function module.name`."""


TaskDumper.add_representer(
    FunctionType, lambda dumper, f: dumper.represent_scalar("!function", f"{f.__module__}.{f.__qualname__}")
)


@dataclass(frozen=True)
class TaskSamples:
    """What one task logged.

    samples: lm-eval's per-sample dictionaries in the order of the documents: `doc`, `arguments`, `resps` and a value
    under the name of every metric. total: documents in the whole set. limit: documents asked for when fewer.
    """

    task: str
    samples: list[dict[str, Any]]
    total: int
    limit: int | None

    @property
    def items_sha256(self) -> str:
        """Hash of every request as the model got it, so that equal hashes mean equal questions."""
        return fingerprint(sample["arguments"] for sample in self.samples)


def load_task(yaml_path: Path, **overrides: Any) -> Task:
    """A zero-shot task from one of lm-eval's YAML files, with some of its fields replaced; functions may be values.

    Raises what loading the data set raises.
    """
    with TemporaryDirectory() as folder, quiet_lm_eval():
        # `include` wants a path of this machine, so the file is written when it is needed.
        generated = Path(folder) / "task.yaml"
        generated.write_text(yaml.dump({"include": str(yaml_path), **overrides}, Dumper=TaskDumper), encoding="utf-8")
        manager = lm_eval.tasks.TaskManager(include_defaults=False)
        (task,) = manager.load([str(generated)])["tasks"].values()
        task.set_config(key="num_fewshot", value=0)
        process = task.config.process_docs
        if process is not None:
            # lm-eval would process the whole split again for each use, five times in an evaluation.
            split = task.config.test_split or task.config.validation_split
            task.dataset[split] = process(task.dataset[split])
            task.set_config(key="process_docs", value=None)
    return task


def run_tasks(lm: LM, tasks: Sequence[Task], limit: int | None = None) -> dict[str, TaskSamples]:
    """Evaluate loaded tasks on a model: their samples, keyed by task name, at most `limit` documents each."""
    collected = {}
    with quiet_lm_eval():
        results = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task for task in tasks}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
        for task in tasks:
            samples = sorted(results["samples"][task.task_name], key=lambda sample: sample["doc_id"])
            total = len(task.eval_docs)
            used = limit if limit is not None and limit < total else None
            collected[task.task_name] = TaskSamples(task.task_name, samples, total, used)
    return collected


def task_measurement(run: TaskSamples, metric: str, settings: dict[str, Any], **rest: Any) -> Measurement:
    """The mean of a metric over a task's samples, or the perplexity where lm-eval logs log-likelihoods for one.

    settings: beside the hash of the items, which is added. rest: other fields of Measurement, `suite` among them.
    """
    rest = {"task": run.task, "limit": run.limit, "settings": {"items_sha256": run.items_sha256, **settings}, **rest}
    logged = [sample[metric] for sample in run.samples]
    if metric not in ("perplexity", "word_perplexity"):
        return mean_measurement(metric, [float(entry) for entry in logged], **rest)
    # lm-eval logs (log-likelihood, words), or the log-likelihood alone where every document weighs the same.
    pairs = [entry if isinstance(entry, tuple) else (entry, 1) for entry in logged]
    return perplexity_measurement(metric, [-pair[0] for pair in pairs], [pair[1] for pair in pairs], **rest)


def perplexity_measurement(metric: str, nll: Sequence[float], units: Sequence[float], **rest: Any) -> Measurement:
    """A perplexity over documents, from their negative log-likelihoods in nats and their lengths in words (or 1)."""
    value, stderr, samples = stats.perplexity(nll, units)
    return Measurement(metric=metric, value=value, stderr=stderr, n=len(samples), samples=samples, **rest)


def lm_settings(lm: LM) -> dict[str, Any]:
    """How a model reads a text, as far as it moves scores: its prefix token and its window, in tokens.

    bos: whether a text starts with the BOS token. Models of lm-eval that do not say are recorded as null.
    """
    return {"bos": getattr(lm, "add_bos_token", None), "max_length": getattr(lm, "max_length", None)}


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """lm-eval prints errors only, and leaves Python's global random state alone, from which it draws task ids."""
    state, logger = random.getstate(), logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    silent = functools.partial(lm_eval.api.task.tqdm, disable=True)
    try:
        with mock.patch.object(lm_eval.api.task, "tqdm", silent):
            yield
    finally:
        random.setstate(state)
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
