"""RULER's samples at a length: sizes, independence of order and process, and errors whose remedies work."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from wonderwords import RandomWord

from harness.files import CHECKOUT
from suites.ruler import haystack
from suites.ruler.samples import (
    answer_tokens,
    check_samples,
    counted_tokens,
    draw_samples,
    largest_fitting,
    read_samples,
    write_samples,
)
from suites.ruler.tasks import SPECS
from suites.shared.lm_requests import fingerprint
from tests.suites.ruler.reading import GENERATED, PAPER_TASKS, SHORT, TASKS, digest, draw, draw_needles, squad_rows

# Hashes of the first 50 samples of the demo (320 tokens) and of 10 with lm_eval's steps; results/demo was measured on
# them.
ITEMS = {
    ("s_niah_1", 320): "f944fbee23d70553fdbd02e37df2806dad54922a25309b92edf35279e31dc121",
    ("s_niah_2", 320): "cb9a41e974869b3b6540839a5fc2d9956ad4ffc864005198f0714d6bc1eb2463",
    ("s_niah_3", 320): "483bbebba81d32739293ef041148765b52fb22da07a689d2b3d72397dbe77e56",
    ("mk_niah_1", 320): "df29706f8589b3a08cb6de50936db9c79645ecefe26203c7635c49a10f2ad331",
    ("s_niah_1", 2048): "552cd925982ec659bbc068b306b7a12360d2fe0457c1929b44da3867ff5594c4",
    ("s_niah_2", 2048): "9a9d76a0a32a659fdec3461789570ac75239b4d3ba32a97dece2af87bbe01323",
    ("s_niah_3", 2048): "d74ec2799d2a3a9e4189fecb87545994c462d3f7af90c63a11e79b1d0673b85d",
    ("mk_niah_1", 2048): "2496d73e1093ffd4f99d052daf8d81ff5e30e8bad0a548466acaa2a16f53c0af",
}


@pytest.mark.parametrize("task", PAPER_TASKS)
@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_length_is_recorded_within_the_budget_and_close_to_it(tok, task, length):
    for sample in draw_needles(tok, task, length=length, n=20):
        assert sample.tokens == 1 + len(tok.encode(sample.prompt, add_special_tokens=False))
        # A line of noise has 24 tokens; the size comes from one draw, and others differ by the length of their keys.
        assert length - 48 - 64 <= sample.tokens <= length - 48


@pytest.fixture(scope="module")
def samplers():
    """lm-eval's own modules of RULER's tasks, where the needles' module has every 40th word.

    Its import makes all pairs of words, which takes half a minute, and asks the network for nltk's data.
    """
    modules = {
        name: import_module(f"lm_eval.tasks.ruler.{name}")
        for name in ("cwe_utils", "fwe_utils", "qa_utils", "vt_utils")
    }
    few = SimpleNamespace(_categories={name: sorted(words)[::40] for name, words in RandomWord()._categories.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.download", lambda name: False)
        patch.setattr("wonderwords.RandomWord", lambda: few)
        modules |= {name: import_module(f"lm_eval.tasks.ruler.{name}") for name in ("prepare_niah", "niah_utils")}
    yield SimpleNamespace(**modules)
    for name in ("prepare_niah", "niah_utils"):
        del sys.modules[f"lm_eval.tasks.ruler.{name}"]


class AsLmEvalCallsIt:
    """A tokenizer as lm-eval's samplers use it."""

    def __init__(self, tok):
        self.tok = tok

    def __call__(self, text):
        return SimpleNamespace(input_ids=self.tok.encode(text))


def their_prompts(theirs, task, length, n, tok):
    """Return prompts of lm-eval's own samplers, without answer prefixes."""
    tok = AsLmEvalCallsIt(tok)
    match task:
        case "cwe":
            samples = theirs.cwe_utils.sys_word_pair_random(n, length, tok)
        case "fwe":
            samples = theirs.fwe_utils.sys_kwext(tok, length, n)
        case "vt":
            (example,) = theirs.vt_utils.sys_vartrack_w_noise_random(tok, 1, 500, incremental=5)
            samples = theirs.vt_utils.sys_vartrack_w_noise_random(tok, n, length, icl_example=example)
        case "qa_1":
            found = haystack.squad_passages(squad_rows())
            questions = [
                {"query": q.text, "outputs": list(q.answers), "context": list(q.gold), "more_context": list(q.related)}
                for q in found.questions
            ]
            samples = theirs.qa_utils.generate_samples(tok, list(found.documents), questions, length, n)
        case _:
            hay, kinds = ("repeat", "words") if task == "s_niah_1" else ("needle", "uuids")
            hay, kinds = ("essay", "uuids") if task == "s_niah_3" else (hay, kinds)
            text = (
                list(haystack.essay_words("corpus")[:5000]) if hay == "essay" else theirs.prepare_niah.get_haystack(hay)
            )
            samples = theirs.prepare_niah.generate_samples(
                text,
                tok,
                max_seq_length=length,
                type_haystack=hay,
                type_needle_k="uuids" if task == "mk_niah_3" else "words",
                type_needle_v="numbers" if kinds == "words" else "uuids",
                template=theirs.niah_utils.TEMPLATE,
                num_samples=n,
            )
    return [sample["input"] for sample in samples]


