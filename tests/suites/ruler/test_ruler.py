from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
from pydantic import ValidationError

import harness.records.published as published_numbers
from harness.files import CHECKOUT
from harness.records.published import column_name, printed_values, published
from suites import ruler
from suites.ruler import tasks as ruler_tasks
from suites.ruler.haystack import NOISE, STAND_IN, essay_sentences, essay_words, sentences
from suites.ruler.samples import prompts
from suites.shared.lm_requests import fingerprint
from tests.suites.retriever import KNOWN, UNKNOWN, SearchingLM, tokenizer

SHORT = {"max_new_tokens": 48, "source": "corpus", "steps": "unit"}
TASKS = ruler.Config().tasks
ASKED = re.compile(r" The special magic \w+ for (.+) mentioned in the provided text is$")
# The first 50 of demo's and 10 of lm_eval's own steps, since results in results/demo were measured on them.
ITEMS = {
    ("s_niah_1", 320): "f944fbee23d70553fdbd02e37df2806dad54922a25309b92edf35279e31dc121",
    ("s_niah_2", 320): "cb9a41e974869b3b6540839a5fc2d9956ad4ffc864005198f0714d6bc1eb2463",
    ("s_niah_3", 320): "483bbebba81d32739293ef041148765b52fb22da07a689d2b3d72397dbe77e56",
    ("mk_niah_1", 320): "df29706f8589b3a08cb6de50936db9c79645ecefe26203c7635c49a10f2ad331",
    ("s_niah_1", 2048): "489672001a277411ea18568b19f3af057897cac9e53ec5a21e72c16187d73352",
    ("s_niah_2", 2048): "9a9d76a0a32a659fdec3461789570ac75239b4d3ba32a97dece2af87bbe01323",
    ("s_niah_3", 2048): "d74ec2799d2a3a9e4189fecb87545994c462d3f7af90c63a11e79b1d0673b85d",
    ("mk_niah_1", 2048): "2496d73e1093ffd4f99d052daf8d81ff5e30e8bad0a548466acaa2a16f53c0af",
}


@dataclass(frozen=True)
class Needle:
    """What a prompt for one needle says, read from it."""

    prompt: str
    without: str
    key: str
    answer: str
    tokens: int
    depth: float


def read(sample):
    key = ASKED.search(sample.prompt)[1]
    context = sample.prompt.split("\n", 1)[1].rpartition("\n")[0]
    depth = re.search(rf"One of the special magic \w+ for {re.escape(key)} is: ", context).start() / len(context)
    (answer,) = sample.answers
    assert sample.continuation == f" {answer}"
    return Needle(sample.prompt, sample.without, key, answer, sample.tokens, depth)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def drawn(tok, task, length=512, n=40, seed=0, **options):
    return [read(sample) for sample in prompts(task, length, n, seed, tok, **{**SHORT, **options})]


def digest(samples):
    return hashlib.sha256(repr(samples).encode()).hexdigest()


def lm_eval_constants(name):
    """String constants of lm-eval's own RULER module, read without running it (it downloads on import)."""
    folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "ruler"
    tree = ast.parse((folder / f"{name}.py").read_text())
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_wording_is_that_of_lm_evals_ruler():
    template = next(text for text in lm_eval_constants("niah_utils") if text.startswith("Some special magic"))
    # What lm-eval does to it for one question with one answer.
    for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        template = template.replace(old, new)
    expected = template.format(type_needle_v="number", context="HAY", query="KEY")
    assert ruler_tasks.TEMPLATE.format(kind="number", context="HAY", key="KEY") == expected
    constants = lm_eval_constants("prepare_niah")
    assert NOISE in constants
    assert (
        ruler_tasks.NEEDLE.format(kind="{t}", key="{k}", value="{v}")
        .replace("{t}s", "{type_needle_v}")
        .replace("{k}", "{key}")
        .replace("{v}", "{value}")
        in constants
    )
    assert "The special magic " in constants and " mentioned in the provided text is" in constants
    assert ruler_tasks.PREFIX.startswith(" The special magic ") and ruler_tasks.PREFIX.endswith(
        " mentioned in the provided text is"
    )


