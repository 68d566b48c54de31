from __future__ import annotations

import datasets
import pytest
from pydantic import ValidationError

from suites import retrieval
from suites.retrieval import SUMMARY, bounds, build_prompt, earliest, usable, window
from tests.suites.retriever import KNOWN, UNKNOWN, SearchingLM, tokenizer

LIMIT = 2048


class Words:
    """A tokenizer with one token a word, so that windows can be worked out by hand."""

    bos_token = None

    def encode(self, text, add_special_tokens=False):
        return text.split()

    def decode(self, ids, **kwargs):
        return " ".join(ids)


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.mark.parametrize(
    ("case", "tokens", "position", "expected"),
    [
        ("fits", 8, 3, (0, 8)),
        ("head: the end gets what is left", 100, 0, (0, 10)),
        ("near the head", 100, 3, (0, 10)),
        ("middle: half before, the rest from the answer on", 100, 50, (45, 55)),
        ("near the end: the beginning gets what is left", 100, 97, (90, 100)),
        ("last token", 100, 99, (90, 100)),
        ("absent: the end of the document", 100, 100, (90, 100)),
    ],
)
def test_window_by_hand(case, tokens, position, expected):
    assert bounds(tokens, position, 10) == expected, case


def test_odd_budget_gives_the_larger_half_to_the_answer():
    assert bounds(100, 50, 11) == (45, 56)


DOCUMENT = " ".join(f"w{i}" for i in range(100))


def around(answer):
    """The window of 10 words (a limit of 60) around an answer in DOCUMENT."""
    return window(DOCUMENT, earliest(DOCUMENT, [answer]), Words(), 60).split()


def test_window_around_an_answer_in_the_text():
    assert around("w0 w1") == [f"w{i}" for i in range(10)]
    assert around("W50 w51") == [f"w{i}" for i in range(45, 55)]
    assert around("w98 w99") == [f"w{i}" for i in range(90, 100)]
    assert around("nowhere") == [f"w{i}" for i in range(90, 100)]


def test_an_answer_longer_than_the_window_keeps_its_beginning():
    assert around(" ".join(f"w{i}" for i in range(40, 80))) == [f"w{i}" for i in range(35, 45)]


def test_a_document_that_fits_is_left_as_it_is():
    assert window("a  b\n c", 3, Words(), 60) == "a  b\n c"


def test_earliest_of_key_and_value_places_the_window():
    assert earliest("the Key is a Value", ["value", "KEY"]) == 4
    assert earliest("no such thing", ["value"]) == len("no such thing")


def test_a_window_of_real_tokens_is_text_of_the_document(tok):
    document = "".join(f"Größe {i}: naïve café — {i * 7} €.\n" for i in range(400))
    at = document.index("Größe 200:")
    cut = window(document, at, tok, 300)
    assert cut in document and "Größe 200: naïve café — 1400 €." in cut
    # Half a character at an edge is dropped, and tokens can join anew where the text was cut.
    assert 240 <= len(tok.encode(cut, add_special_tokens=False)) <= 252


def test_swde_prompt(tok):
    record = {
        "doc_id": "a",
        "file_name": "f",
        "key": "release date",
        "value": "May 4",
        "text": f"\nSome film. Out on May 4.\n\n{SUMMARY} Some film. release date:",
    }
    assert build_prompt("swde", record, tok, LIMIT).text == "Some film. Out on May 4. Release date:"
    assert build_prompt("swde", record, tok, LIMIT).answers == ("May 4",)
    asked = {**record, "text": "Some film. Out on May 4... Release Date:"}
    # A copy of the key at the end is removed whatever its case, then blanks, then full stops.
    assert build_prompt("swde", asked, tok, LIMIT).text == "Some film. Out on May 4. Release date:"


