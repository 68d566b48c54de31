"""Attention: softmax over rotated queries and keys, and a cache that grows in place unseen by callers."""

from __future__ import annotations

import pytest
import torch

from mixers import build_mixer
from mixers.attention import ROOM, Attention
from mixers.interface import index_state

# float64: another order of the same sums.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
D = 32


def attention(window: int | None = None) -> Attention:
    torch.manual_seed(0)
    return build_mixer("attention", D, {"heads": 4, "kv_heads": 2, "window": window}).double()


def tokens(batch: int, steps: int) -> torch.Tensor:
    return torch.randn(batch, steps, D, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))


@pytest.mark.parametrize("window", [None, 7])
def test_attention_is_softmax_over_rotated_queries_and_keys_whatever_the_block(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = attention(window)
    x = torch.randn(1, 30, D, dtype=torch.float64)
    q, k, v = (proj(x)[0].view(30, -1, 8) for proj in (m.q_proj, m.k_proj, m.v_proj))
    # RoPE as a product of complex numbers: components i and i + 4 span a plane, turned by position · 10000^(-i/4).
    turn = torch.polar(
        torch.ones(30, 4, dtype=torch.float64),
        torch.arange(30, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(4, dtype=torch.float64) / 4),
    )
    q, k = (torch.complex(t[..., :4], t[..., 4:]) * turn[:, None] for t in (q, k))
    outputs = torch.zeros(30, 4, 8, dtype=torch.float64)
    for t in range(30):
        first = 0 if window is None else max(0, t - window + 1)
        for head in range(4):
            scores = (q[t, head] * k[first : t + 1, head // 2].conj()).real.sum(-1) / 8**0.5
            outputs[t, head] = scores.softmax(0) @ v[first : t + 1, head // 2]
    expected = m.o_proj(outputs.flatten(1))
    for block in (1024, 11):
        monkeypatch.setattr("mixers.attention.QUERY_BLOCK", block)
        torch.testing.assert_close(m(x)[0][0], expected, **CLOSE)
        _, state = m(x[:, :4], return_state=True)  # after a state the mask is explicit
        torch.testing.assert_close(m(x[:, 4:], state)[0][0], expected[4:], **CLOSE)


@pytest.mark.parametrize("window", [None, 7])
@torch.no_grad()
def test_decoding_over_several_buffers_is_reading_whole(window: int | None) -> None:
    m, x = attention(window), tokens(2, 5 * ROOM)
    outputs, state = [], None
    for x_t in x.split(1, 1):
        y, state = m(x_t, state, return_state=True)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), m(x)[0], **CLOSE)


@torch.no_grad()
def test_a_cache_with_room_is_not_copied() -> None:
    m, x = attention(), tokens(2, 12)
    _, state = m(x[:, :10], return_state=True)
    _, once = m(x[:, 10:11], state, return_state=True)
    _, twice = m(x[:, 11:], once, return_state=True)
    assert all(once[key].data_ptr() == twice[key].data_ptr() != state[key].data_ptr() for key in ("k", "v"))


@pytest.mark.parametrize("window", [None, 7])
@torch.no_grad()
def test_two_continuations_of_one_state_do_not_meet(window: int | None) -> None:
    m, x, others = attention(window), tokens(3, 12), tokens(3, 4)
    _, state = m(x[:, :11], return_state=True)
    _, state = m(x[:, 11:], state, return_state=True)
    before = {key: value.clone() for key, value in state.items()}
    _, first = m(others[:, :2], state, return_state=True)
    _, second = m(others[:, 2:3], state, return_state=True)
    picked = index_state(first, slice(0, 2)), index_state(first, slice(1, 3))  # they share memory, and rows
    follow = [m(others[:2, 3:], part, return_state=True)[0] for part in picked]
    assert all(torch.equal(state[key], value) for key, value in before.items())
    for y, rows in zip(follow, (slice(0, 2), slice(1, 3)), strict=True):
        # The next token is the same for both, whichever rows they hold.
        whole = torch.cat([x[rows], others[rows, :2], others[:2, 3:]], 1)
        torch.testing.assert_close(y, m(whole)[0][:, -1:], **CLOSE)
    y = m(others[:, 3:], second)[0]
    torch.testing.assert_close(y, m(torch.cat([x, others[:, 2:]], 1))[0][:, -1:], **CLOSE)