def test_prompt_of_a_noise_sample_is_exact(tok):
    sample = drawn(tok, "s_niah_1", length=256, n=1)[0]
    head, *lines, tail = sample.prompt.split("\n")
    needle = f"One of the special magic numbers for {sample.key} is: {sample.answer}."
    assert head == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards."
    )
    assert sorted(set(lines)) == sorted({NOISE, needle}) and lines.count(needle) == 1
    assert tail == (
        f"What is the special magic number for {sample.key} mentioned in the provided text? "
        f"The special magic number for {sample.key} mentioned in the provided text is"
    )
    assert sample.without == sample.prompt.replace(needle + "\n", "")
    assert len(sample.answer) == 7 and sample.answer.isdigit()


@pytest.mark.parametrize("task", TASKS)
def test_needle_is_asked_for_present_once_and_gone_without(tok, task):
    for sample in drawn(tok, task):
        kind = ruler_tasks.SPECS[task].kind
        needle = f"One of the special magic {kind}s for {sample.key} is: {sample.answer}."
        assert sample.prompt.count(needle) == 1 and sample.prompt.count(sample.answer) == 1
        assert sample.answer not in sample.without
        others = ruler_tasks.SPECS[task].needles - 1
        assert sample.without.count("One of the special magic") == others
        # Nothing but the needle and the white space it brought is gone.
        assert sample.without.split() == [w for part in sample.prompt.split(needle) for w in part.split()]


def test_values_are_numbers_of_seven_digits_or_random_uuids(tok):
    numbers = [sample.answer for sample in drawn(tok, "s_niah_1", n=200)]
    assert all(re.fullmatch(r"[1-9]\d{6}", number) for number in numbers) and len(set(numbers)) == 200
    uuids = [sample.answer for sample in drawn(tok, "s_niah_3")]
    assert all(str(uuid.UUID(answer)) == answer and uuid.UUID(answer).version == 4 for answer in uuids)


@pytest.mark.parametrize("task", TASKS)
def test_needles_lie_at_spread_depths(tok, task):
    depths = sorted(sample.depth for sample in drawn(tok, task, length=1024, n=100))
    # 100 draws over the whole context: an empty quarter would have probability below 1e-9 (0.75^100).
    assert all(any(low <= depth <= low + 0.25 for depth in depths) for low in (0, 0.25, 0.5, 0.75))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_length_is_recorded_within_the_budget_and_close_to_it(tok, task, length):
    for sample in drawn(tok, task, length=length, n=20):
        assert sample.tokens == 1 + len(tok.encode(sample.prompt, add_special_tokens=False))
        # A line of noise is 24 tokens; the size comes from one draw, others differ by the length of their keys.
        assert length - 48 - 64 <= sample.tokens <= length - 48


def test_lm_eval_steps_grow_essays_by_500_words(tok):
    counts = set()
    for sample in prompts("s_niah_2", 2048, 10, 0, tok, source="corpus"):
        assert sample.tokens <= 2048 - 128
        counts.add(len(sample.without.split("\n")[1].split()))
    assert counts == {1000}


@pytest.mark.parametrize(("task", "length"), ITEMS)
def test_prompts_are_those_that_results_were_measured_on(tok, task, length):
    n, options = (50, SHORT) if length == 320 else (10, {"source": "corpus"})
    samples = prompts(task, length, n, 0, tok, **options)
    found = fingerprint([sample.prompt, sample.without, *sample.answers] for sample in samples)
    assert found == ITEMS[task, length], "other prompts need another VERSION"


def test_samples_depend_on_neither_order_nor_number_nor_process(tok):
    wanted = {task: digest(drawn(tok, task, n=8)) for task in TASKS}
    assert {task: digest(drawn(tok, task, n=8)) for task in reversed(TASKS)} == wanted
    assert digest(drawn(tok, "mk_niah_1", n=12)[:8]) == wanted["mk_niah_1"]
    script = (
        "import json; from suites import ruler; from tests.suites.ruler.test_ruler import *; t = tokenizer();"
        "print(json.dumps({task: digest(drawn(t, task, n=8)) for task in TASKS}))"
    )
    other = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == wanted


