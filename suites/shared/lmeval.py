"""lm-eval's own tasks: loading and running them, and measurements of the samples that they log.

Tasks come from lm-eval's YAML files and are loaded one by one, without an index of all its tasks and without the
global seeds that `simple_evaluate` sets. Everything is zero-shot.
"""

from __future__ import annotations

import functools
import logging
import math
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
import numpy as np
import yaml
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import Task

from harness.lm.generate import NotFinite
from harness.records import stats
from harness.records.answers import MOST_ANSWERS, Answer
from harness.records.record import Measurement
from suites.shared.lm_requests import fingerprint, mean_measurement

TASKS_ROOT = Path(lm_eval.tasks.__file__).parent
"""The folder of lm-eval's own YAML files."""


class TaskDumper(yaml.SafeDumper):
    """A YAML writer that represents functions as lm-eval reads them: `!function module.name`."""


TaskDumper.add_representer(
    FunctionType, lambda dumper, f: dumper.represent_scalar("!function", f"{f.__module__}.{f.__qualname__}")
)


@dataclass(frozen=True)
class TaskSamples:
    """The samples that one task logged.

    samples: lm-eval's per-sample dictionaries in the order of the documents: `doc`, `arguments`, `resps` and one value
    under each metric's name. total: documents in the whole set. limit: documents used if fewer than all, else None.
    definition: the task, which knows the choices of a document.
    """

    task: str
    samples: list[dict[str, Any]]
    total: int
    limit: int | None
    definition: Task

    @property
    def items_sha256(self) -> str:
        """The hash of all requests as the model received them; equal hashes mean equal questions."""
        return fingerprint(sample["arguments"] for sample in self.samples)


def load_task(yaml_path: Path, **overrides: Any) -> Task:
    """Return a zero-shot task from one of lm-eval's YAML files, with the fields of `overrides` replaced.

    overrides: values may be functions. An error from loading the data set passes through.
    """
    with TemporaryDirectory() as folder, quiet_lm_eval():
        # `include` needs an absolute path, so the file is generated on the machine that reads it.
        generated = Path(folder) / "task.yaml"
        generated.write_text(yaml.dump({"include": str(yaml_path), **overrides}, Dumper=TaskDumper), encoding="utf-8")
        manager = lm_eval.tasks.TaskManager(include_defaults=False)
        (task,) = manager.load([str(generated)])["tasks"].values()
        task.set_config(key="num_fewshot", value=0)
        process = task.config.process_docs
        if process is not None:
            # lm-eval would process the whole split again at each use, five times per evaluation.
            split = task.config.test_split or task.config.validation_split
            task.dataset[split] = process(task.dataset[split])
            task.set_config(key="process_docs", value=None)
    return task


def run_tasks(lm: LM, tasks: Sequence[Task], limit: int | None = None) -> dict[str, TaskSamples]:
    """Evaluate loaded tasks on a model, at most `limit` documents each; return their samples by task name.

    Raises NotFinite with task and document if a log-likelihood is not finite: an accuracy would still come of it.
    """
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
            for sample in samples:
                if not all(map(math.isfinite, _numbers(sample["resps"]))):
                    raise NotFinite(sample["doc_id"], task.task_name)
            total = len(task.eval_docs)
            used = limit if limit is not None and limit < total else None
            collected[task.task_name] = TaskSamples(task.task_name, samples, total, used, task)
    return collected


def _numbers(responses: Any) -> Iterator[float]:
    """All numbers in the nested answers of a model, such as (log-likelihood, is greedy)."""
    if isinstance(responses, list | tuple):
        for response in responses:
            yield from _numbers(response)
    elif isinstance(responses, float):
        yield responses


def task_measurement(run: TaskSamples, metric: str, settings: dict[str, Any], **fields: Any) -> Measurement:
    """Return the mean of a metric over a task's samples; `perplexity` and `word_perplexity` come from log-likelihoods.

    settings: stored together with the hash of the items. fields: other fields of Measurement, such as `suite`.
    """
    settings = {"items_sha256": run.items_sha256, **settings}
    fields = {"task": run.task, "limit": run.limit, "settings": settings, **fields}
    logged = [sample[metric] for sample in run.samples]
    if metric not in ("perplexity", "word_perplexity"):
        texts = [shown(run.definition, sample, metric) for sample in run.samples[:MOST_ANSWERS]]
        return mean_measurement(metric, [float(entry) for entry in logged], answers=tuple(texts), **fields)
    # lm-eval logs (log-likelihood, words), or the log-likelihood alone if every document has the same weight.
    pairs = [entry if isinstance(entry, tuple) else (entry, 1) for entry in logged]
    return perplexity_measurement(metric, [-pair[0] for pair in pairs], [pair[1] for pair in pairs], **fields)


def shown(definition: Task, sample: dict[str, Any], metric: str) -> Answer:
    """Question, right answer and the model's answer in one sample of a task with right and wrong answers.

    Among choices the model's answer is the likeliest one, per character for acc_norm. Of a continuation only its own
    likelihood is known: the answer is its text if the model would have written it, and else None.
    """
    context, continuation = sample["arguments"][0][:2]
    if definition.OUTPUT_TYPE != "multiple_choice":
        return Answer(context, continuation.strip(), continuation.strip() if sample["filtered_resps"][0][1] else None)
    doc = sample["doc"]
    choices = definition.doc_to_choice(doc)
    values = np.array([value for value, _ in sample["filtered_resps"]])
    if metric == "acc_norm":
        values /= [len(choice) for choice in choices]
    if definition.multiple_input:  # the choices are beginnings of one continuation
        right, asked = definition.doc_to_text(doc), f"{' | '.join(choices)} …{continuation}"
    else:
        right, asked = definition.doc_to_target(doc), f"{context} {' | '.join(choices)}"
    return Answer(asked, choices[int(right)], choices[int(values.argmax())])


def perplexity_measurement(metric: str, nll: Sequence[float], units: Sequence[float], **fields: Any) -> Measurement:
    """Return the perplexity over documents.

    nll: negative log-likelihood per document, in nats. units: length of each document in words, or 1. fields: other
    fields of Measurement.
    """
    value, stderr, samples = stats.perplexity(nll, units)
    return Measurement(metric=metric, value=value, stderr=stderr, n=len(samples), samples=samples, **fields)


def lm_settings(lm: LM) -> dict[str, Any]:
    """Return the settings of a model that affect scores; null if an lm-eval model does not expose one.

    bos: whether a text starts with the BOS token, as it is encoded. max_length: the longest input in tokens.
    """
    encode, bos = getattr(lm, "tok_encode", None), getattr(lm, "prefix_token_id", None)
    starts = None if encode is None or bos is None else list(encode("a"))[:1] == [bos]
    return {"bos": starts, "max_length": getattr(lm, "max_length", None)}


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Limit lm-eval's output to errors, and restore Python's global random state, from which it draws task ids."""
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
