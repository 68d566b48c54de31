"""Reading and decoding: state, batches, shared prefixes and sampling change no token."""

from __future__ import annotations

import math

import pytest
import torch

from harness.lm.generate import NotFinite, advance, cut, generate, generate_text, groups, pick, read
from harness.lm.mixer_lm import MixerLM
from tests.harness.lm.models import CONTEXTS, greedy_by_rereading, small_model, texts_of_a_tree


@pytest.mark.parametrize("mixer", ["attention", "gated_deltanet"])
@pytest.mark.parametrize("batch_tokens, batch_rows", [(1, 1), (100, 4), (4096, 64)])
@torch.no_grad()
def test_continuing_from_a_shared_prefix_equals_reading_the_whole_text(
    mixer: str, batch_tokens: int, batch_rows: int
) -> None:
    model, texts, seen = small_model(mixer), texts_of_a_tree(3), []
    for group in groups(model, texts, [len(text) - 1 for text in texts], batch_tokens, batch_rows):
        for k, (i, start) in enumerate(zip(group.members, group.starts, strict=True)):
            (hidden,) = read(model, [texts[i][start:]], group.initial_state(model, [k]), [1])
            # fp32 rounding of other orders of summation.
            torch.testing.assert_close(hidden, model.hidden(torch.tensor([texts[i]]))[0][0, -1:], rtol=1e-4, atol=1e-4)
            seen.append(i)
    assert sorted(seen) == list(range(len(texts)))


@torch.no_grad()
def test_hidden_vectors_of_last_tokens_alone_equal_those_of_all() -> None:
    model, rows, tails = small_model("attention"), [[1, 2, 3, 4], [5, 6], [7, 8, 9]], [2, 0, 3]
    for batch in (rows, [row[:2] for row in rows]):
        wanted = [min(n, len(row)) for n, row in zip(tails, batch, strict=True)]
        every, some = advance(model, batch)[0], advance(model, batch, tails=wanted)[0]
        for part in (some, read(model, batch, tails=wanted)):
            for row, vectors, n in zip(every, part, wanted, strict=True):
                torch.testing.assert_close(vectors, row[len(row) - n :], rtol=1e-4, atol=1e-4)


def test_decoding_from_state_gives_the_tokens_of_rereading_the_prefix(lm: MixerLM) -> None:
    prompts = [lm.tok_encode(c) for c in [*CONTEXTS, "One"]]
    expected = [greedy_by_rereading(lm, p, 16) for p in prompts]
    assert generate(lm.model, prompts, 16, batch_tokens=8, batch_rows=3) == expected
    # Rows that end early leave the batch and change nothing for the others.
    stop = expected[1][4]
    ends = [e[: e.index(stop)] if stop in e else e for e in expected]
    assert generate(lm.model, prompts, 16, stop_tokens={stop}) == ends


def test_sampling_repeats_with_its_seed_and_ignores_its_neighbours(lm: MixerLM) -> None:
    prompts = [lm.tok_encode(c) for c in CONTEXTS]
    drawn = generate(lm.model, prompts, 12, temperature=1.0, seed=3)
    assert generate(lm.model, prompts[:1], 12, temperature=1.0, seed=3) == drawn[:1]
    assert generate(lm.model, prompts, 12, temperature=1.0, seed=4) != drawn
    assert generate(lm.model, prompts, 12) != drawn
    text = generate_text(lm.model, lm.tokenizer, CONTEXTS[0], 12, temperature=1.0, seed=3)
    assert text == lm.tokenizer.decode(drawn[0], skip_special_tokens=True)


def test_text_ends_before_the_first_of_several_stop_strings() -> None:
    assert cut("one two three", ["three", "two", "four"]) == "one "
    assert cut("one two three", ["four"]) == "one two three"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_with_logits_that_are_not_finite_is_named_unless_it_has_ended(temperature: float) -> None:
    model = small_model("gated_deltanet")
    model.embedding.weight.data[7] = float("nan")
    with pytest.raises(NotFinite, match="prompts, sample 1: "):
        generate(model, [[1, 2], [1, 7]], 2, temperature=temperature)
    # -inf rules a token out, as a model with padded logits does.
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
    tokens, finite = pick(logits, temperature, [torch.Generator().manual_seed(i) for i in range(3)])
    assert finite == [True, False, False] and tokens[0] in (0, 1)


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature: {temperature} is not a finite number from 0"):
        generate(small_model("attention"), [[1]], 1, temperature=temperature)
