"""MQAR as a suite: what is asked, who passes, and what cannot be asked."""

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness.data import load_tokenizer
from harness.synthetic import recall_words
from suites.recall import Config, run, samples


class Scripted(LM):
    """Answers every query with the value behind the first mention of its key, or always with the first value."""

    def __init__(self, reads: bool):
        super().__init__()
        self.reads = reads
        self.tokenizer = load_tokenizer()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        answers = []
        for request in requests:
            context, continuation = request.args
            words = context.split()
            at = words.index(words[-1]) if self.reads else 0
            answers.append((0.0, continuation == " " + words[at + 1]))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("not asked for")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise AssertionError("not asked for")


def test_a_reader_scores_1_and_a_guesser_one_in_as_many_as_there_are_pairs() -> None:
    config = Config(pairs=[2, 8], samples=400)
    assert [m.value for m in run(Scripted(reads=True), config)] == [1.0, 1.0]
    for m in run(Scripted(reads=False), config):
        assert m.length is not None
        # Binomial: four standard errors of 1/pairs over 400 samples, plus equal values by chance.
        assert abs(m.value - 1 / m.length) < 4 * (0.25 / 400) ** 0.5


def test_samples_depend_on_seed_and_pairs_alone_and_list_every_key_once() -> None:
    words = recall_words(load_tokenizer())
    first = samples(words, 8, 5, seed=1)
    assert first == samples(words, 8, 9, seed=1)[:5]
    assert first != samples(words, 8, 5, seed=2)
    for context, answer in first:
        *listing, query = context.split()
        table = dict(zip(listing[::2], listing[1::2], strict=True))
        assert len(table) == 8 and table[query] == answer.strip()


def test_every_word_is_one_token_after_a_space() -> None:
    tokenizer = load_tokenizer()
    keys, values = recall_words(tokenizer)
    assert not set(keys) & set(values)
    for word in keys + values:
        assert len(tokenizer.encode(" " + word, add_special_tokens=False)) == 1


def test_more_pairs_than_key_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs: 100000 is outside 1 to"):
        run(Scripted(reads=True), Config(pairs=[100000], samples=1))
    with pytest.raises(ValueError, match="names one twice"):
        Config(pairs=[4, 4])
