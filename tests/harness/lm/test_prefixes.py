"""Beginnings in common: each text once, behind what it really begins with, and nothing read twice that need not be."""

from __future__ import annotations

import random

import pytest
import torch

from harness.lm.generate import advance, groups, read
from harness.lm.prefixes import LINKS, STEP, Prefix, tree
from harness.model.language_model import LanguageModel, ModelConfig, build_model


def texts_of_a_tree(seed: int) -> list[list[int]]:
    """Texts of which each goes on from a random place in one before it."""
    draw = random.Random(seed)
    texts = [[draw.randrange(50) for _ in range(120)]]
    for _ in range(30):
        start = draw.choice(texts)
        texts.append(start[: draw.randrange(len(start))] + [draw.randrange(50) for _ in range(draw.randrange(1, 60))])
    return texts


def small_model(mixer: str) -> LanguageModel:
    options = {"heads": 2} if mixer == "attention" else {"heads": 2, "head_dim": 16}
    layout = "attention" if mixer == "attention" else "recurrent"
    return build_model(
        ModelConfig(layout=layout, mixer=mixer, mixer_options=options, d_model=32, mlp_widths=[64, 64], vocab_size=50),
        0,
    )


@pytest.mark.parametrize("seed", range(20))
def test_every_text_stands_once_behind_a_beginning_of_its_own(seed: int) -> None:
    texts = texts_of_a_tree(seed)
    limits = [random.Random(seed + i).randrange(len(text)) for i, text in enumerate(texts)]
    found = []

    def visit(node: Prefix, start: int) -> None:
        assert node.stop % STEP == 0 and (node.stop > start or node.stop == 0)
        assert node.texts > 1 or node.stop == 0
        for i in node.members:
            assert node.stop <= limits[i] and texts[i][: node.stop] == texts[node.text][: node.stop]
            found.append(i)
        for inner in node.longer:
            assert texts[inner.text][: node.stop] == texts[node.text][: node.stop]
            visit(inner, node.stop)

    visit(tree(texts, limits), 0)
    assert sorted(found) == list(range(len(texts)))


def test_texts_that_leave_a_common_one_at_different_places_share_all_of_it_up_to_there() -> None:
    trunk = list(range(STEP * 4))
    texts = [[*trunk[: STEP * n], 100 + n, *trunk] for n in (1, 2, 3)] + [[*trunk, 200], [*trunk, 201]]
    node, stops = tree(texts, [len(text) - 1 for text in texts]), []
    while node.longer:
        (node,) = node.longer
        stops.append((node.stop, node.members))
    assert stops == [(STEP, [0]), (2 * STEP, [1]), (3 * STEP, [2]), (4 * STEP, [3, 4])]


def test_a_chain_of_beginnings_is_no_longer_than_said() -> None:
    trunk = list(range(5000))
    node, depth = tree([[*trunk[:n], -1, *trunk[n:]] for n in range(0, 5000, 10)], [4999] * 500), 0
    while node.longer:
        depth, node = depth + 1, max(node.longer, key=lambda b: b.texts)
    assert 0 < depth <= LINKS + 1


@pytest.mark.parametrize("mixer", ["attention", "gated_deltanet"])
@pytest.mark.parametrize("batch_tokens, batch_rows", [(1, 1), (100, 4), (4096, 64)])
@torch.no_grad()
def test_reading_on_from_a_beginning_is_reading_whole(mixer: str, batch_tokens: int, batch_rows: int) -> None:
    model, texts, seen = small_model(mixer), texts_of_a_tree(3), []
    for group in groups(model, texts, [len(text) - 1 for text in texts], batch_tokens, batch_rows):
        for k, (i, start) in enumerate(zip(group.members, group.starts, strict=True)):
            (hidden,) = read(model, [texts[i][start:]], group.initial_state(model, [k]), [1])
            # fp32 rounding of other orders of summation.
            torch.testing.assert_close(hidden, model.hidden(torch.tensor([texts[i]]))[0][0, -1:], rtol=1e-4, atol=1e-4)
            seen.append(i)
    assert sorted(seen) == list(range(len(texts)))


@torch.no_grad()
def test_vectors_of_last_tokens_alone_are_those_of_all() -> None:
    model, rows, tails = small_model("attention"), [[1, 2, 3, 4], [5, 6], [7, 8, 9]], [2, 0, 3]
    for given in (rows, [row[:2] for row in rows]):
        wanted = [min(n, len(row)) for n, row in zip(tails, given, strict=True)]
        every, some = advance(model, given)[0], advance(model, given, tails=wanted)[0]
        for function in (some, read(model, given, tails=wanted)):
            for row, vectors, n in zip(every, function, wanted, strict=True):
                torch.testing.assert_close(vectors, row[len(row) - n :], rtol=1e-4, atol=1e-4)
