"""Requests to lm-eval models and scores of their answers: options, prompt lengths, fingerprints, means."""

from types import SimpleNamespace

import pytest

from harness.lm.generate import NotFinite
from harness.lm.mixer_lm import ENOUGH
from suites.shared.lm_requests import (
    check_distinct,
    check_prompt_length,
    contains,
    encode,
    fingerprint,
    generate,
    log_likelihoods,
    mean_measurement,
    token_count,
    tokenizer_of,
)
from tests.suites.retriever import UNKNOWN, SearchingLM, tokenizer


def test_every_request_has_options_of_its_own() -> None:
    lm = SearchingLM(sees=False)
    assert generate(lm, "task", ["one", "two"], ["\n"], 5) == [" ?", " ?"]
    first, second = lm.generation_options
    assert first == second == {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    first.pop("until")  # as some models do
    assert second["until"] == ["\n"]


@pytest.mark.parametrize("stops", [True, False])
def test_only_a_model_that_can_stop_early_is_told_when_an_answer_is_enough(stops: bool) -> None:
    lm = SearchingLM(sees=False)
    lm.stops_when_enough = stops
    generate(lm, "task", ["one", "two"], [], 5, enough=[[("a", "b")], [("c",)]])
    assert [options.get(ENOUGH) for options in lm.generation_options] == (
        [[["a", "b"]], [["c"]]] if stops else [None, None]
    )


def test_log_likelihoods_are_in_nats_in_the_order_of_the_pairs() -> None:
    lm = SearchingLM(sees=False)
    pairs = [("A text", " one"), ("A text", " one hundred and seven")]
    counts = [len(lm.tok_encode(a + b)) - len(lm.tok_encode(a)) for a, b in pairs]
    assert counts[0] < counts[1]
    assert log_likelihoods(lm, "task", pairs) == [UNKNOWN * count for count in counts]


def test_a_log_likelihood_that_is_not_finite_names_task_and_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = SearchingLM(sees=False)
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda requests, **_: [(-1.0, True), (float("nan"), True)])
    with pytest.raises(NotFinite, match="task, sample 1: the model's output is not finite"):
        log_likelihoods(lm, "task", [("A text", " one"), ("A text", " two")])


def test_a_model_without_a_tokenizer_is_named_with_the_remedy() -> None:
    lm = SearchingLM(sees=True)
    assert tokenizer_of(lm, "suite") is lm.tokenizer
    with pytest.raises(ValueError, match="suite: SimpleNamespace exposes no tokenizer .*; use a model class with"):
        tokenizer_of(SimpleNamespace(tokenizer=None), "suite")


def test_tokens_are_counted_with_the_bos() -> None:
    tok = tokenizer()
    assert token_count(tok, "") == 1 and token_count(tok, "A text.") == 1 + len(encode(tok, "A text."))
    without_bos = SimpleNamespace(encode=tok.encode, bos_token=None)
    assert token_count(without_bos, "") == 0


def test_a_prompt_that_a_model_would_cut_is_refused() -> None:
    check_prompt_length(SearchingLM(sees=True, max_length=8), "suite.length", 8)
    check_prompt_length(SearchingLM(sees=True), "suite.length", 10**9)
    with pytest.raises(ValueError, match="suite.length: 9 tokens do not fit the model's max_length of 8; raise max"):
        check_prompt_length(SearchingLM(sees=True, max_length=8), "suite.length", 9)


def test_values_named_twice_are_refused() -> None:
    assert check_distinct([1, 2]) == [1, 2]
    with pytest.raises(ValueError, match=r"\[1, 2, 1\] names one twice; name each once"):
        check_distinct([1, 2, 1])


def test_fingerprints_depend_on_content_and_order() -> None:
    assert fingerprint(["ä", ["b"]]) == fingerprint(iter(["ä", ("b",)]))
    assert len({fingerprint(items) for items in ([], ["a"], ["a", "b"], ["b", "a"], ["ab"], [["a", "b"]])}) == 6


def test_a_mean_has_the_standard_error_of_its_scores() -> None:
    m = mean_measurement("contains", [1.0, 0.0, 0.0, 0.0], suite="suite", task="task")
    # Deviation 1/2 of four scores: (1 · 9/16 + 3 · 1/16) / 3 = 1/4.
    assert (m.value, m.n, m.samples) == (0.25, 4, (1.0, 0.0, 0.0, 0.0)) and m.stderr == pytest.approx(0.25)


def test_scoring_is_substring_ignoring_case():
    assert contains(" It is 8FED1D72-915f, I think", ["8fed1d72-915F"]) == 1.0
    assert contains(" 1234568", ["1234567"]) == 0.0
    assert contains("", ["1234567"]) == 0.0
