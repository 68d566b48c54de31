"""Prompts of the retrieval tasks: windows, each task's wording, and passages without their answer."""

from __future__ import annotations

from random import Random

import pytest

from suites import retrieval
from suites.retrieval import (
    SUMMARY,
    build_prompt,
    cut_to_window,
    is_usable,
    window_bounds,
    without_sentences,
)
from suites.shared.lm_requests import fingerprint
from tests.suites.retriever import tokenizer

LIMIT = 2048


class Words:
    """A tokenizer with one token per word, so windows can be computed by hand. bos: whether it adds a BOS."""

    bos_token = None

    def __init__(self, bos=False):
        self.bos = bos

    def encode(self, text, add_special_tokens=True):
        return ["<s>"] * (self.bos and add_special_tokens) + text.split()

    def decode(self, ids, **kwargs):
        return " ".join(word for word in ids if word != "<s>")


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.mark.parametrize(
    ("case", "tokens", "position", "expected"),
    [
        ("fits, and the answer is early", 8, 3, (0, 8)),
        ("fits, and loses its head, since half of the budget lies before the answer", 8, 7, (2, 8)),
        ("head", 100, 0, (0, 10)),
        ("near the head: the end gets what is left", 100, 3, (0, 10)),
        ("middle: half before, the rest from the answer on", 100, 50, (45, 55)),
        ("near the end: nothing fills the beginning up", 100, 97, (92, 100)),
        ("last token", 100, 99, (94, 100)),
    ],
)
def test_window_by_hand(case, tokens, position, expected):
    assert window_bounds(tokens, position, 10) == expected, case


def test_odd_budget_gives_the_larger_half_to_the_answer():
    assert window_bounds(100, 50, 11) == (45, 56)


DOCUMENT = " ".join(f"w{i}" for i in range(100))
# A limit of 60 leaves windows of 10 words.


def words(first, last):
    """Return the words of DOCUMENT from one number up to another."""
    return " ".join(f"w{i}" for i in range(first, last))


