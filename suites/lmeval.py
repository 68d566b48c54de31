"""Running lm-eval's own tasks, and turning what they log into measurements.

Tasks are given by lm-eval's YAML files and loaded one by one: no index of all its tasks, and none of the global
random seeds that `simple_evaluate` sets. Everything is zero-shot.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import datasets
import lm_eval.api.task
import lm_eval.tasks
import yaml
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import Task

from harness import stats
from harness.records import Measurement

TASKS_ROOT = Path(lm_eval.tasks.__file__).parent
"""Where lm-eval's own YAML files lie."""


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
        arguments = [sample["arguments"] for sample in self.samples]
        return hashlib.sha256(json.dumps(arguments, ensure_ascii=False).encode()).hexdigest()


def load_task(yaml_path: Path, metadata: dict[str, Any] | None = None, **overrides: Any) -> Task:
    """A zero-shot task from one of lm-eval's YAML files, with some of its fields replaced.

    metadata: handed to the task's data set function, as TaskManager does. Raises what loading the data set raises.
    """
    with TemporaryDirectory() as folder, quiet():
        # `include` wants a path of this machine, so the file is written when it is needed.
        generated = Path(folder) / "task.yaml"
        generated.write_text(yaml.safe_dump({"include": str(yaml_path), **overrides}), encoding="utf-8")
        manager = lm_eval.tasks.TaskManager(include_defaults=False, metadata=metadata)
        (task,) = manager.load([str(generated)])["tasks"].values()
    task.set_config(key="num_fewshot", value=0)
    return task


def run_tasks(lm: LM, tasks: Sequence[Task], limit: int | None = None) -> dict[str, TaskSamples]:
    """Evaluate loaded tasks on a model: their samples, keyed by task name, at most `limit` documents each."""
    with quiet():
        results = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task for task in tasks}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    collected = {}
    for task in tasks:
        samples = sorted(results["samples"][task.task_name], key=lambda sample: sample["doc_id"])
        total = len(task.eval_docs)
        used = limit if limit is not None and limit < total else None
        collected[task.task_name] = TaskSamples(task.task_name, samples, total, used)
    return collected


def measure(
    suite: str,
    run: TaskSamples,
    metric: str,
    settings: dict[str, Any],
    stand_in: str | None = None,
) -> Measurement:
    """The mean of a metric over the samples, or the perplexity where lm-eval logs log-likelihoods for one."""
    logged = [sample[metric] for sample in run.samples]
    if metric in ("perplexity", "word_perplexity"):
        # lm-eval logs (log-likelihood, words), or the log-likelihood alone where each document weighs the same.
        pairs = [entry if isinstance(entry, tuple) else (entry, 1) for entry in logged]
        value, stderr, samples = stats.perplexity([-pair[0] for pair in pairs], [pair[1] for pair in pairs])
    else:
        samples = tuple(float(entry) for entry in logged)
        value, stderr = stats.mean_stderr(samples)
    return Measurement(
        suite=suite,
        task=run.task,
        metric=metric,
        value=value,
        stderr=stderr,
        n=len(samples),
        stand_in=stand_in,
        limit=run.limit,
        settings={"items_sha256": run.items_sha256, **settings},
        samples=samples,
    )


def lm_settings(lm: LM) -> dict[str, Any]:
    """How a model reads a text, as far as it moves scores: its prefix token and its window, in tokens.

    bos: whether a text starts with the BOS token. Models of lm-eval that do not say are recorded as null.
    """
    return {"bos": getattr(lm, "add_bos_token", None), "max_length": getattr(lm, "max_length", None)}


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors of lm-eval and datasets are printed; they have no argument for it."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    silent = functools.partial(lm_eval.api.task.tqdm, disable=True)
    try:
        with mock.patch.object(lm_eval.api.task, "tqdm", silent):
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
