"""lm-eval's own tasks: loading without traces, samples in order, and measurements from what a task logs."""

import logging
import math
import random
from types import SimpleNamespace

import datasets
import pytest

from harness.lm.generate import NotFinite
from suites.shared import offline
from suites.shared.lmeval import (
    TASKS_ROOT,
    TaskSamples,
    lm_settings,
    load_task,
    quiet_lm_eval,
    run_tasks,
    task_measurement,
)
from tests.suites.retriever import SearchingLM


def logged(metric: str, *entries: object) -> TaskSamples:
    """Return the samples of a task that logged `entries` under a metric."""
    samples = [
        {"arguments": [["context", f" {i}"]], "filtered_resps": [(-1.0, entry == 1)], metric: entry}
        for i, entry in enumerate(entries)
    ]
    definition = SimpleNamespace(OUTPUT_TYPE="loglikelihood")
    return TaskSamples("task", samples, total=10, limit=len(samples), definition=definition)


def test_lm_eval_changes_neither_random_state_nor_logging_nor_progress_bars() -> None:
    logger = logging.getLogger("lm_eval")
    before = random.getstate(), logger.level, datasets.are_progress_bars_disabled()
    with pytest.raises(RuntimeError), quiet_lm_eval():
        assert logger.level == logging.ERROR and datasets.are_progress_bars_disabled()
        random.random()
        raise RuntimeError
    assert (random.getstate(), logger.level, datasets.are_progress_bars_disabled()) == before


def test_a_metric_is_the_mean_of_what_was_logged() -> None:
    m = task_measurement(logged("acc", 1, 0, 1, 1), "acc", {"data": "offline"}, suite="suite")
    assert (m.suite, m.task, m.metric, m.value, m.n, m.limit) == ("suite", "task", "acc", 0.75, 4, 4)
    assert m.settings["data"] == "offline" and len(m.settings["items_sha256"]) == 64
    assert [(a.asked, a.expected, a.said) for a in m.answers[:2]] == [("context", "0", "0"), ("context", "1", None)]


@pytest.mark.parametrize(
    ("metric", "entries", "value"),
    [
        ("perplexity", (-math.log(2), -math.log(8)), 4.0),
        # Words weigh the documents: exp((6 ln 2) / (1 + 2)).
        ("word_perplexity", ((-2 * math.log(2), 1), (-4 * math.log(2), 2)), 4.0),
    ],
)
def test_perplexities_come_from_log_likelihoods(metric: str, entries: tuple, value: float) -> None:
    assert task_measurement(logged(metric, *entries), metric, {}, suite="suite").value == pytest.approx(value)


def test_equal_questions_have_equal_hashes() -> None:
    assert logged("acc", 1, 0).items_sha256 == logged("acc", 0, 0).items_sha256 != logged("acc", 1).items_sha256


def test_settings_say_how_a_model_encodes_and_what_it_does_not_expose_is_null() -> None:
    assert lm_settings(SearchingLM(sees=True, max_length=7)) == {"bos": True, "max_length": 7}
    assert lm_settings(SimpleNamespace()) == {"bos": None, "max_length": None}


def test_a_loaded_task_is_zero_shot_and_its_samples_keep_the_order_of_the_documents(offline_data) -> None:
    task = load_task(TASKS_ROOT / "piqa" / "piqa.yaml", task="piqa", **offline.overrides("piqa"))
    assert task.config.num_fewshot == 0
    run = run_tasks(SearchingLM(sees=False), [task], limit=3)["piqa"]
    assert (run.task, run.total, run.limit) == ("piqa", 1838, 3)
    assert [sample["doc_id"] for sample in run.samples] == [0, 1, 2]
    assert run.samples[0]["doc"]["goal"] == task.eval_docs[0]["goal"]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_log_likelihood_that_is_not_finite_fails_the_task_and_names_the_document(offline_data, value: float) -> None:
    class Broken(SearchingLM):
        def _loglikelihood_tokens(self, requests, **kwargs):
            scores = super()._loglikelihood_tokens(requests, **kwargs)
            return [*scores[:3], (value, False), *scores[4:]]  # the second choice of the second document

    task = load_task(TASKS_ROOT / "piqa" / "piqa.yaml", task="piqa", **offline.overrides("piqa"))
    with pytest.raises(NotFinite, match="piqa, sample 1: the model's output is not finite"):
        run_tasks(Broken(sees=False), [task], limit=3)