WINDOWS = {
    "early answer: the head": ("squad", {"value": "w3 w4"}, words(0, 10)),
    "in the middle, whatever its case": ("squad", {"value": "W50 w51"}, words(45, 55)),
    "late answer: short, as nothing fills it up": ("squad", {"value": "w98 w99"}, words(93, 100)),
    "a document that fits keeps its head": ("squad", {"value": "w4", "text": words(0, 8)}, words(0, 8)),
    "a document that fits loses its head": ("squad", {"value": "w7", "text": words(0, 8)}, words(2, 8)),
    "an answer longer than the window": ("squad", {"value": words(40, 80)}, words(35, 45)),
    # The last character counts as the answer; 100 words begin before it.
    "absent answer: the last half of the budget": ("squad", {"value": "none"}, words(95, 100)),
    "absent, an alternative": ("squad", {"value": "none", "alt_answers": ["no", "w60", "w20"]}, words(55, 65)),
    "alternatives do not count if the answer is there": (
        "squad",
        {"value": "w50", "alt_answers": ["w20"]},
        words(45, 55),
    ),
    "the key before the value": ("fda", {"key": "w30", "value": "w70"}, words(25, 35)),
    "the value before the key": ("swde", {"key": "w70", "value": "w30"}, words(25, 35)),
    "the value alone": ("swde", {"key": "none", "value": "w30"}, words(25, 35)),
    "neither, an alternative": ("fda", {"key": "none", "value": "nil", "alt_answers": ["w40"]}, words(35, 45)),
    "several answers: the first alone": ("nq", {"answers": ["w80", "w20"]}, words(75, 85)),
    "the first is absent, others do not count": ("nq", {"answers": ["none", "w20"], "tok_pos": 30}, words(25, 35)),
    "tok_pos counts only without an answer": ("nq", {"answers": ["w80"], "tok_pos": 30}, words(75, 85)),
    "tok_pos counts only where the text is longer than the budget": (
        "nq",
        {"answers": ["none"], "tok_pos": 2, "context": words(0, 9)},
        words(4, 9),
    ),
    "without tok_pos": ("nq", {"answers": ["none"]}, words(95, 100)),
    "nothing looked up: the head": ("drop", {"answers": ["w80"]}, words(0, 10)),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_of_records_worked_by_hand(case):
    task, fields, expected = WINDOWS[case]
    record = {"text": DOCUMENT, "context": DOCUMENT, "key": "q", "question": "q"} | fields
    question = {"squad": "", "fda": f". {record['key'][0].upper()}{record['key'][1:]}:", "nq": ". q", "drop": ". q"}
    assert build_prompt(task, record, Words(), 60).text == expected + question.get(task, question["fda"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("w2", words(0, 9)),  # <s> is the first of ten tokens
        ("w50", words(45, 55)),  # position and document both count it
        ("w99", words(94, 100)),
        ("none", words(95, 100)),  # all of 101 tokens lie before the last character, a part of w99
    ],
)
def test_a_window_counts_the_bos_where_the_tokenizer_adds_one(value, expected):
    assert build_prompt("squad", {"text": DOCUMENT, "value": value}, Words(bos=True), 60).text == expected


def test_nq_has_2000_tokens_and_the_others_2048_unless_a_limit_is_set():
    limits = {task: retrieval.Config().limit(task) for task in retrieval.Config().tasks}
    assert limits == dict.fromkeys(["swde", "fda", "squad", "triviaqa", "drop"], 2048) | {"nq": 2000}
    assert retrieval.Config(limit_tokens=300).limit("nq") == 300


def test_a_window_of_real_tokens_is_text_of_the_document(tok):
    document = "".join(f"Größe {i}: naïve café — {i * 7} €.\n" for i in range(400))
    at = document.index("Größe 200:")
    before = len(tok.encode(document[:at]))
    cut = cut_to_window(document, before, tok, 250)
    # In byte-level vocabularies an edge can split a character; the public code leaves the mark of it.
    assert cut.strip("\ufffd") in document and "Größe 200: naïve café — 1400 €." in cut
    # Tokens can merge differently at a cut, and the mark of a split character takes up to three.
    assert 240 <= len(tok.encode(cut)) <= 256


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
    # A copy of the key at the end is removed, whatever its case, then blanks, then full stops.
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
    repeated = {**record, "context": "Paris it is. The capital isthe capital is"}
    # NQ loses one copy as it is written, the others all copies in any case; read twice, NQ does as well.
    rest = "The capital is. " if task == "nq" else ""
    assert build_prompt(task, repeated, tok, LIMIT).text == f"Paris it is. {rest}the capital is"
    once_more = build_prompt(task, repeated, tok, LIMIT, twice=True).text
    assert once_more == "the capital is Paris it is.\nParis it is. the capital is"
    other_case = {**record, "context": "Paris it is. The capital is"}
    assert build_prompt(task, other_case, tok, LIMIT).text == f"Paris it is. {rest}the capital is"


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
    assert {task: is_usable(task, hub) for task in ("swde", "fda", "squad", "nq", "triviaqa", "drop")} == {
        "swde": False,
        "fda": False,
        "squad": False,
        "nq": False,
        "triviaqa": True,
        "drop": True,
    }
    assert not is_usable("fda", {"key": "k", "value": "long"}) and is_usable("fda", {"key": "ky", "value": "long"})
    assert not is_usable("nq", {"answers": []})


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


# Task → a record with the Hub's columns, and its prompt with the context once and twice.
KEYED = {"text": " Acme makes it. Class II..\n", "key": "device class", "value": "Class II"}
ASKED = {
    "doc_id": "a",
    "context": "[PAR] Rome fell. The city that fell is",
    "question": "The city that fell is",
    "orig_question": "Which city fell:",
    "answers": ["Rome", "Roma"],
}
COMPLETED = {
    "doc_id": "a",
    "title": "T",
    "context": "The medal was gold. Question: of what?",
    "question": "What was the medal made of?",
    "value": "gold",
    "text": " The medal was gold. It was made of ",
}
PROMPTS = {
    "swde": (
        {**KEYED, "text": f"{KEYED['text']}{SUMMARY} device class: "},
        "Acme makes it. Class II. Device class:",
        "Information about Device class. Acme makes it. Class II.\nAcme makes it. Class II. Device class:",
    ),
    "fda": (
        {**KEYED, "text": f"{KEYED['text']}Device class:"},
        "Acme makes it. Class II. Device class:",
        "Information about Device class. Acme makes it. Class II.\nAcme makes it. Class II. Device class:",
    ),
    "squad": (
        COMPLETED,
        "The medal was gold. It was made of",
        "What was the medal made of? The medal was gold. \nThe medal was gold. It was made of",
    ),
    "nq": (
        ASKED,
        "[PAR] Rome fell. The city that fell is",
        "Which city fell [PAR] Rome fell.\n[PAR] Rome fell. The city that fell is",
    ),
    "triviaqa": (
        ASKED,
        "Rome fell. The city that fell is",
        "Which city fell: Rome fell.\nRome fell. The city that fell is",
    ),
    "drop": (
        ASKED,
        "[PAR] Rome fell. The city that fell is",
        "Which city fell [PAR] Rome fell.\n[PAR] Rome fell. The city that fell is",
    ),
    "squad_passages": (
        {"id": "a", "context": "Rome fell. It was old.", "question": "Which city fell? ", "answers": ["Rome"]},
        "Rome fell. It was old. Which city fell?",
        "Which city fell? Rome fell. It was old.\nRome fell. It was old. Which city fell?",
    ),
    "drop_passages": (
        {"id": "a", "context": "He ran 2 and 3 yards.", "question": "How many yards in all?", "answers": ["5"]},
        "He ran 2 and 3 yards. How many yards in all?",
        "How many yards in all? He ran 2 and 3 yards.\nHe ran 2 and 3 yards. How many yards in all?",
    ),
    "factbook": (
        {
            "text": "Freedonia\nCapital: Glory City",
            "key": "capital",
            "value": "Glory City",
            "line": "Capital: Glory City",
        },
        "Freedonia\nCapital: Glory City. Capital:",
        "Information about Capital. Freedonia\nCapital: Glory City.\nFreedonia\nCapital: Glory City. Capital:",
    ),
}


@pytest.mark.parametrize("task", PROMPTS)
def test_prompts_once_and_twice(tok, task):
    record, once, twice = PROMPTS[task]
    for expected, two in ((once, False), (twice, True)):
        prompt = build_prompt(task, record, tok, LIMIT, two)
        assert prompt.text == expected
        assert list(prompt.answers) == record.get("answers", [record.get("value")])
        assert (prompt.without is None) == (task not in ("squad_passages", "factbook"))


def test_the_question_stands_first_where_there_is_no_original(tok):
    record = {key: value for key, value in ASKED.items() if key != "orig_question"}
    prompt = build_prompt("drop", record, tok, LIMIT, twice=True)
    assert prompt.text.startswith("The city that fell is [PAR] Rome fell.\n")


def test_both_copies_are_the_same_window_but_squads_first_is_not_cut():
    context = f"{DOCUMENT} gold {DOCUMENT}"
    record = {
        "text": context,
        "key": "metal",
        "value": "gold",
        "context": context,
        "question": "q",
        "answers": ["gold"],
    }
    middle, head = "w95 w96 w97 w98 w99 gold w0 w1 w2 w3", "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
    found = {task: build_prompt(task, record, Words(), 60, twice=True).text for task in ("fda", "squad", "nq", "drop")}
    assert found == {
        "fda": f"Information about Metal. {middle}.\n{middle}. Metal:",
        "squad": f"q {context}\n{middle}",
        "nq": f"q {middle}.\n{middle}. q",
        "drop": f"q {head}.\n{head}. q",
    }


def test_without_is_the_passage_without_its_answers_sentences(tok):
    text = "It rained. Dr. Rome was out! Was ROME seen? Nobody knew\nof Rome.\n\nAll slept."
    assert without_sentences(text, "Rome") == "It rained. Dr. Nobody knew\nAll slept."
    # An answer across two sentences removes both.
    assert without_sentences(text, "rained. Dr") == text.removeprefix("It rained. Dr. ")
    record = {"context": "Rome fell. It was old.", "question": "Which city fell?", "answers": ["Rome"]}
    assert build_prompt("squad_passages", record, tok, LIMIT).without == "It was old. Which city fell?"
    assert build_prompt("squad_passages", record, tok, LIMIT, twice=True).without == (
        "Which city fell? It was old.\nIt was old. Which city fell?"
    )
    alone = {**record, "context": "Rome fell"}
    assert build_prompt("squad_passages", alone, tok, LIMIT).without == "Which city fell?"
    with pytest.raises(ValueError, match="retrieval.limit_tokens: the answer 'Rome' does not fit the window"):
        without_sentences("A part of Ro", "Rome")


def test_prompts_of_the_stand_in_are_frozen(tok):
    records = Random("factbook:0").sample(retrieval.load_records("factbook"), 200)
    prompts = [build_prompt("factbook", record, tok, 256) for record in records]
    # The items_sha256 of the demo; other prompts need another PROTOCOL.
    assert fingerprint([prompt.text, prompt.without, prompt.answers] for prompt in prompts) == (
        "947f01027a17482b34623beaeb0d05fd3e22653b38248de9ec25868be2af97d6"
    )


@pytest.mark.parametrize("task, kept", [("squad_passages", 999), ("drop_passages", 1000)])
def test_every_offline_passage_makes_a_prompt_within_the_limit(tok, offline_data, task, kept):
    records = retrieval.load_records(task)
    assert len(records) == kept  # one answer of SQuAD is a single character
    for record in records:
        prompt = build_prompt(task, record, tok, LIMIT)
        assert len(tok.encode(prompt.text, add_special_tokens=False)) <= LIMIT
        assert prompt.text.endswith(f". {record['question'].strip()}") and all(prompt.answers)
        if task == "squad_passages":
            assert prompt.answers[0] in prompt.text
            assert prompt.answers[0].lower() not in prompt.without.removesuffix(record["question"].strip()).lower()


def test_every_factbook_line_is_in_its_window(tok):
    records = retrieval.load_records("factbook")[::60]
    assert len(records) > 50
    for record in records:
        prompt = build_prompt("factbook", record, tok, 384)
        assert f"\n{record['line']}\n" in f"\n{prompt.text}\n" or record["line"] in prompt.text
        assert record["line"] not in prompt.without.split("\n")
        assert len(tok.encode(prompt.text, add_special_tokens=False)) <= 384 - 50 + 60
