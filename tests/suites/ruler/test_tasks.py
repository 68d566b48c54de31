"""RULER's thirteen tasks: wording and numbers of lm-eval's, and answers found again by reading the prompt alone."""

from __future__ import annotations

import ast
import importlib.util
import re
import string
import uuid
from collections import Counter
from pathlib import Path

import pytest
import yaml

from harness.data import needles as formats
from harness.data.needles import NOISE
from suites.ruler import tasks
from suites.ruler.tasks import SPECS
from tests.suites.ruler.reading import NIAH, PAPER_TASKS, TASKS, draw, draw_needles, needles, solve, statements

LM_EVAL = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "ruler"
YAML = {
    **{f"s_niah_{i}": f"niah_single_{i}" for i in (1, 2, 3)},
    **{f"mk_niah_{i}": f"niah_multikey_{i}" for i in (1, 2, 3)},
    "mv_niah": "niah_multivalue",
    "mq_niah": "niah_multiquery",
    "qa_1": "qa_squad",
    "qa_2": "qa_hotpot",
}


def strings(name):
    """Return the string constants of one of lm-eval's RULER modules without running it (it downloads on import)."""
    tree = ast.parse((LM_EVAL / f"{name}.py").read_text())
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def function_calls():
    """Return the keyword arguments of lm-eval's needle tasks by function, without running them."""
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


def constants(name):
    """Return the constants of one of lm-eval's modules by the name or dictionary key that they are assigned to."""
    tree, found = ast.parse((LM_EVAL / f"{name}.py").read_text()), {}
    for node in ast.walk(tree):
        pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else []
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(ast.Constant(node.targets[0].id), node.value)]
        found |= {k.value: v.value for k, v in pairs if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)}
    return found


def test_templates_are_lm_evals():
    many = constants("niah_utils")["TEMPLATE"].format(type_needle_v="numbers", context="HAY", query="A, and B")
    assert formats.TEMPLATE_MANY.format(kind="number", context="HAY", key="A, and B") == many
    source = (LM_EVAL / "prepare_niah.py").read_text()
    assert "The special magic {type_needle_v} for {query} mentioned in the provided text are" in source
    assert formats.PREFIX_MANY == " The special magic {kind}s for {key} mentioned in the provided text are"
    found = constants("vt_utils")
    given = {"context": "HAY", "query": "12345", "num_v": 5}
    ours = {"context": "HAY", "value": "12345", "count": 5}
    assert tasks.VT_TEMPLATE.format(**ours) == found["template"].format(**given)
    assert tasks.VT_PREFIX.format(**ours) == found["answer_prefix"].format(**given).rstrip()
    for name, template, prefix in (
        ("cwe_utils", tasks.CWE_TEMPLATE, tasks.CWE_PREFIX),
        ("fwe_utils", tasks.FWE_TEMPLATE, tasks.FWE_PREFIX),
    ):
        assert (template, prefix.strip()) == (constants(name)["template"], constants(name)["answer_prefix"].strip())
    found = constants("qa_utils")
    assert tasks.QA_TEMPLATE.replace("{question}", "{query}") == found["template"]
    assert tasks.QA_PREFIX.strip() == found["answer_prefix"]
    assert tasks.DOCUMENT.format(number=1, text="T") == found["DOCUMENT_PROMPT"].format(i=1, document="T")
    assert "get_example(num_words, 6, 1, num_cw)" in (LM_EVAL / "cwe_utils.py").read_text()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_gold_answers_are_what_the_prompt_says(tok, data, task, length):
    for sample in draw(tok, task, length, n=6):
        found = solve(sample.prompt)
        assert len(set(found)) == len(found) > 0
        if task == "cwe":
            assert set(found) == set(sample.answers) and len(sample.answers) == 10
        elif SPECS[task].family == "qa":
            assert sample.answers[0] in found and all(a in sample.prompt for a in sample.answers)
        else:
            assert tuple(found) == sample.answers
        assert [sample.continuation.find(a) for a in sample.answers] != [-1] and sample.continuation[0] == " "