def test_seed_task_and_length_give_other_samples(tok):
    first = drawn(tok, "s_niah_2", n=4)
    assert {s.answer for s in first}.isdisjoint(s.answer for s in drawn(tok, "s_niah_2", n=4, seed=1))
    assert {s.answer for s in first}.isdisjoint(s.answer for s in drawn(tok, "s_niah_2", n=4, length=768))
    assert {s.answer for s in first}.isdisjoint(s.answer for s in drawn(tok, "s_niah_1", n=4))


@pytest.mark.parametrize("task", TASKS)
def test_a_length_that_cannot_be_met_is_an_error_whose_remedy_works(tok, task):
    with pytest.raises(
        ValueError, match=f"ruler.lengths: {task} does not fit 64 tokens: .* of at least (\\d+)"
    ) as error:
        drawn(tok, task, length=64)
    enough = int(str(error.value).split("at least ")[1].split(",")[0])
    assert all(sample.tokens <= enough - 48 for sample in drawn(tok, task, length=enough))


def test_too_little_room_for_the_answer_is_an_error(tok):
    with pytest.raises(ValueError, match="ruler.max_new_tokens: 16 cannot hold an answer of s_niah_3"):
        drawn(tok, "s_niah_3", max_new_tokens=16)


def test_haystack_is_held_out_prose_and_wraps_around(tok):
    words = essay_words("corpus")
    assert len(words) > 100_000
    text = " ".join(words[:2000])
    assert " ".join(sentences(text)) == text
    parts = sentences('Mr. J. Knightley came. "Did he?" she asked. It was 3.5 miles! Yes.')
    assert parts == ("Mr. J. Knightley came.", '"Did he?" she asked.', "It was 3.5 miles!", "Yes.")


def test_paul_graham_out_of_reach_is_one_line_with_the_remedy(tok, monkeypatch):
    def fail(path, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"ruler.haystack: .*baber/paul_graham_essays.*offline.*haystack: corpus"):
        drawn(tok, "s_niah_2", source="paul_graham")


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
        # Sums of a few dozen multiples of a quarter, divided by their number: exact but for the division.
        assert (measurement.value, other.value) == pytest.approx(expected[metric], abs=1e-12)
        assert measurement.n == measurement.limit == 12 and measurement.suite == "ruler"
        assert measurement.stand_in == (None if task == "s_niah_1" else STAND_IN)
        assert measurement.settings == other.settings
        assert measurement.settings["prompt_tokens"]["most"] <= length - 48
    assert seeing.generation_options[0] == {"until": [], "max_gen_toks": 48, "do_sample": False}


@pytest.fixture
def essays_within_reach(monkeypatch):
    """The Hub's essays replaced by our prose, and forgotten afterwards."""
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
    assert all(m.stand_in is None for m in found)
    # The needle scores are ours, beside the paper's.
    scores = [m for m in found if not m.metric.startswith("needle_")]
    assert {column_name(m.task, m.metric, m.length) for m in scores} == csv_columns()
    printed = {key[2:] for key in printed_values() if key[2] == "ruler"}
    assert {(m.suite, m.task, m.metric, m.length) for m in scores} == printed
    names = {column_name(m.task, m.metric, m.length) for m in found if m.length == 1024 and m.task == "s_niah_2"}
    assert names == {"s_niah_2@1024", "s_niah_2_needle_logprob@1024", "s_niah_2_needle_gain@1024"}


def csv_columns():
    """Names of table 3's columns as its file has them."""
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
    # An untrained model knows nothing: near ln(vocabulary) nats a token, and no needle helps.
    assert scores["s_niah_1", 320, "needle_logprob"].value == pytest.approx(-torch.tensor(float(len(tok))).log(), abs=1)
    assert abs(scores["s_niah_1", 320, "needle_gain"].value) < 0.1
