"""Readers of RULER's prompts for tests: small data, samples, and answers found by reading a prompt."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

from suites.ruler.haystack import essay_words
from suites.ruler.samples import draw_samples
from suites.ruler.tasks import SPECS
from tests.suites.retriever import KNOWN, UNKNOWN, SearchingLM

TASKS = list(SPECS)
PAPER_TASKS = ["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"]
NIAH = [task for task in TASKS if SPECS[task].family == "niah"]
GENERATED = [task for task in TASKS if SPECS[task].family != "qa"]
SHORT = {"max_new_tokens": 48, "source": "corpus", "steps": "unit"}
ASKED = re.compile(r" The special magic \w+ for (.+) mentioned in the provided text is$")
NEEDLE = re.compile(r"One of the special magic (\w+)s for ([^:\n]+?) is: (\S+)\.")


def squad_rows(count=48):
    """Return SQuAD-like rows: prose of different lengths, four passages per article, each with a code word to find."""
    words = essay_words("corpus")
    rows = []
    for i in range(count):
        text = " ".join(words[200 * i : 200 * i + 30 + i % 20])
        context = f"{text} The code of room {i} is zebra{i}x."
        row = {"title": f"Article {i // 4}", "context": context, "question": f"What is the code of room {i}?"}
        rows.append({**row, "answers": [f"zebra{i}x", f"zebra{i}x", f"room {i} is zebra{i}x"]})
    return [*rows, {**rows[0], "question": "What has no answer?", "answers": []}]


def hotpotqa_rows(count=12):
    """Return HotpotQA-like rows of two documents, the first of which has the answer."""

    def document(i):
        return [f"Title {i}", [f"The owner of house {i} is cobra{i}x.", " Nothing else is known."]]

    return [
        {"question": f"Who owns house {i}?", "answer": f"cobra{i}x", "context": [document(i), document(i + count)]}
        for i in range(count)
    ]


def draw(tok, task, length=1024, n=12, seed=0, **options):
    """Return samples over the embedded corpus, sized to the unit."""
    return draw_samples(task, length, n, seed, tok, **{"source": "corpus", "steps": "unit", **options})


def draw_needles(tok, task, length=512, n=40, seed=0, **options):
    """Return samples with one answer and room for 48 tokens, read."""
    return [read(sample) for sample in draw_samples(task, length, n, seed, tok, **{**SHORT, **options})]


def digest(samples):
    """Return a hash of samples in order."""
    return hashlib.sha256(repr(samples).encode()).hexdigest()


@dataclass(frozen=True)
class Needle:
    """A prompt for one needle, and the facts read from it. depth: the needle's place as a fraction of the context."""

    prompt: str
    without: str
    key: str
    answer: str
    tokens: int
    depth: float


def read(sample):
    """Return the needle that a sample asks for, read from its prompt."""
    key = ASKED.search(sample.prompt)[1]
    context = sample.prompt.split("\n", 1)[1].rpartition("\n")[0]
    depth = re.search(rf"One of the special magic \w+ for {re.escape(key)} is: ", context).start() / len(context)
    (answer,) = sample.answers
    assert sample.continuation == f" {answer}"
    return Needle(sample.prompt, sample.without, key, answer, sample.tokens, depth)


def needles(text):
    """Return kind, key and value of every needle in a text."""
    return [match.groups() for match in NEEDLE.finditer(text)]


def statements(text):
    """Return variable and value of every assignment in a text."""
    return re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", text)


def solve(prompt):
    """Return the answers of a prompt, found by reading it, in the order of its text or question."""
    if asked := re.search(r" The special magic \w+ for (.+) mentioned in the provided text (?:is|are)$", prompt):
        keys = re.split(r", and |, ", asked[1])
        return [value for key in keys for _, name, value in needles(prompt) if name == key]
    if asked := re.search(r"assgined the value (\d+), they are:$", prompt):
        known = [asked[1]]
        for name, value in statements(prompt.rsplit("Memorize and track", 1)[1]):
            if value in known:
                known.append(name)
        return known[1:]
    if "numbered list of words" in prompt:
        counts = Counter(re.split(r"\s*\d+\. ", prompt.split("\n")[1])[1:])
        assert counts.most_common(11)[9][1] > counts.most_common(11)[10][1]
        return [word for word, _ in counts.most_common(10)]
    if "coded text" in prompt:
        text = prompt.split("coded words. ", 1)[1].split("\nQuestion")[0]
        counts = Counter(word for word in text.split(" ") if word != "...")
        ranked = counts.most_common()
        assert all(count > ranked[i + 1][1] for i, (_, count) in enumerate(ranked[:3]))
        return [word for word, _ in ranked[:3]]
    kind, number = re.search(r"(room|house) (\d+)\? Answer:$", prompt).groups()
    return re.findall(rf"{kind} {number} is (\w+)\.", prompt)


class Reader(SearchingLM):
    """An lm-eval model that answers by solving the prompt, or never."""

    def generate_until(self, requests, disable_tqdm=True):
        return [f" {' '.join(solve(request.args[0]))}" if self.sees else " ?" for request in requests]

    def _loglikelihood_tokens(self, requests, **kwargs):
        known = [
            self.sees and all(a in answer for a in solve(prompt)[:1] or ["?"]) for (prompt, answer), _, _ in requests
        ]
        return [((KNOWN if k else UNKNOWN) * len(tokens), k) for k, (_, _, tokens) in zip(known, requests, strict=True)]