@pytest.mark.parametrize("task", ["mk_niah_2", "mk_niah_3"])
def test_haystacks_of_needles_hold_needles_of_the_same_kind_under_other_keys(tok, task):
    for sample in draw(tok, task):
        found = needles(sample.prompt)
        assert len(found) >= 8 and len(sample.prompt.split("\n")) - 2 == len(found)
        assert len({key for _, key, _ in found}) == len({value for *_, value in found}) == len(found)
        value = r"[1-9]\d{6}" if task == "mk_niah_2" else r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f-]{21}"
        assert all(re.fullmatch(value, v) for *_, v in found)
        assert task == "mk_niah_2" or all(re.fullmatch(value, key) for _, key, _ in found)
        assert len(needles(sample.without)) == len(found) - 1 and sample.answers[0] not in sample.without


def test_many_values_and_many_queries(tok):
    for sample in draw(tok, "mv_niah"):
        assert len({key for _, key, _ in needles(sample.prompt)}) == 1 and len(set(sample.answers)) == 4
        assert needles(sample.without) == []
    for sample in draw(tok, "mq_niah"):
        assert len({key for _, key, _ in needles(sample.prompt)}) == 4 == len(sample.answers)
        assert needles(sample.without) == []
    # The order of the keys in a question is independent of the text's.
    assert any(
        list(sample.answers) != [value for *_, value in needles(sample.prompt)] for sample in draw(tok, "mq_niah")
    )


def test_variables_form_one_chain_that_is_gone_without(tok):
    for sample in draw(tok, "vt"):
        example, text = sample.prompt.split("Memorize and track")[1:]
        example_chain, chain = statements(example), statements(text)
        assert [len(name) for name, _ in chain] == [5] * 5 and [len(name) for name, _ in example_chain] == [3] * 5
        assert [value for _, value in chain[1:]] == [name for name, _ in chain[:-1]]
        assert example.endswith("they are:  " + " ".join(name for name, _ in example_chain) + "\n\n\n\n")
        assert 10000 <= int(chain[0][1]) < 99999
        assert text.count(NOISE) > 5 and sample.without.count(NOISE) == sample.prompt.count(NOISE)
        assert not any(answer in sample.without for answer in sample.answers)
        assert statements(sample.without) == example_chain
    examples = {sample.prompt.split("Memorize and track")[1] for sample in draw(tok, "vt")}
    assert len(examples) == 12
    assert all(len(tok.encode(example)) + 30 <= 500 for example in examples)


@pytest.mark.parametrize(("length", "often", "seldom"), [(2048, 6, 1), (4096, 30, 3)])
def test_common_words_come_as_often_as_in_ruler(tok, length, often, seldom):
    for sample in draw(tok, "cwe", length, n=3):
        words = re.split(r"\s*\d+\. ", sample.prompt.split("\n")[1])[1:]
        counts = Counter(words)
        assert {word for word, count in counts.items() if count == often} == set(sample.answers)
        assert set(counts.values()) == {often, seldom} and sample.without is None
        assert sample.continuation == " " + " ".join(f"{i}. {word}" for i, word in enumerate(sample.answers, 1))


def test_coded_words_follow_zetas_law(tok):
    for sample in draw(tok, "fwe", 4096, n=3):
        words = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
        ranked = Counter(words).most_common()
        assert ranked[0][0] == "..." and sample.without is None
        assert all(len(word) == 6 and set(word) <= set(string.ascii_lowercase) for word, _ in ranked[1:])
        # Counts are rounded down, so ratios hold within one.
        assert all(abs(ranked[0][1] / (k + 1) ** 2 - ranked[k][1]) <= 1 for k in range(1, 6))


@pytest.mark.parametrize("task", ["mk_niah_2", "mk_niah_3", "mv_niah", "mq_niah", "qa_1"])
def test_answers_lie_at_spread_depths(tok, data, task):
    samples = draw(tok, task, 2048, n=40)
    places = [s.prompt.index(a) / s.prompt.rindex("\n") for s in samples for a in s.answers]
    # With at least 40 draws, a given quarter stays empty with probability 1e-5 (0.75^40).
    assert all(any(low <= place <= low + 0.25 for place in places) for low in (0, 0.25, 0.5, 0.75))


