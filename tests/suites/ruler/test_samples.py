"""RULER's samples at a length: sizes, independence of order and process, and errors whose remedies work."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from harness.files import CHECKOUT
from suites.ruler.samples import draw_samples, largest_fitting, read_samples, write_samples
from suites.ruler.tasks import SPECS
from suites.shared.lm_requests import fingerprint
from tests.suites.ruler.reading import GENERATED, PAPER_TASKS, SHORT, TASKS, digest, draw, draw_needles

# Hashes of the first 50 samples of the demo (320 tokens) and of 10 with lm_eval's steps; results/demo was measured on
# them.
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


@pytest.mark.parametrize("task", PAPER_TASKS)
@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_length_is_recorded_within_the_budget_and_close_to_it(tok, task, length):
    for sample in draw_needles(tok, task, length=length, n=20):
        assert sample.tokens == 1 + len(tok.encode(sample.prompt, add_special_tokens=False))
        # A line of noise has 24 tokens; the size comes from one draw, and others differ by the length of their keys.
        assert length - 48 - 64 <= sample.tokens <= length - 48


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
    assert found == ITEMS[task, length], "other prompts need another VERSION"


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
        assert sample.tokens == 1 + len(tok.encode(sample.prompt, add_special_tokens=False)) <= 2048 - room
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


def digests(tok, tasks):
    """Return the hash of four samples of each task, and of eight needles of those of the paper."""
    needles = {f"{task}, needles": digest(draw_needles(tok, task, n=8)) for task in tasks if task in PAPER_TASKS}
    return needles | {task: digest(draw(tok, task, n=4)) for task in tasks}


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
