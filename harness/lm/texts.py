"""Scores of texts of one's own under a model: what it makes of each, in nats and bits a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from lm_eval.api.instance import Instance

from harness.lm.mixer_lm import MixerLM

COLUMNS = ["text", "tokens", "bytes", "nats", "nats_per_token", "bits_per_byte"]


def score_texts(lm: MixerLM, texts: Sequence[str], after: Sequence[str] | None = None) -> pd.DataFrame:
    """The negative log-likelihood of each text, one row of COLUMNS a text.

    after: a context for each text, which is read and not scored; without one a text begins a document, and a long one
    is scored as the suites score documents. Raises ValueError for a text without a token and for contexts that are not
    one a text, and NotFinite as the model does.
    """
    if after is not None and len(after) != len(texts):
        raise ValueError(f"after: {len(after)} contexts for {len(texts)} texts; give one a text")
    ids = [lm.tok_encode(text, add_special_tokens=False) for text in texts]
    if not all(ids):
        raise ValueError(f"texts: number {1 + [bool(i) for i in ids].index(False)} has no token to score; leave it out")
    if after is None:
        asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
        scores = lm.loglikelihood_rolling(asked)
    else:
        pairs = enumerate(zip(after, texts, strict=True))
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in pairs]
        scores = [score for score, _ in lm.loglikelihood(asked)]
    rows = [
        [text, len(own), size, -score, -score / len(own), -score / math.log(2) / size]
        for text, own, score in zip(texts, ids, scores, strict=True)
        for size in [len(text.encode())]
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