# Task → its lengths, and a unit of its context. The tokenizer has so many tokens a word that lm-eval's `cwe` is empty
# at 4096; there are too few passages for 4096.
SIZED = {
    "cwe": ([2048], r"\d+\. "),
    "fwe": ([2048, 4096], r"\b[a-z]{6}\b|\.\.\.[ \n]"),
    "vt": ([2048, 4096], r"There and back"),
    "s_niah_1": ([2048, 4096], "There and back"),
    "s_niah_3": ([2048], r"\w+"),
    "mk_niah_3": ([2048], "One of the special"),
    "qa_1": ([2048], r"Document \d+:"),
}


@pytest.mark.parametrize(("task", "length"), [(task, length) for task in SIZED for length in SIZED[task][0]])
def test_contexts_are_as_large_as_those_of_lm_evals_own_samplers(
    tok, data, samplers, monkeypatch, capsys, task, length
):
    # Their sentences come from nltk, whose data are not on this machine; the words between needles are the same.
    monkeypatch.setattr(
        samplers.prepare_niah, "cached_sent_tokenize", lambda text: list(haystack.split_sentences(text))
    )
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        theirs = their_prompts(samplers, task, length, 4, tok)
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)
    ours = [sample.prompt for sample in draw_samples(task, length, 4, 0, tok, source="corpus")]

    def size(prompts):
        # A sample that turns out too long is shortened, so the largest counts. vt's example is not its context.
        contexts = [prompt.rpartition("Memorize and track")[2] for prompt in prompts]
        return max(len(re.findall(SIZED[task][1], context)) for context in contexts)

    # Essays have the same words; keys and needles differ by a few, where a step has 500.
    assert size(ours) == pytest.approx(size(theirs), abs=20 if task == "s_niah_3" else 0)


def test_lm_eval_steps_grow_essays_by_500_words(tok):
    counts = set()
    for sample in draw_samples("s_niah_2", 2048, 10, 0, tok, source="corpus"):
        assert sample.tokens <= 2048 - 128
        counts.add(len(sample.without.split("\n")[1].split()))
    assert counts == {1000}


@pytest.mark.parametrize(("task", "length"), ITEMS)
def test_prompts_are_those_that_results_were_measured_on(tok, task, length):
    n, options = (50, SHORT) if length == 320 else (10, {"source": "corpus"})
    samples = draw_samples(task, length, n, 0, tok, **options)
    found = fingerprint([sample.prompt, sample.without, *sample.answers] for sample in samples)
    assert found == ITEMS[task, length], "other prompts need another version"


def test_seed_task_and_length_give_other_samples(tok):
    first = draw_needles(tok, "s_niah_2", n=4)
    assert {s.answer for s in first}.isdisjoint(s.answer for s in draw_needles(tok, "s_niah_2", n=4, seed=1))
    assert {s.answer for s in first}.isdisjoint(s.answer for s in draw_needles(tok, "s_niah_2", n=4, length=768))
    assert {s.answer for s in first}.isdisjoint(s.answer for s in draw_needles(tok, "s_niah_1", n=4))


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_a_length_too_short_for_a_needle_is_an_error_whose_remedy_works(tok, task):
    with pytest.raises(
        ValueError, match=f"ruler.lengths: {task} does not fit 64 tokens: .* of at least (\\d+)"
    ) as error:
        draw_needles(tok, task, length=64)
    enough = int(str(error.value).split("at least ")[1].split(",")[0])
    assert all(sample.tokens <= enough - 48 for sample in draw_needles(tok, task, length=enough))


def test_too_little_room_for_the_answer_is_an_error(tok):
    with pytest.raises(ValueError, match="ruler.max_new_tokens: 16 cannot hold an answer of s_niah_3"):
        draw_needles(tok, "s_niah_3", max_new_tokens=16)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("steps", ["unit", "lm_eval"])
def test_prompt_and_answer_fit_the_length(tok, data, task, steps):
    room = SPECS[task].max_new_tokens
    for sample in draw(tok, task, length=2048, steps=steps):
        assert sample.tokens == 1 + len(tok.encode(sample.prompt, add_special_tokens=False))
        assert counted_tokens(SPECS[task], 2048, steps, sample, tok, sizing=False) <= 2048 - room
        # lm-eval counts neither the answer prefix nor, for fwe, the room.
        assert sample.tokens <= (2048 - room if steps == "unit" else 2048)
        assert len(tok.encode(sample.continuation, add_special_tokens=False)) <= room
        if steps == "unit" and task != "qa_2":  # qa_2 uses up all its documents
            # The size comes from one draw; rare words, coded words and UUIDs differ by a tenth in tokens.
            assert sample.tokens > 0.85 * (2048 - room)


