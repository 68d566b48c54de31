"""The tree of shared prefixes: each text appears once, under a prefix of its own, and chains stay short."""

from __future__ import annotations

import random

import pytest

from harness.lm.prefixes import LINKS, STEP, Prefix, tree
from tests.harness.lm.models import texts_of_a_tree


@pytest.mark.parametrize("seed", range(20))
def test_every_text_appears_once_under_one_of_its_prefixes(seed: int) -> None:
    texts = texts_of_a_tree(seed)
    limits = [random.Random(seed + i).randrange(len(text)) for i, text in enumerate(texts)]
    visited = []

    def visit(node: Prefix, start: int) -> None:
        assert node.stop % STEP == 0 and (node.stop > start or node.stop == 0)
        assert node.texts > 1 or node.stop == 0
        for i in node.members:
            assert node.stop <= limits[i] and texts[i][: node.stop] == texts[node.text][: node.stop]
            visited.append(i)
        for inner in node.longer:
            assert texts[inner.text][: node.stop] == texts[node.text][: node.stop]
            visit(inner, node.stop)

    visit(tree(texts, limits), 0)
    assert sorted(visited) == list(range(len(texts)))


def test_texts_that_leave_a_common_one_at_different_positions_share_everything_before() -> None:
    trunk = list(range(STEP * 4))
    texts = [[*trunk[: STEP * n], 100 + n, *trunk] for n in (1, 2, 3)] + [[*trunk, 200], [*trunk, 201]]
    node, stops = tree(texts, [len(text) - 1 for text in texts]), []
    while node.longer:
        (node,) = node.longer
        stops.append((node.stop, node.members))
    assert stops == [(STEP, [0]), (2 * STEP, [1]), (3 * STEP, [2]), (4 * STEP, [3, 4])]


def test_a_chain_of_prefixes_is_no_longer_than_its_limit() -> None:
    trunk = list(range(5000))
    node, depth = tree([[*trunk[:n], -1, *trunk[n:]] for n in range(0, 5000, 10)], [4999] * 500), 0
    while node.longer:
        depth, node = depth + 1, max(node.longer, key=lambda b: b.texts)
    assert 0 < depth <= LINKS + 1