def test_documents_of_the_same_article_come_before_others(tok, data):
    few, many = draw(tok, "qa_1", 512, n=8), draw(tok, "qa_1", 2048, n=8)
    for index, sample in enumerate(many):
        rooms = [int(n) for n in re.findall(r"code of room (\d+) is", sample.prompt)]
        assert len(rooms) == len(set(rooms)) > 8
        assert {room for room in rooms if room // 4 == index // 4} == set(range(index // 4 * 4, index // 4 * 4 + 4))
    for index, sample in enumerate(few):
        rooms = [int(n) for n in re.findall(r"code of room (\d+) is", sample.prompt)]
        assert index in rooms and (len(rooms) > 4 or {room // 4 for room in rooms} == {index // 4})
        assert re.findall(r"Document (\d+):\n", sample.prompt) == [str(i + 1) for i in range(len(rooms))]


def test_hotpotqa_keeps_all_documents_of_a_question(tok, data):
    for index, sample in enumerate(draw(tok, "qa_2", 256, n=6)):
        assert f"Title {index}\nThe owner of house {index} is" in sample.prompt
        assert f"Title {index + 12}\n" in sample.prompt


def test_wording_is_that_of_lm_evals_ruler():
    template = next(text for text in strings("niah_utils") if text.startswith("Some special magic"))
    # The replacements that lm-eval makes for one question with one answer.
    for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        template = template.replace(old, new)
    expected = template.format(type_needle_v="number", context="HAY", query="KEY")
    assert formats.TEMPLATE.format(kind="number", context="HAY", key="KEY") == expected
    texts = strings("prepare_niah")
    assert NOISE in texts
    assert (
        formats.NEEDLE.format(kind="{t}", key="{k}", value="{v}")
        .replace("{t}s", "{type_needle_v}")
        .replace("{k}", "{key}")
        .replace("{v}", "{value}")
        in texts
    )
    assert "The special magic " in texts and " mentioned in the provided text is" in texts
    assert formats.PREFIX.startswith(" The special magic ") and formats.PREFIX.endswith(
        " mentioned in the provided text is"
    )


def test_prompt_of_a_noise_sample_is_exact(tok):
    sample = draw_needles(tok, "s_niah_1", length=256, n=1)[0]
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


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_needle_is_asked_for_present_once_and_gone_without(tok, task):
    for sample in draw_needles(tok, task):
        kind = tasks.SPECS[task].kind
        needle = f"One of the special magic {kind}s for {sample.key} is: {sample.answer}."
        assert sample.prompt.count(needle) == 1 and sample.prompt.count(sample.answer) == 1
        assert sample.answer not in sample.without
        others = tasks.SPECS[task].needles - 1
        assert sample.without.count("One of the special magic") == others
        # Only the needle and its white space are removed.
        assert sample.without.split() == [w for part in sample.prompt.split(needle) for w in part.split()]


def test_values_are_numbers_of_seven_digits_or_random_uuids(tok):
    numbers = [sample.answer for sample in draw_needles(tok, "s_niah_1", n=200)]
    assert all(re.fullmatch(r"[1-9]\d{6}", number) for number in numbers) and len(set(numbers)) == 200
    uuids = [sample.answer for sample in draw_needles(tok, "s_niah_3")]
    assert all(str(uuid.UUID(answer)) == answer and uuid.UUID(answer).version == 4 for answer in uuids)


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_needles_lie_at_spread_depths(tok, task):
    depths = sorted(sample.depth for sample in draw_needles(tok, task, length=1024, n=100))
    # With 100 draws over the whole context, a quarter stays empty with probability below 1e-9 (0.75^100).
    assert all(any(low <= depth <= low + 0.25 for depth in depths) for low in (0, 0.25, 0.5, 0.75))
