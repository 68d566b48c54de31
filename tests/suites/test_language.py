"""Table 2's tasks on their real data, held-out perplexity, and the offline copies that both run on."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from lm_eval import evaluator

from harness.data.corpus import Document
from harness.data.tokenizer import load_tokenizer
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import ModelConfig, build_model
from harness.records.published import printed_values
from suites import language
from suites.language import AVERAGED, SPECS, Config
from suites.shared import offline
from suites.shared.lmeval import TASKS_ROOT, load_task

LIMIT = 5
OFFLINE_TASKS = [task for task in SPECS if task != "wikitext"]


@pytest.fixture(scope="module")
def lm() -> MixerLM:
    tokenizer = load_tokenizer()
    config = ModelConfig(
        layout="recurrent",
        mixer="gated_deltanet",
        mixer_options={"heads": 2, "head_dim": 16},
        d_model=32,
        mlp_widths=[64],
        vocab_size=len(tokenizer),
    )
    return MixerLM(build_model(config, seed=0), tokenizer)


@pytest.fixture(scope="module")
def table(lm: MixerLM, offline_data: Path) -> dict[tuple[str, str], language.Measurement]:
    random.seed(1)
    before = random.getstate()
    found = language.Language().run(lm, Config(tasks=OFFLINE_TASKS, limit=LIMIT))
    assert random.getstate() == before, "evaluation must not touch the global random state"
    return {(m.task, m.metric): m for m in found}


def test_the_suite_gives_the_papers_columns_and_says_what_it_read(table: dict) -> None:
    expected = {(task, metric) for task in OFFLINE_TASKS for metric in SPECS[task].metrics}
    assert set(table) == expected | {("avg", "acc")}
    for key in expected:
        m = table[key]
        assert (m.suite, m.n, m.limit, m.stand_in) == ("language", LIMIT, LIMIT, None)
        assert m.settings["data"] == "offline copy" and m.settings["bos"] is True
        assert len(m.settings["items_sha256"]) == 64
        mean = sum(m.samples) / LIMIT
        assert m.value == pytest.approx(math.exp(mean) if m.metric == "perplexity" else mean)


def test_every_column_is_one_that_the_paper_prints(table: dict) -> None:
    printed = {key[2:] for key in printed_values()}
    wikitext = {("wikitext", metric) for metric in SPECS["wikitext"].metrics}
    assert {("language", task, metric, None) for task, metric in set(table) | wikitext} <= printed


def test_numbers_are_those_of_lm_evals_own_aggregation(lm: MixerLM, table: dict) -> None:
    tasks = {
        name: load_task(TASKS_ROOT / SPECS[name].definition, task=name, **offline.overrides(name))
        for name in ("lambada", "hellaswag", "boolq")
    }
    results = evaluator.evaluate(lm, {"tasks": tasks}, limit=LIMIT, bootstrap_iters=0)["results"]
    for (task, metric), m in table.items():
        if task in tasks:
            assert m.value == pytest.approx(results[task][f"{metric},none"])


def test_the_average_is_over_all_nine_or_absent(lm: MixerLM, table: dict) -> None:
    nine = [table[task, SPECS[task].averaged] for task in AVERAGED]
    average = table["avg", "acc"]
    assert len(nine) == 9 and average.n == 9 * LIMIT and average.limit == LIMIT
    assert average.value == pytest.approx(sum(m.value for m in nine) / 9)
    assert average.stderr == pytest.approx(math.sqrt(sum(m.stderr**2 for m in nine)) / 9)
    eight = language.Language().run(lm, Config(tasks=["piqa"], limit=2))
    assert [m.task for m in eight] == ["piqa"]


@pytest.mark.parametrize("task", OFFLINE_TASKS)
def test_the_offline_copy_is_whole_and_fits_lm_evals_definition(offline_data: Path, task: str) -> None:
    definition, data = language.load(task, use_offline=True)
    documents = list(definition.eval_docs)
    assert data == "offline copy" and len(documents) == offline.SOURCES[task][1]
    for document in (documents[0], documents[-1]):
        assert definition.doc_to_text(document) != ""
        choices = definition.doc_to_choice(document) if SPECS[task].metrics != ("perplexity", "acc") else None
        target = definition.doc_to_target(document)
        if task == "winogrande":  # its choices are contexts, and the index of the right one stands in their place
            target = definition.doc_to_text(document)
        if choices is not None:
            assert 0 <= int(target) < len(choices) > 1


def test_nothing_is_printed(lm: MixerLM, offline_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    messages: list[str] = []
    language.Language().run(lm, Config(tasks=["hellaswag"], limit=1), messages.append)
    assert capfd.readouterr() == ("", "") and messages == ["language: hellaswag"]


def test_heldout_perplexity_of_a_uniform_model_is_known(lm: MixerLM) -> None:
    uniform = MixerLM(build_model(lm.model.config, seed=1), lm.tokenizer)
    torch.nn.init.zeros_(uniform.model.head.weight)
    config = Config(tasks=["heldout"], limit=6, heldout_words=30)
    (m,) = language.Language().run(uniform, config)
    texts, total = language.heldout_texts(config)
    tokens = sum(len(lm.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    assert [len(text.split()) for text in texts] == [30] * 6 and total > 100
    assert m.value == pytest.approx(len(lm.tokenizer) ** (tokens / 180), rel=1e-4)  # fp32 sums of logarithms
    assert (m.task, m.metric, m.n, m.limit) == ("heldout", "word_perplexity", 6, 6)
    assert m.stand_in == f"{language.HELDOUT_STAND_IN}; first 30 words of each document"
    assert m.settings["heldout_words"] == 30


def test_heldout_takes_documents_from_every_source() -> None:
    sources = [document.source for document in language.documents("test")]
    texts, _ = language.heldout_texts(Config(tasks=["heldout"], limit=len(sources) // 5))
    origin = {document.text: document.source for document in language.documents("test")}
    assert {origin[text] for text in texts} == set(sources)


def test_the_unigram_baseline_counts_the_train_split(lm: MixerLM, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = "the king and the queen", "the king of the hill"
    corpus = {split: [Document(split, text, "austen", split)] for split, text in (("train", train), ("test", test))}
    monkeypatch.setattr(language, "documents", corpus.__getitem__)
    seen = lm.tokenizer.encode(train, add_special_tokens=False)
    asked = lm.tokenizer.encode(test, add_special_tokens=False)
    size = len(lm.tokenizer)
    nll = -sum(math.log((seen.count(token) + 1) / (len(seen) + size)) for token in asked)
    m = language.unigram_baseline(lm.tokenizer, Config(tasks=["heldout"]))
    assert m.value == pytest.approx(math.exp(nll / 5))
    assert (m.task, m.metric, m.stderr, m.n) == ("heldout", "word_perplexity", None, 1)
    beside = language.heldout(lm, Config(tasks=["heldout"]))
    assert m.stand_in == beside.stand_in == language.HELDOUT_STAND_IN
    assert m.settings["items_sha256"] == beside.settings["items_sha256"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ["piqa", "pika"]}, "unknown task 'pika'"),
        ({"tasks": ["piqa", "piqa"]}, "names one twice"),
        ({"task": ["piqa"]}, "Extra inputs"),
        ({"limit": 0}, "limit"),
    ],
)
def test_wrong_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_data_that_cannot_be_had_is_named_with_its_remedy(
    lm: MixerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="wikitext has no offline copy; leave it out"):
        language.Language().run(lm, Config(tasks=["wikitext"], offline=True))
    with pytest.raises(ValueError, match="wikitext cannot be read from the Hub .*; leave it out"):
        language.Language().run(lm, Config(tasks=["wikitext"]))
    with pytest.raises(ValueError, match="language tasks are not on this machine; run `python run.py data fetch`"):
        language.Language().run(lm, Config(tasks=["piqa"], offline=True))
    with pytest.raises(ValueError, match="piqa cannot be read from the Hub .*; run `python run.py data fetch`"):
        language.Language().run(lm, Config(tasks=["piqa"], offline=False))