def test_fda_prompt(tok):
    record = {
        "doc_id": "a",
        "file_name": "f",
        "key": "device class",
        "value": "II",
        "text": "510(k) SUMMARY\nClass II device.\n\nDevice Class:device class:",
    }
    prompt = build_prompt("fda", record, tok, LIMIT)
    assert prompt.text == "510(k) SUMMARY\nClass II device. Device class:"
    assert prompt.answers == ("II",)


def test_squad_prompt(tok):
    record = {
        "doc_id": "a",
        "title": "T",
        "context": "c",
        "question": "q",
        "value": "gold",
        "text": " The medal was gold. The medal was made of ",
    }
    prompt = build_prompt("squad", record, tok, LIMIT)
    assert (prompt.text, prompt.answers) == ("The medal was gold. The medal was made of", ("gold",))


@pytest.mark.parametrize("task", ["nq", "triviaqa", "drop"])
def test_question_prompts(tok, task):
    record = {
        "doc_id": "a",
        "context": "\nParis is the capital.. The capital is the capital is",
        "question": "the capital is ",
        "answers": ["Paris", "City of Paris"],
    }
    prompt = build_prompt(task, record, tok, LIMIT)
    assert prompt.text == "Paris is the capital.. The capital is. the capital is"
    assert prompt.answers == ("Paris", "City of Paris")
    twice = {**record, "context": "Paris it is. The capital isthe capital is"}
    assert build_prompt(task, twice, tok, LIMIT).text == "Paris it is. the capital is"


def test_triviaqa_loses_its_tags(tok):
    record = {"context": "[DOC] [TLE] A title [PAR] Rome fell.", "question": "Which city fell?", "answers": ["Rome"]}
    assert build_prompt("triviaqa", record, tok, LIMIT).text == "A title  Rome fell. Which city fell?"
    assert build_prompt("drop", record, tok, LIMIT).text == "[DOC] [TLE] A title [PAR] Rome fell. Which city fell?"


def test_window_is_around_the_answer_or_at_the_head_as_the_task_has_it():
    context = f"{DOCUMENT} gold {DOCUMENT}"
    hub = {"text": context, "key": "metal", "value": "gold", "context": context, "question": "q", "answers": ["gold"]}
    middle = "w95 w96 w97 w98 w99 gold w0 w1 w2 w3"
    head = "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
    expected = {
        "swde": f"{middle}. Metal:",
        "fda": f"{middle}. Metal:",
        "squad": middle,
        "nq": f"{middle}. q",
        "triviaqa": f"{head}. q",
        "drop": f"{head}. q",
    }
    assert {task: build_prompt(task, hub, Words(), 60).text for task in expected} == expected


def test_swde_and_fda_look_for_the_key_too():
    record = {"text": f"{DOCUMENT} metal {DOCUMENT} gold {DOCUMENT}", "key": "metal", "value": "gold"}
    around_key = "w95 w96 w97 w98 w99 metal w0 w1 w2 w3"
    for task in ("swde", "fda"):
        assert build_prompt(task, record, Words(), 60).text == f"{around_key}. Metal:"
    assert build_prompt("squad", record, Words(), 60).text == around_key.replace("metal", "gold")


def test_short_answers_are_dropped_only_where_they_are_looked_up():
    hub = {"key": "size", "value": "5", "answers": ["5", "five"]}
    assert {task: usable(task, hub) for task in ("swde", "fda", "squad", "nq", "triviaqa", "drop")} == {
        "swde": False,
        "fda": False,
        "squad": False,
        "nq": False,
        "triviaqa": True,
        "drop": True,
    }
    assert not usable("fda", {"key": "k", "value": "long"}) and usable("fda", {"key": "ky", "value": "long"})
    assert not usable("nq", {"answers": []})


COUNTRY = "Freedonia\nGovernment\nCapital - name: Glory City\nLegal system: none. at all\n\nPeople\nSylvanians: 2%"


