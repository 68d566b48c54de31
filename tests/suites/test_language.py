"""Table 2's tasks on their real data, held-out perplexity, and the offline copies that both run on."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM

from harness.data.corpus import Document
from harness.data.tokenizer import load_tokenizer
from harness.lm.export import export
from harness.lm.journal import Journal
from harness.lm.load import load_lm
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import ModelConfig, build_model
from harness.records.published import printed_values
from suites import language
from suites.language import AVERAGED, SPECS, Config
from suites.shared import offline
from suites.shared.lmeval import TASKS_ROOT, load_task
from tests.harness.lm.conftest import modules_cache  # noqa: F401
from tests.harness.lm.runs import finished_run, model_config

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
    return MixerLM(build_model(config, seed=0), tokenizer, rolling_length=128)


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


def test_the_answer_that_is_shown_is_the_one_that_was_scored(table: dict) -> None:
    for (task, metric), m in table.items():
        if metric == "perplexity" or task == "avg":
            assert m.answers is None
            continue
        assert len(m.answers) == LIMIT
        for answer, score in zip(m.answers, m.samples, strict=True):
            assert (answer.said == answer.expected) == bool(score) and answer.asked and answer.expected
            assert answer.said is not None or task == "lambada"


def test_every_column_is_one_that_the_paper_prints(table: dict) -> None:
    printed = {key[2:] for key in printed_values()}
    wikitext = {("wikitext", metric) for metric in SPECS["wikitext"].metrics}
    assert {("language", task, metric, None) for task, metric in set(table) | wikitext} <= printed


def test_numbers_are_those_of_lm_evals_own_aggregation(lm: MixerLM, table: dict) -> None:
    tasks = {
        name: load_task(TASKS_ROOT / SPECS[name].definition, task=name, **offline.overrides(name))
        for name in ("lambada", "arc_easy", "boolq")
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


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.long if task == "hellaswag" else ()) for task in OFFLINE_TASKS]
)
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


@pytest.mark.long  # lm-eval maps HellaSwag's documents three times, with progress bars
def test_nothing_is_printed(lm: MixerLM, offline_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    messages: list[str] = []
    language.Language().run(lm, Config(tasks=["hellaswag"], limit=1), messages.append)
    assert capfd.readouterr() == ("", "") and messages == ["language: hellaswag"]


def test_heldout_perplexity_of_a_uniform_model_is_known(lm: MixerLM) -> None:
    uniform = MixerLM(build_model(lm.model.config, seed=1), lm.tokenizer, rolling_length=16)
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
    (beside,) = language.Language().run(lm, Config(tasks=["heldout"]))
    assert m.stand_in == beside.stand_in == language.HELDOUT_STAND_IN
    assert m.settings["items_sha256"] == beside.settings["items_sha256"]


@pytest.fixture
def wikitext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pages in place of WikiText's, which has no offline copy."""
    pages = tmp_path / "pages.jsonl"
    texts = [
        " = Valkyria = \n The 3 @,@ 000 men " + f"of the {name} went up to the hill . " * 30
        for name in ("king", "queen")
    ]
    pages.write_text("".join(json.dumps({"page": text}) + "\n" for text in texts))
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(pages)}}}
    splits = {"training_split": None, "validation_split": None}

    def load(task: str, use_offline: bool | None) -> tuple[Task, str]:
        return load_task(TASKS_ROOT / SPECS["wikitext"].definition, task=task, **source, **splits), "Hub"

    monkeypatch.setattr(language, "load", load)


ROLLING = {"tasks": ["wikitext", "heldout"], "limit": 2, "heldout_words": 120}


@pytest.mark.usefixtures("modules_cache")
def test_a_run_and_its_export_in_lm_evals_own_class_have_equal_perplexities(tmp_path: Path, wikitext: None) -> None:
    finished_run(tmp_path / "run", model_config("gated_deltanet", "hybrid"))
    export(tmp_path / "run", tmp_path / "out")

    def hflm(**options: object) -> HFLM:
        return HFLM(pretrained=str(tmp_path / "out"), trust_remote_code=True, device="cpu", **options)

    ours = language.Language().run(load_lm(tmp_path / "run"), Config(**ROLLING))
    # 64: the length that the run was trained on, which ours takes by default. HFLM adds a BOS to documents itself.
    theirs = language.Language().run(hflm(max_length=64, add_bos_token=False), Config(**ROLLING))
    for mine, other in zip(ours, theirs, strict=True):
        # Logarithms are sums over some 300 tokens of about 8 nats in fp32.
        assert (mine.task, mine.value) == (other.task, pytest.approx(other.value, rel=1e-3))
        assert mine.settings == other.settings and mine.settings["max_length"] == 64 and mine.settings["bos"] is True
    twice = hflm(max_length=64)
    assert language.reader(twice, "wikitext", Config())[1] == {"bos": "twice", "max_length": 64}
    with pytest.raises(ValueError, match="max_length: 32, but HFLM reads windows of 64; load it with max_length=32"):
        language.Language().run(twice, Config(**ROLLING, max_length=32))
    with pytest.raises(ValueError, match="tasks: wikitext_whole: HFLM reads documents in windows .*; use wikitext"):
        language.Language().run(twice, Config(tasks=["wikitext_whole"]))


def test_wikitext_is_read_in_windows_and_whole_under_another_name(lm: MixerLM, wikitext: None, tmp_path: Path) -> None:
    journal = Journal(lm, tmp_path / "answers.jsonl")
    suite, config = language.Language(), Config(tasks=["wikitext", "wikitext_whole"])
    windows, whole = suite.run(journal, config)
    (short,) = suite.run(journal, Config(tasks=["wikitext"], max_length=32))
    (long,) = suite.run(journal, Config(tasks=["wikitext"], max_length=4096))
    assert [m.settings["max_length"] for m in (windows, whole, short, long)] == [128, None, 32, 4096]
    assert len({m.value for m in (windows, whole, short)}) == 3, "the journal must tell readings apart"
    assert long.value == pytest.approx(whole.value, rel=1e-5)  # a window that holds every document
    assert (windows.stand_in, whole.stand_in) == (None, language.WHOLE_STAND_IN)
    assert (whole.task, windows.settings["items_sha256"]) == ("wikitext_whole", whole.settings["items_sha256"])
    assert suite.protocol_versions(config) == {"wikitext": 2} and suite.protocol_versions(Config(tasks=["piqa"])) == {}
    lm_without = MixerLM(lm.model, lm.tokenizer)
    with pytest.raises(ValueError, match="max_length: null, and the model states no length for wikitext; set one"):
        suite.run(lm_without, Config(tasks=["wikitext"]))


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
