"""The needle score: log-likelihoods per token of the answer, and the gain through the passage that holds it."""

import pytest

from suites.shared.needle import Probe, needle_measurements, needle_scores
from tests.suites.retriever import KNOWN, NEEDLE_ASKED, UNKNOWN, SearchingLM

QUESTION = "What is the special magic number for oak" + NEEDLE_ASKED.replace(" is", "?") + " The number for oak"
NEEDLE = "One of the special magic numbers for oak is: 1234567.\n"
WITH = Probe(f"{NEEDLE}{QUESTION}{NEEDLE_ASKED}", f"{QUESTION}{NEEDLE_ASKED}", " 1234567")
ALONE = Probe(WITH.prompt, None, WITH.continuation)


def test_a_model_that_reads_the_needle_gains_from_it_and_a_blind_one_does_not() -> None:
    assert needle_scores(SearchingLM(sees=True), "task", [WITH]) == ([KNOWN], [KNOWN - UNKNOWN])
    assert needle_scores(SearchingLM(sees=False), "task", [WITH]) == ([UNKNOWN], [0.0])


def test_only_probes_with_a_prompt_without_the_needle_have_gains() -> None:
    lm = SearchingLM(sees=True)
    assert needle_scores(lm, "task", [ALONE, WITH]) == ([KNOWN, KNOWN], [KNOWN - UNKNOWN])
    both = needle_measurements(lm, [ALONE, WITH], "task", suite="suite", length=64)
    assert [(m.metric, m.n, m.task, m.suite, m.length) for m in both] == [
        ("needle_logprob", 2, "task", "suite", 64),
        ("needle_gain", 1, "task", "suite", 64),
    ]
    assert [m.metric for m in needle_measurements(lm, [ALONE], "task", suite="suite")] == ["needle_logprob"]


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="task: the answer '' adds no token to its prompt; use another task"):
        needle_scores(SearchingLM(sees=True), "task", [Probe("prompt", None, "")])
