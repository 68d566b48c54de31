"""State space duality: the scan with one decay per head and token that Mamba-2 and Mamba-3 share.

Per head, the state S is P × N, and each token has R inputs x of P numbers and R pairs B, C of N (R = 1 unless MIMO):

    S_t = exp(g_t) · (S_{t-1} + before_t · Σ_r x_{t-1,r} B_{t-1,r}ᵀ) + now_t · Σ_r x_{t,r} B_{t,r}ᵀ
    y_{t,r} = S_t C_{t,r} + skip · x_{t,r}

Mamba-2 (Dao and Gu, arXiv 2405.21060) has before = 0 and now = dt. Mamba-3's trapezoidal rule also weights the previous
token's input. Unrolled, token s reaches token t > s with exp(g_{s+1} + … + g_t) · (now_s + before_{s+1}) and itself
with now_s. So both models are one masked product within a chunk and one state from chunk to chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.parts.common import accumulator_dtype, first_order
from mixers.parts.decay import segment_decays

Previous = tuple[Tensor, Tensor]
"""x [b, H, R, P] and B [b, G, R, N] of the token before the first."""


def outer(x: Tensor, B: Tensor) -> Tensor:
    """Return Σ_r x_r B_rᵀ, [b, H, P, N]. x: [b, H, R, P]; B: [b, G, R, N] with G dividing H."""
    share = x.shape[1] // B.shape[1]
    return (x.transpose(-1, -2).unflatten(1, (-1, share)) @ B.unsqueeze(2)).flatten(1, 2)


def ssd_recurrent(
    x: Tensor,
    log_decay: Tensor,
    now: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    before: Tensor | None = None,
    previous: Previous | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the scan token by token, following the equations of the module's docstring.

    x: [b, T, H, R, P]; log_decay (g ≤ 0), now, before: [b, T, H]; B, C: [b, T, G, R, N], where head h uses group
    h·G/H; initial_state: [b, H, P, N], zeros if None. before is None for Mamba-2; otherwise `previous` is required.
    skip: [H], zeros if None.
    Returns y [b, T, H, R, P] and the last state, both in fp32, or in fp64 if an input is fp64.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, log_decay, now, B, C, state, before, previous, skip = _prepare(
            x, log_decay, now, B, C, initial_state, before, previous, skip
        )
        share = x.shape[2] // C.shape[2]
        outputs = []
        for t in range(x.shape[1]):
            if before is not None:
                state = state + before[:, t, :, None, None] * outer(*previous)
                previous = (x[:, t], B[:, t])
            decay = log_decay[:, t, :, None, None].exp()
            state = decay * state + now[:, t, :, None, None] * outer(x[:, t], B[:, t])
            read = C[:, t].unsqueeze(2) @ state.unflatten(1, (-1, share)).transpose(-1, -2)  # [b, G, H/G, R, P]
            outputs.append(read.flatten(1, 2))
        return torch.stack(outputs, 1) + skip[:, None, None] * x, state


class ChunkedScan(torch.autograd.Function):
    """The scan over whole chunks, with a gradient written by hand.

    Autograd would read and write each tensor several times more, and on a CPU, memory takes most of the time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keys: Tensor,
        queries: Tensor,
        weights: Tensor,
        from_start: Tensor,
        to_end: Tensor,
        fade: Tensor,
        skip: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return y like x and the state after the last chunk.

        For n chunks, Q groups of all sequences and S heads per group: x [n, Q, S, R·L, P]; keys, queries [n, Q, R·L,
        N]; weights [n, Q, S, L, L], of inputs in outputs; from_start [n, Q, S, L], decays since the chunk's start;
        to_end [n, Q, S, L], weights of inputs in the state after the chunk; fade [n, Q, S], decay over the chunk; skip
        [Q, S]; state [Q, S, N, P].
        """
        length = weights.shape[-1]
        raw = queries @ keys.mT  # [n, Q, R·L, R·L]
        scores = (_blocks(raw, length).unsqueeze(2) * _over_blocks(weights)).flatten(-4, -3).flatten(-2)
        scores.diagonal(0, -2, -1).add_(skip.unsqueeze(-1))
        reads, writes = (_per_token(t.unsqueeze(2), f) for t, f in ((queries, from_start), (keys, to_end)))
        written = writes.mT @ x  # [n, Q, S, N, P]
        states = state.new_empty(len(x) + 1, *state.shape)
        states[0] = state
        every = states.unbind()
        for i, fades in enumerate(fade[..., None, None].unbind()):
            torch.addcmul(written[i], every[i], fades, out=every[i + 1])
        y = (scores @ x).add_(reads @ states[:-1])
        ctx.save_for_backward(x, keys, queries, weights, from_start, to_end, fade, raw, scores, reads, writes, states)
        return y, every[-1].clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_y: Tensor, d_state: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of each argument of `forward`."""
        x, keys, queries, weights, from_start, to_end, fade, raw, scores, reads, writes, states = ctx.saved_tensors
        length = weights.shape[-1]
        with torch.autocast(d_y.device.type, enabled=False):
            read = reads.mT @ d_y
            d_states = torch.empty_like(states)
            d_states[-1] = d_state
            every = d_states.unbind()
            for i, fades in reversed(list(enumerate(fade[..., None, None].unbind()))):
                torch.addcmul(read[i], every[i + 1], fades, out=every[i])
            entering, leaving = states[:-1], d_states[1:]
            d_x = (scores.mT @ d_y).add_(writes @ leaving)
            d_scores = d_y @ x.mT
            d_skip = d_scores.diagonal(0, -2, -1).sum((0, -1))
            blocks = _blocks(d_scores, length)
            d_weights = (blocks * _blocks(raw, length).unsqueeze(2)).sum(-4).sum(-2)  # faster than both at once
            d_raw = _over_heads(blocks * _over_blocks(weights)).flatten(-4, -3).flatten(-2)
            d_reads, d_writes = d_y @ entering.mT, x @ leaving.mT
            d_from_start, d_to_end = (
                (d * t.unsqueeze(2)).unflatten(-2, (-1, length)).sum((-3, -1))
                for d, t in ((d_reads, queries), (d_writes, keys))
            )
            d_queries = (d_raw @ keys).add_(_over_heads(_per_token(d_reads, from_start)))
            d_keys = (d_raw.mT @ queries).add_(_over_heads(_per_token(d_writes, to_end)))
            d_fade = (leaving * entering).sum((-2, -1))
        return d_x, d_keys, d_queries, d_weights, d_from_start, d_to_end, d_fade, d_skip, every[0]


