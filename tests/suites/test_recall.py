"""Recall as a suite: what is asked, who passes, and what cannot be asked. Answers are read out of the text."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness.data.synthetic import TASKS, question, recall_words
from harness.data.tokenizer import load_tokenizer
from harness.records.answers import MOST_ANSWERS
from harness.tables.comparison import comparison
from suites.recall import Config, Recall, questions
from suites.shared.lm_requests import fingerprint
from tests.harness.tables.table_records import record, store

DIFFICULTIES = {"pairs": [2, 8], "rewrites": [1, 5], "writes": [4, 60], "shared": [1, 2, 4]}


@lru_cache
def marker_word() -> str:
    (word,) = question(load_tokenizer(), (), "marked")
    return word


def mentions(context: str) -> list[str]:
    """The values behind the key that the context asks for after the marker, in order."""
    words, mark = context.split(), marker_word()
    marker = words.index(mark) if mark in words else len(words) - 1  # of a bare question, one word is the key
    listing, key = words[:marker], words[marker + (mark in words) :]
    length = len(key)
    return [listing[at + length] for at in range(0, len(listing), length + 1) if listing[at : at + length] == key]


def last(context: str) -> str:
    return mentions(context)[-1]


def before_last(context: str) -> str:
    return mentions(context)[-2]


def first_of_all(context: str) -> str:
    return context.split()[1]


class Scripted(LM):
    """Answers every query with what `reads` finds in the context."""

    def __init__(self, reads: Callable[[str], str]):
        super().__init__()
        self.reads = reads
        self.tokenizer = load_tokenizer()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [
            (0.0, continuation == " " + self.reads(context)) for context, continuation in (r.args for r in requests)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("not asked for")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        assert all(request.args[1] == {"until": [], "max_gen_toks": 1, "do_sample": False} for request in requests)
        return [" " + self.reads(request.args[0]) for request in requests]


def test_a_reader_scores_1_on_every_task_and_never_answers_with_an_old_value() -> None:
    found = Recall().run(Scripted(last), Config(**DIFFICULTIES, samples=40))
    assert {(m.task, m.length) for m in found} == {
        ("mqar", 2), ("mqar", 8), ("overwrite", 1), ("overwrite", 5), ("protect", 4), ("protect", 60),
        ("interference", 1), ("interference", 2), ("interference", 4),
    }  # fmt: skip
    for m in found:
        assert m.value == (0.0 if m.metric == "stale" else 1.0)
        assert m.settings["length_unit"] == TASKS[m.task].unit and m.n == 40
    assert {m.task for m in found if m.metric == "stale"} == {"overwrite"}


@pytest.mark.parametrize("reads", [before_last, lambda context: mentions(context)[0]], ids=["one before", "first"])
def test_who_answers_with_a_value_that_was_overwritten_is_always_stale_and_never_right(
    reads: Callable[[str], str],
) -> None:
    found = Recall().run(Scripted(reads), Config(pairs=[], rewrites=[1, 3], samples=40))
    assert [(m.length, m.metric, m.value) for m in found] == [
        (1, "acc", 0.0), (1, "stale", 1.0), (3, "acc", 0.0), (3, "stale", 1.0)
    ]  # fmt: skip


def test_answers_are_the_models_own_words_right_or_wrong() -> None:
    for reads, right in ((last, True), (before_last, False), (first_of_all, False)):
        acc, stale = Recall().run(Scripted(reads), Config(pairs=[], rewrites=[2], samples=40))
        assert stale.answers is None and len(acc.answers) == MOST_ANSWERS == 20
        for index, answer in enumerate(acc.answers):
            assert answer.said == reads(answer.asked) and answer.expected == last(answer.asked)
            assert (answer.said == answer.expected) == bool(acc.samples[index]) and (acc.samples[index] == 1) >= right


def test_a_guesser_scores_one_in_as_many_as_there_are_pairs() -> None:
    for m in Recall().run(Scripted(first_of_all), Config(pairs=[2, 8], samples=400)):
        assert m.length is not None
        # Binomial: four standard errors of 1/pairs over 400 samples, plus equal values by chance.
        assert abs(m.value - 1 / m.length) < 4 * (0.25 / 400) ** 0.5


@pytest.mark.parametrize("task", TASKS)
def test_samples_depend_on_seed_and_difficulty_alone(task: str) -> None:
    tokenizer = load_tokenizer()
    found = questions(tokenizer, task, 4, 5, seed=1)
    assert found == questions(tokenizer, task, 4, 9, seed=1)[:5]
    assert found != questions(tokenizer, task, 4, 5, seed=2)
    for drawn in found:
        values = mentions(drawn.context)
        assert drawn.answer == f" {values[-1]}"
        assert drawn.old == tuple(f" {value}" for value in values[:-1])
        assert len(values) == (5 if task == "overwrite" else 1)  # four rewrites after the first write


def test_samples_of_mqar_are_those_of_committed_results() -> None:
    asked = questions(load_tokenizer(), "mqar", 4, 500, seed=0, form="bare")
    sha256 = "260f648360fd22105092477ca607140636fb5b498a35765a3b927a40eddde179"
    assert fingerprint((one.context, one.answer) for one in asked) == sha256
    (found,) = Recall().run(Scripted(last), Config(pairs=[4], samples=500, questions="bare"))
    assert found.settings == {"items_sha256": sha256, "length_unit": "key-value pairs"}


def test_protect_asks_for_what_was_written_first_and_overwrite_for_what_was_rewritten() -> None:
    tokenizer = load_tokenizer()
    for one in questions(tokenizer, "protect", 16, 30, seed=0):
        *listing, _, key = one.context.split()
        assert listing[::2].index(key) < 2 and listing[::2].count(key) == 1
    for one in questions(tokenizer, "overwrite", 2, 30, seed=0):
        *listing, _, key = one.context.split()
        assert listing[::2].count(key) == 3


def test_every_word_is_one_token_after_a_space() -> None:
    tokenizer = load_tokenizer()
    keys, values = recall_words(tokenizer)
    assert not set(keys) & set(values)
    for word in keys + values:
        assert len(tokenizer.encode(" " + word, add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [100000]}, r"pairs: 100000 is outside 1 to"),
        ({"rewrites": [64]}, r"rewrites: 64 is outside 1 to 63"),
        ({"shared": [1, 3]}, r"shared: 3 by 3 grids do not make up 16 keys; use one of \[1, 2, 4\]"),
    ],
)
def test_a_difficulty_that_cannot_be_drawn_is_refused(options: dict, message: str) -> None:
    for ask in (
        lambda: Recall().run(Scripted(last), Config(**options, samples=1)),
        lambda: Recall().check(Config(**options), load_tokenizer()),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_config_names_each_difficulty_once_and_at_least_one() -> None:
    with pytest.raises(ValueError, match="names one twice"):
        Config(writes=[4, 4])
    with pytest.raises(ValueError, match="all are empty; give one of them a difficulty"):
        Config(pairs=[])
    assert Config().difficulties == [("mqar", 4), ("mqar", 8), ("mqar", 16), ("mqar", 32)]


def test_a_table_keeps_the_rows_of_two_widths_apart_and_marks_each_for_itself(tmp_path: Path) -> None:
    records = [
        replace(
            record(mixer, "overwrite", metric, value, 0.01, suite="recall", length=1, preset=preset),
            run=f"{mixer}-{preset}",
        )
        for preset, (good, bad) in (("cpu-recall-32", (0.2, 0.1)), ("cpu-recall-64", (0.8, 0.5)))
        for mixer, acc in (("gdn2", good), ("mamba2", bad))
        for metric, value in (("acc", acc), ("stale", 1 - acc))
    ]
    table = comparison(store(tmp_path, records))
    assert [(row.label, row.preset) for row in table.rows] == [
        (f"{mixer} @ {preset}", preset) for preset in ("cpu-recall-32", "cpu-recall-64") for mixer in ("gdn2", "mamba2")
    ]
    bold = {(row.label, c.metric) for (row, c), cell in table.cells.items() if cell.mark == "bold"}
    # Lower is better of stale: the same row is best in both.
    assert bold == {(f"gdn2 @ {p}", m) for p in ("cpu-recall-32", "cpu-recall-64") for m in ("acc", "stale")}
    assert "overwrite stale @1 ↓" in table.markdown() and "within a layout and preset, **bold**" in table.markdown()
    one = comparison(store(tmp_path / "one", records[:4]))
    assert [row.label for row in one.rows] == ["gdn2", "mamba2"]


def test_the_validation_split_has_other_samples_of_the_same_tasks() -> None:
    config = Config(pairs=[4], samples=20)
    chosen = Recall().validation(config)
    assert chosen == config.model_copy(update={"split": "validation"})
    scored = [Recall().run(Scripted(last), c)[0] for c in (config, chosen)]
    assert [m.value for m in scored] == [1.0, 1.0]
    assert scored[0].settings["items_sha256"] != scored[1].settings["items_sha256"]