def test_factbook_prompt_and_the_same_without_its_line(tok):
    record = {"text": COUNTRY, "key": "legal system", "value": "none", "line": "Legal system: none. at all"}
    prompt = build_prompt("factbook", record, tok, LIMIT)
    assert prompt.text == f"{COUNTRY}. Legal system:"
    assert prompt.without == (
        "Freedonia\nGovernment\nCapital - name: Glory City\n\nPeople\nSylvanians: 2%. Legal system:"
    )


def test_factbook_needs_room_for_the_line_that_answers():
    text = f"{DOCUMENT}\nKey: {DOCUMENT}"
    with pytest.raises(ValueError, match="retrieval.limit_tokens: the line .* does not fit the window"):
        build_prompt("factbook", {"text": text, "key": "Key", "value": "w0", "line": f"Key: {DOCUMENT}"}, Words(), 60)


def test_every_factbook_line_is_in_its_window(tok):
    records = retrieval.load("factbook")[::60]
    assert len(records) > 50
    for record in records:
        prompt = build_prompt("factbook", record, tok, 384)
        assert f"\n{record['line']}\n" in f"\n{prompt.text}\n" or record["line"] in prompt.text
        assert record["line"] not in prompt.without.split("\n")
        assert len(tok.encode(prompt.text, add_special_tokens=False)) <= 384 - 50 + 60


CONFIG = retrieval.Config(tasks=["factbook"], limit_tokens=384, samples=24)


def test_a_perfect_reader_scores_everything_and_a_blind_one_nothing():
    seeing, blind = SearchingLM(sees=True), SearchingLM(sees=False)
    found, lost = retrieval.run(seeing, CONFIG), retrieval.run(blind, CONFIG)
    assert [m.metric for m in found] == ["contains", "needle_logprob", "needle_gain"]
    values = [(m.value, other.value) for m, other in zip(found, lost, strict=True)]
    # Averages of equal numbers: exact but for the division.
    assert values[0] == (1.0, 0.0)
    assert values[1] == pytest.approx((KNOWN, UNKNOWN), abs=1e-12)
    assert values[2] == pytest.approx((KNOWN - UNKNOWN, 0.0), abs=1e-12)
    for measurement, other in zip(found, lost, strict=True):
        assert measurement.settings == other.settings and "not a task of the paper" in measurement.stand_in
        assert measurement.n == measurement.limit == 24
    assert seeing.generation_options[0] == {"until": ["\n"], "max_gen_toks": 48, "do_sample": False}


def test_samples_are_drawn_by_seed():
    def items(**change):
        return retrieval.run(SearchingLM(sees=True), CONFIG.model_copy(update=change))[0].settings["items_sha256"]

    assert items() == items() != items(seed=1)


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

    fda, drop = retrieval.run(Says(sees=True), retrieval.Config(tasks=["fda", "drop"]))
    # The grade of one letter is dropped.
    assert (fda.task, fda.metric, fda.value, fda.n, fda.stderr) == ("fda", "contains", 1.0, 1, None)
    assert (drop.task, drop.value, drop.stand_in, drop.limit) == ("drop", 1.0, None, None)
    assert drop.settings["dataset"] == "hazyresearch/based_drop"


def test_a_hub_out_of_reach_is_one_line_with_the_remedy(monkeypatch):
    def fail(path, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"retrieval.tasks: swde needs .*based-swde-v2.*; .*factbook"):
        retrieval.run(SearchingLM(sees=True), retrieval.Config(tasks=["swde"]))


def test_a_model_that_would_cut_the_prompt_is_refused():
    with pytest.raises(ValueError, match="retrieval.limit_tokens: .* do not fit the model's max_length of 256"):
        retrieval.run(SearchingLM(sees=True, max_length=256), CONFIG)


@pytest.mark.parametrize(
    "options", [{"tasks": []}, {"tasks": ["boolq"]}, {"tasks": ["fda", "fda"]}, {"limit_tokens": 50}, {"limit": 5}]
)
def test_config_is_closed_and_checked(options):
    with pytest.raises(ValidationError):
        retrieval.Config(**options)
