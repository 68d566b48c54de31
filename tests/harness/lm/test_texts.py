"""Texts of one's own are scored as the suites score them."""

from __future__ import annotations

import math

import pytest

from harness.lm.mixer_lm import MixerLM
from harness.lm.texts import COLUMNS, score_texts
from tests.harness.lm.models import MODELS, ask, tokenizer

TEXTS = ["A short one.", "A größer text, with an umlaut."]


@pytest.fixture(scope="module")
def lm() -> MixerLM:
    return MixerLM(MODELS["attention"](), tokenizer())


def test_whole_texts_have_the_rolling_likelihood_in_every_unit(lm: MixerLM) -> None:
    found = score_texts(lm, TEXTS)
    assert list(found) == COLUMNS
    nats = [-score for score in lm.loglikelihood_rolling(ask("loglikelihood_rolling", [(text,) for text in TEXTS]))]
    assert found["nats"].tolist() == pytest.approx(nats)
    for row, text in zip(found.itertuples(), TEXTS, strict=True):
        assert row.tokens == len(lm.tok_encode(text, add_special_tokens=False)) and row.bytes == len(text.encode())
        assert row.nats_per_token * row.tokens == pytest.approx(row.nats)
        assert row.bits_per_byte * row.bytes * math.log(2) == pytest.approx(row.nats)


def test_a_context_is_read_and_not_scored(lm: MixerLM) -> None:
    found = score_texts(lm, [" hill", " hill"], after=["He went up the", "Nobody saw a"])
    pairs = [("He went up the", " hill"), ("Nobody saw a", " hill")]
    assert found["nats"].tolist() == pytest.approx([-v for v, _ in lm.loglikelihood(ask("loglikelihood", pairs))])
    assert found["nats"].nunique() == 2


def test_what_cannot_be_scored_is_refused(lm: MixerLM) -> None:
    with pytest.raises(ValueError, match="texts: number 2 has no token to score; leave it out"):
        score_texts(lm, ["a", ""])
    with pytest.raises(ValueError, match="after: 1 contexts for 2 texts; give one a text"):
        score_texts(lm, ["a", "b"], after=["c"])