def test_questions_that_do_not_fit_are_passed_over_and_too_few_are_an_error(tok, data):
    with pytest.raises(ValueError, match="ruler.samples: qa_1 has 48 questions .* ask for as many, not 60"):
        draw(tok, "qa_1", 512, n=60)
    with pytest.raises(ValueError, match=r"ruler.lengths: qa_1 has \d+ questions .* 130 tokens, 48 are") as error:
        draw(tok, "qa_1", 130, n=48)
    enough = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert len(draw(tok, "qa_1", enough, n=48)) == 48
    with pytest.raises(ValueError, match="ruler.lengths"):
        draw(tok, "qa_1", enough - 1, n=48)


def outcome(draw, *arguments, **options):
    """Return the error of a drawing function, or None."""
    try:
        draw(*arguments, **options)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("task", ["s_niah_3", "qa_1"])
def test_a_check_refuses_what_a_run_would_refuse_in_a_later_sample(tok, data, task):
    options = {"source": "corpus", "steps": "unit"}
    small = draw_samples(task, 1024, 24, 0, tok, **options, smallest=True)
    answers, prompts = [answer_tokens(tok, s) for s in small], [s.tokens for s in small]
    refused = 0
    # Enough room for the first answer and not for the longest; enough tokens for the first prompt and not for all.
    for room, length in ((answers[0], 1024), (128, 128 + prompts[0] + 1)):
        checked = outcome(check_samples, task, length, 24, 0, tok, max_new_tokens=room, **options)
        drawn = outcome(draw_samples, task, length, 24, 0, tok, max_new_tokens=room, **options)
        assert (checked is None) == (drawn is None)
        refused += (
            drawn is not None and outcome(draw_samples, task, length, 1, 0, tok, max_new_tokens=room, **options) is None
        )
    assert refused, "no case in which only a later sample does not fit"


def digests(tok, tasks):
    """Return the hash of four samples of each task, and of eight needles of those of the paper."""
    needles = {f"{task}, needles": digest(draw_needles(tok, task, n=8)) for task in tasks if task in PAPER_TASKS}
    return needles | {task: digest(draw(tok, task, n=4)) for task in tasks}


@pytest.mark.parametrize(
    ("task", "hash_"),
    [
        ("s_niah_1", "9f4f0414887812682ab65171aa7f09cd876f1374272dfb7446e91cdcf832be4d"),
        ("s_niah_2", "cfa97c1d11ffd9ac399ac01c562fee4a96e80893098e0e228ba8c74d954f70b5"),
        ("s_niah_3", "7795e0b5a048c0ad269344a706054899d8363c8dd81b2c74cfe369c81e532070"),
        ("mk_niah_1", "06e5ba89babb0342df7fdaf74c2863ff91fc2de2ba9655debccdfdf2217a2e6e"),
    ],
)
def test_samples_are_those_that_earlier_records_were_measured_on(tok, task, hash_):
    assert digest(draw_needles(tok, task, n=4)) == hash_


@pytest.mark.long
def test_samples_depend_on_neither_order_nor_number_nor_process(tok, data):
    wanted = digests(tok, TASKS)
    assert digests(tok, TASKS[::-1]) == wanted
    assert digest(draw_needles(tok, "mk_niah_1", n=12)[:8]) == wanted["mk_niah_1, needles"]
    assert all(digest(draw(tok, task, n=7)[:4]) == wanted[task] for task in TASKS)
    assert all(digest(draw(tok, task, n=4, seed=1)) != wanted[task] for task in TASKS)
    script = (
        "import json; from tests.suites.retriever import tokenizer; from tests.suites.ruler.test_samples import *;"
        "print(json.dumps(digests(tokenizer(), GENERATED)))"
    )
    other = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    # The passages of qa are this process's own.
    assert json.loads(other.stdout) == {key: value for key, value in wanted.items() if not key.startswith("qa_")}


@pytest.mark.parametrize("task", GENERATED)
def test_a_length_that_cannot_be_met_is_an_error_whose_remedy_works(tok, task):
    with pytest.raises(ValueError, match=f"ruler.lengths: {task} does not fit 256 tokens: ") as error:
        draw(tok, task, 256)
    enough = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert len(draw(tok, task, enough, n=40)) == 40


def test_a_tokenizer_that_counts_nothing_is_an_error():
    class Nothing:
        bos_token = None

        def encode(self, text, add_special_tokens=False):
            return []

    for task in GENERATED:
        if task != "cwe":  # cwe ends when its words are used up
            with pytest.raises(ValueError, match="the tokenizer counts too few"):
                draw_samples(task, 256, 1, 0, Nothing(), source="corpus")


def test_the_largest_fitting_number_is_found():
    for top in (0, 1, 5, 6, 100):
        for largest in range(8):
            assert largest_fitting(lambda n, largest=largest: n <= largest, top) == min(largest, top)


def test_samples_are_read_back_as_written(tok, tmp_path):
    path, samples = tmp_path / "samples.jsonl", draw(tok, "mk_niah_2", 512, n=3)
    lines = []
    assert read_samples(None) is read_samples(path) is None
    write_samples(path, samples, lines.append)
    assert read_samples(path, lines.append) == samples and lines == []