def ssd_chunked(
    x: Tensor,
    log_decay: Tensor,
    now: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    before: Tensor | None = None,
    previous: Previous | None = None,
    skip: Tensor | None = None,
    chunk_size: int = 16,
) -> tuple[Tensor, Tensor]:
    """Run the scan in chunks of `chunk_size` tokens, a power of two; else like `ssd_recurrent`."""
    with torch.autocast(x.device.type, enabled=False):
        x, log_decay, now, B, C, state, before, previous, skip = _prepare(
            x, log_decay, now, B, C, initial_state, before, previous, skip
        )
        batch, steps, heads, rank, _ = x.shape
        groups = B.shape[2]
        length = min(chunk_size, 1 << (steps - 1).bit_length())
        later = now  # a token's weight in all later outputs; `now` is its weight in its own output
        if before is not None:
            state = state + before[:, 0, :, None, None] * outer(*previous)
            later = now + F.pad(before[:, 1:], (0, 0, 0, 1))

        # Padding of the last chunk neither decays the state nor writes to it, so it changes nothing. Within a chunk,
        # the tokens of one rank are side by side, so that weights of tokens meet whole rows of the products.
        x, g, now, later, B, C = (_split_chunks(t, length) for t in (x, log_decay, now, later, B, C))
        x = x.unflatten(3, (groups, -1)).permute(1, 0, 3, 4, 5, 2, 6).flatten(1, 2).flatten(3, 4)  # [n, b·G, S, R·L, P]
        keys, queries = (t.permute(1, 0, 3, 4, 2, 5).flatten(1, 2).flatten(2, 3) for t in (B, C))  # [n, b·G, R·L, N]
        g, now, later = (
            t.unflatten(3, (groups, -1)).permute(1, 0, 3, 4, 2).flatten(1, 2).contiguous() for t in (g, now, later)
        )  # [n, b·G, S, L]
        decay = segment_decays(g)
        from_start = decay[..., 0] * g[..., :1].exp()
        weights = decay * later.unsqueeze(-2)
        to_end = weights[..., -1, :]
        if before is not None:
            weights = torch.diagonal_scatter(weights, now, dim1=-2, dim2=-1)
            to_end = decay[..., -1, :] * later
        skip = skip.view(groups, -1).repeat(batch, 1)
        state = state.unflatten(1, (groups, -1)).flatten(0, 1).mT
        y, state = ChunkedScan.apply(x, keys, queries, weights, from_start, to_end, from_start[..., -1], skip, state)
        y = y.unflatten(1, (batch, groups)).unflatten(4, (rank, length))  # [n, b, G, S, R, L, P]
        y = y.permute(1, 0, 5, 2, 3, 4, 6).flatten(3, 4).flatten(1, 2)[:, :steps]
        return y, state.mT.reshape(batch, heads, *state.shape[:-3:-1])


def _prepare(x, log_decay, now, B, C, initial_state, before, previous, skip):
    """Cast the arguments of a scan to the accumulator's dtype and fill in zeros for the initial state and skip."""
    dtype = accumulator_dtype(x, log_decay, B, C)
    x, log_decay, now, B, C = (t.to(dtype) for t in (x, log_decay, now, B, C))
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], x.shape[2], x.shape[4], B.shape[4])
    if before is not None:
        before, previous = before.to(dtype), tuple(t.to(dtype) for t in previous)
    skip = x.new_zeros(x.shape[2]) if skip is None else skip.to(dtype)
    return x, log_decay, now, B, C, initial_state.to(dtype), before, previous, skip


def _split_chunks(t: Tensor, length: int) -> Tensor:
    """[b, T, ...] → [b, n, length, ...], the last chunk padded with zeros."""
    missing = -t.shape[1] % length
    if missing:
        t = F.pad(t, [0, 0] * (t.dim() - 2) + [0, missing])
    return t.unflatten(1, (-1, length))


def _blocks(products: Tensor, length: int) -> Tensor:
    """[..., R·L, R·L] → [..., R, L, R, L]."""
    return products.unflatten(-1, (-1, length)).unflatten(-3, (-1, length))


def _over_blocks(weights: Tensor) -> Tensor:
    """[..., L, L] → [..., 1, L, 1, L], to scale the blocks of products."""
    return weights.unsqueeze(-2).unsqueeze(-4)


def _per_token(t: Tensor, factors: Tensor) -> Tensor:
    """Scale t [..., R·L, N] by factors [..., L] of its tokens, the same for each rank."""
    length = factors.shape[-1]
    return (t.unflatten(-2, (-1, length)) * factors[..., None, :, None]).flatten(-3, -2)


def _over_heads(t: Tensor) -> Tensor:
    """Sum t [n, Q, S, ...] over the heads of a group; a sum over one head would copy."""
    return t.squeeze(2) if t.shape[2] == 1 else t.sum(2)
