"""Training rows of the recall tasks, read back as text: their listings, their answers and the effect of difficulty."""

import hashlib
from collections import Counter
from random import Random

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from harness.data import synthetic
from harness.data.synthetic import TASKS, recall_words, shortest_row
from harness.data.tokenizer import load_tokenizer

RECALL = tuple(TASKS)


def rows(
    task: str, seed: int, start: int, count: int, seq_len: int, form: synthetic.Questions = "marked"
) -> tuple[torch.Tensor, torch.Tensor]:
    return synthetic.rows(task, seed, start, count, seq_len, load_tokenizer(), None, form)


def draw(task: str, difficulty: int, seed: int = 0) -> synthetic.Sample:
    return TASKS[task].draw(Random(seed), recall_words(load_tokenizer()), difficulty)


@pytest.mark.parametrize("form", ["marked", "bare"])
@pytest.mark.parametrize("task", RECALL)
def test_every_counted_answer_is_the_last_value_that_the_text_before_it_gives_its_key(
    task: str, form: synthetic.Questions
) -> None:
    tokenizer, key_words = load_tokenizer(), 2 if task == "interference" else 1
    marker = synthetic.question(tokenizer, ("key",), "marked")[0]
    assert not any(marker in part for part in recall_words(tokenizer))
    tokens, counted = rows(task, 0, 0, 16, 160, form)
    repeated = 0
    for row, mask in zip(tokens.tolist(), counted.tolist(), strict=True):
        assert row[0] == tokenizer.bos_token_id
        words = tokenizer.decode(row[1:]).split()
        assert len(words) == len(row) - 1
        values: dict[tuple[str, ...], str] = {}
        at = asked_for = 0
        while at < len(words):
            question = words[at] == marker
            at += question
            answer = at + key_words
            if answer < len(words):
                key, value = tuple(words[at:answer]), words[answer]
                assert mask[answer] == (key in values and values[key] == value and (question or form == "bare")) or (
                    form == "bare" and not mask[answer]
                )
                repeated += not mask[answer] and key in values
                values[key] = value
                asked_for += mask[answer]
            at = answer + 1
        assert asked_for == sum(mask) > 0
    assert (repeated > 0) == (task in ("overwrite", "protect"))  # keys are written again


def test_with_a_marker_no_question_follows_the_listing_as_another_pair_would() -> None:
    tokenizer = load_tokenizer()
    marker = synthetic.question(tokenizer, ("key",), "marked")[0]
    tokens, counted = rows("mqar", 0, 0, 16, 64)
    for row, mask in zip(tokens.tolist(), counted.tolist(), strict=True):
        words = tokenizer.decode(row[1:]).split()
        assert all(words[at - 2] == marker for at, asked in enumerate(mask) if asked)


@pytest.mark.parametrize("task", RECALL)
def test_a_row_is_a_function_of_its_task_seed_and_number(task: str) -> None:
    tokens, counted = rows(task, 3, 0, 6, 128)
    for number in (4, 0, 5):
        again, mask = rows(task, 3, number, 1, 128)
        assert torch.equal(again[0], tokens[number]) and torch.equal(mask[0], counted[number])
    assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], rows(task, 4, 0, 1, 128)[0][0])


def test_rows_of_mqar_equal_those_that_committed_results_were_trained_on() -> None:
    digest = hashlib.sha256()
    for part in (*rows("mqar", 0, 0, 8, 64, "bare"), *rows("mqar", 3, 5, 4, 256, "bare")):
        digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == "6198c00d37e827845c5e455c13d8a3540686cb16dce3c40ecaa3dfa2cb85f48d"


@pytest.mark.parametrize("task", RECALL)
def test_the_shortest_row_has_room_for_a_listing_and_as_many_questions_and_one_less_has_not(task: str) -> None:
    _, counted = rows(task, 0, 0, 4, shortest_row(task))
    assert counted.any(1).all()
    with pytest.raises(IndexError):
        rows(task, 0, 0, 4, shortest_row(task) - 1)


@pytest.mark.parametrize("pairs", [1, 8, 64])
def test_pairs_are_how_many_keys_mqar_lists_once(pairs: int) -> None:
    sample = draw("mqar", pairs)
    assert len(sample.writes) == len(sample.answers) == len(sample.asked) == pairs


@pytest.mark.parametrize("rewrites", [1, 4, 63])
def test_rewrites_are_how_often_half_of_the_keys_of_overwrite_change(rewrites: int) -> None:
    sample = draw("overwrite", rewrites)
    times = Counter(key for key, _ in sample.writes)
    assert sorted(times.values()) == [1] * 4 + [1 + rewrites] * 4
    assert {key for key, n in times.items() if n > 1} == set(sample.asked)
    assert len({key for key, _ in sample.writes[:8]}) == 8  # every key has a value before any gets another
    for key in sample.asked:
        old = sample.old_values(key)
        assert len(set(old)) == rewrites and sample.answers[key] not in old


@pytest.mark.parametrize("writes", [1, 8, 200])
def test_writes_are_how_many_follow_the_protected_keys_and_none_is_to_them(writes: int) -> None:
    sample = draw("protect", writes)
    assert [key for key, _ in sample.writes[:2]] == sample.asked
    later = [key for key, _ in sample.writes[2:]]
    assert len(later) == writes and not set(later) & set(sample.asked) and len(set(later)) <= 6


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_shared_is_how_many_keys_of_interference_have_a_word_in_common(shared: int) -> None:
    sample = draw("interference", shared)
    keys = [key for key, _ in sample.writes]
    assert len(set(keys)) == len(sample.asked) == 16
    for place in (0, 1):
        assert set(Counter(key[place] for key in keys).values()) == {shared}
    for key in keys:
        assert sum((key[0] == other[0]) != (key[1] == other[1]) for other in keys) == 2 * (shared - 1)


@pytest.mark.parametrize(
    ("task", "difficulty", "message"),
    [
        ("mqar", 65, "pairs: 65 is outside 1 to 64, the number of key words"),
        ("overwrite", 64, "rewrites: 64 is outside 1 to 63"),
        ("protect", 0, "writes: 0 later writes test no protection; use at least 1"),
        ("interference", 3, r"shared: 3 by 3 grids do not make up 16 keys; use one of \[1, 2, 4\]"),
    ],
)
def test_a_difficulty_that_cannot_be_drawn_is_refused(task: str, difficulty: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(task, difficulty)


def test_a_vocabulary_with_too_few_words_is_refused() -> None:
    vocabulary = {"<s>": 0, "Ġkey": 1, "Ġvalue": 2}
    small = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary)), bos_token="<s>")
    with pytest.raises(ValueError, match="only 2 whole words are single tokens, .* need 129; use a larger vocabulary"):
        synthetic.rows("overwrite", 0, 0, 1, 64, small, None)
