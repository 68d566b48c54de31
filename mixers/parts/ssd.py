"""State space duality: the scan with one decay per head and token that Mamba-2 and Mamba-3 share.

Per head, the state S is P × N, and each token has R inputs x of P numbers and R pairs B, C of N (R = 1 unless MIMO):

    S_t = exp(g_t) · (S_{t-1} + before_t · Σ_r x_{t-1,r} B_{t-1,r}ᵀ) + now_t · Σ_r x_{t,r} B_{t,r}ᵀ
    y_{t,r} = S_t C_{t,r}

Mamba-2 (Dao and Gu, arXiv 2405.21060) has before = 0 and now = dt. Mamba-3's trapezoidal rule also weights the previous
token's input. Unrolled, token s reaches token t > s with exp(g_{s+1} + … + g_t) · (now_s + before_{s+1}) and itself
with now_s. So both models are one masked product within a chunk and one state from chunk to chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.parts.common import accumulator_dtype
from mixers.parts.decay import prefix_suffix, segment_sums

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
) -> tuple[Tensor, Tensor]:
    """Run the scan token by token, following the equations of the module's docstring.

    x: [b, T, H, R, P]; log_decay (g ≤ 0), now, before: [b, T, H]; B, C: [b, T, G, R, N], where head h uses group
    h·G/H; initial_state: [b, H, P, N], zeros if None. before is None for Mamba-2; otherwise `previous` is required.
    Returns y [b, T, H, R, P] and the last state, both in fp32, or in fp64 if an input is fp64.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, log_decay, now, B, C, state, before, previous = _prepare(
            x, log_decay, now, B, C, initial_state, before, previous
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
        return torch.stack(outputs, 1), state


def ssd_chunked(
    x: Tensor,
    log_decay: Tensor,
    now: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    before: Tensor | None = None,
    previous: Previous | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Run the scan in chunks of `chunk_size` tokens, a power of two; else like `ssd_recurrent`."""
    with torch.autocast(x.device.type, enabled=False):
        x, log_decay, now, B, C, state, before, previous = _prepare(
            x, log_decay, now, B, C, initial_state, before, previous
        )
        batch, steps, heads, rank, width = x.shape
        groups, size = B.shape[2], B.shape[4]
        share = heads // groups
        length = min(chunk_size, 1 << (steps - 1).bit_length())
        later = now  # a token's weight in all later outputs; `now` is its weight in its own output
        if before is not None:
            state = state + before[:, 0, :, None, None] * outer(*previous)
            later = now + F.pad(before[:, 1:], (0, 0, 0, 1))

        # Padding of the last chunk neither decays the state nor writes to it, so it changes nothing.
        x, g, now, later, B, C = (_split_chunks(t, length) for t in (x, log_decay, now, later, B, C))
        keys, queries = (t.transpose(2, 3).flatten(3, 4) for t in (B, C))  # [b, n, G, L·R, N]
        inputs = x.unflatten(3, (groups, share)).permute(0, 1, 3, 2, 5, 4, 6)  # [b, n, G, L, R, H/G, P]
        prefix, suffix = prefix_suffix(g, 2)  # [b, n, L, H]

        # Within a chunk, all heads of a group share the products C·B.
        weights = segment_sums(g.transpose(2, 3)).exp()  # [b, n, H, L, L]
        if before is None:
            inputs = inputs * _per_input(now, groups)
            decayed = inputs * _per_input(suffix.exp(), groups)
        else:
            decayed = inputs * _per_input(suffix.exp() * later, groups)
            weights = weights * later.transpose(2, 3).unsqueeze(-2)
            weights = torch.diagonal_scatter(weights, now.transpose(2, 3), dim1=-2, dim2=-1)
        scores = (queries @ keys.transpose(-1, -2)).view(batch, -1, groups, 1, length, rank, length, rank)
        scores = scores * weights.view(batch, -1, groups, share, length, 1, length, 1)
        within = scores.flatten(-2).flatten(-3, -2) @ inputs.permute(0, 1, 2, 5, 3, 4, 6).flatten(-3, -2)

        # Between chunks, the heads of a group are side by side: states are [b, G, N, H/G · P].
        written = keys.transpose(-1, -2) @ decayed.flatten(5, 6).flatten(3, 4)  # [b, n, G, N, H/G · P]
        fade = prefix[:, :, -1].exp().view(batch, -1, groups, 1, share, 1)
        fade = fade.expand(-1, -1, -1, -1, -1, width).flatten(4, 5)
        state = state.view(batch, groups, share * width, size).transpose(-1, -2)
        entering = []
        for fades, writes in zip(fade.unbind(1), written.unbind(1), strict=True):
            entering.append(state)
            state = fades * state + writes
        read = queries @ torch.stack(entering, 1)  # [b, n, G, L·R, H/G · P]
        read = read.view(batch, -1, groups, length, rank, share, width) * _per_input(prefix.exp(), groups)

        y = read + within.unflatten(-2, (length, rank)).permute(0, 1, 2, 4, 5, 3, 6)
        y = y.permute(0, 1, 3, 2, 5, 4, 6).flatten(3, 4).flatten(1, 2)[:, :steps]
        return y, state.transpose(-1, -2).reshape(batch, heads, width, size)


def _prepare(x, log_decay, now, B, C, initial_state, before, previous):
    """Cast the arguments of a scan to the accumulator's dtype and fill in a zero initial state."""
    dtype = accumulator_dtype(x, log_decay, B, C)
    x, log_decay, now, B, C = (t.to(dtype) for t in (x, log_decay, now, B, C))
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], x.shape[2], x.shape[4], B.shape[4])
    if before is not None:
        before, previous = before.to(dtype), tuple(t.to(dtype) for t in previous)
    return x, log_decay, now, B, C, initial_state.to(dtype), before, previous


def _split_chunks(t: Tensor, length: int) -> Tensor:
    """[b, T, ...] → [b, n, length, ...], the last chunk padded with zeros."""
    missing = -t.shape[1] % length
    if missing:
        t = F.pad(t, [0, 0] * (t.dim() - 2) + [0, missing])
    return t.unflatten(1, (-1, length))


def _per_input(t: Tensor, groups: int) -> Tensor:
    """[b, n, L, H] → [b, n, G, L, 1, H/G, 1], to scale tensors of shape [b, n, G, L, R, H/G, P]."""
    return t.unflatten(3, (groups, -1)).transpose(2, 3)[..., None, :, None]
