"""The gated delta rule in torch: one chunked core for Gated DeltaNet, KDA and Gated DeltaNet-2.

With S̄ = diag(exp g_t) S_{t-1}, the core computes S_t = S̄ + k_t (z_t - S̄ᵀ e_t)ᵀ and o_t = S_tᵀ q_t. The operators
differ only in what they pass as e (erase side), z (write side) and g (log-decay, per channel or per head). Within a
chunk of C tokens with decays D_rs = Σ_{s<i≤r} g_i

    T_rs = Σ_c e_rc k_sc exp(D_rs,c) for s < r,     Aqk_rs = Σ_c q_rc k_sc exp(D_rs,c) for s ≤ r
    A = (I + T)^-1,                                 R = A (z - (exp(G) ⊙ e) S_0)
    O = (exp(G) ⊙ q) S_0 + Aqk R,                   S_C = diag(exp G_C) S_0 + (exp(G_C - G) ⊙ k)ᵀ R

where every exponent is a sum of g over the tokens between (see mixers.parts.decay), never a difference of sums. T and
Aqk are filled by doubling blocks: the quarter that couples a left block with the right block next to it is one matrix
product of decayed keys and decayed rows, so each channel is exponentiated log2(C) + 1 times instead of C times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixers.parts.common import accumulator_dtype
from mixers.parts.decay import double_sums, prefix_suffix, segment_sums

P, R = ParamSpec("P"), TypeVar("R")


def without_autocast(operator: Callable[P, R]) -> Callable[P, R]:
    """Decorate an operator on tensors so that it computes in fp32 inside an autocast region too."""

    @wraps(operator)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if first.device.type == "meta":  # autocast does not know the meta device
            return operator(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return operator(*args, **kwargs)

    return run


@without_autocast
def scalar_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    chunk_size: int,
    backend: Literal["recurrent", "chunked"],
) -> tuple[Tensor, Tensor]:
    """The gated delta rule with one write strength per head, the operator of Gated DeltaNet and KDA.

        S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

    q, k: [B, T, H, K]; v: [B, T, HV, V]; g ≤ 0: [B, T, HV, K or 1]; beta: [B, T, HV]; initial_state: [B, HV, K, V],
    zeros if None. scale defaults to K^-1/2. `recurrent` follows the equations token by token, `chunked` computes the
    same in chunks of `chunk_size` tokens. Returns o [B, T, HV, V] in v's dtype and the final state in at least fp32.
    """
    out_dtype, dtype, groups = v.dtype, accumulator_dtype(q, k, v, g, beta), v.shape[2] // k.shape[2]
    # Not repeat_interleave, which copies even where each key head has one value head, and sums in its backward pass.
    q, k = (x.to(dtype).unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3) for x in (q, k))  # [B, T, HV, K]
    v, g, beta = v.to(dtype), g.to(dtype), beta.to(dtype).unsqueeze(-1)
    if initial_state is None:
        initial_state = q.new_zeros(q.shape[0], v.shape[2], q.shape[-1], v.shape[-1])
    q, state = q * (q.shape[-1] ** -0.5 if scale is None else scale), initial_state.to(dtype)
    if backend == "chunked":
        o, state = delta_rule_chunked(q, k, v, g, beta, beta, state, chunk_size)
        return o.to(out_dtype), state
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None] * state
        old = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t] * (v[:, t] - old))
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1).to(out_dtype), state


def intra_chunk(rows: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute T and Aqk of every chunk, with the sums of g from the chunk's start and to its end.

    rows: e stacked on q, [..., 2C, K], since both meet the same keys through the same decays; k: [..., C, K];
    g: [..., C, K], or [..., C, 1] for one decay per head; C a power of two.
    Returns T [..., C, C], valid below the diagonal only; Aqk [..., C, C], lower triangular; and the prefix and suffix
    sums, shaped like g.
    """
    if g.shape[-1] == 1:
        decay = segment_sums(g.squeeze(-1)).exp()
        t, aqk = ((rows @ k.mT) * torch.cat([decay, decay], -2)).tensor_split(2, -2)
        return t, aqk, *prefix_suffix(g, -2)

    size, rows = k.shape[-2], rows.unflatten(-2, (2, -1))
    aqk = (rows.select(-3, 1) * k).sum(-1)[..., None, None]  # [..., C, 1, 1]
    products = torch.stack([torch.zeros_like(aqk), aqk], -4)  # [..., 2, n, m, m]
    prefix, suffix = g.unsqueeze(-2), torch.zeros_like(g).unsqueeze(-2)  # [..., n, m, K]
    m = 1
    while m < size:
        right = rows.unflatten(-2, (-1, 2, m)).select(-3, 1)  # [..., 2, n/2, m, K]
        left = k.unflatten(-2, (-1, 2, m)).select(-3, 0)  # [..., n/2, m, K]
        to_right = prefix.unflatten(-3, (-1, 2)).select(-3, 1).exp()
        from_left = suffix.unflatten(-3, (-1, 2)).select(-3, 0).exp()
        keys = (left * from_left).mT.unsqueeze(-4)
        cross = (right * to_right.unsqueeze(-4)) @ keys  # [..., 2, n/2, m, m]
        upper, lower = products.unflatten(-3, (-1, 2)).unbind(-3)
        products = torch.cat([F.pad(upper, (0, m)), torch.cat([cross, lower], -1)], -2)
        prefix, suffix = double_sums(prefix, suffix)
        m *= 2
    t, aqk = products.squeeze(-3).unbind(-3)
    return t, aqk, prefix.squeeze(-3), suffix.squeeze(-3)


class UnitLowerInverse(torch.autograd.Function):
    """(I + T)^-1 of a strictly lower triangular T [..., C, C], C a power of two.

    Blocks are doubled: the inverse of [[L, 0], [X, R]] is [[L^-1, 0], [-R^-1 X L^-1, R^-1]]. This is forward
    substitution on blocks, with matrix products only. Entries on and above the diagonal of T are never read.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        """Return the inverse, [..., C, C]."""
        size = t.shape[-1]
        inverse = torch.eye(size, dtype=t.dtype, device=t.device).repeat(*t.shape[:-2], 1, 1)
        m = 1
        while m < size:
            x, pairs = _pairs(t, m)[..., 1, :, 0, :], _pairs(inverse, m)
            if m > 1:  # the inverse of a single token's block is 1
                x = pairs[..., 1, :, 1, :] @ x @ pairs[..., 0, :, 0, :]
            pairs[..., 1, :, 0, :] = -x  # no out= into a view: torch.compile breaks its graph there
            m *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return -tril(Aᵀ dA Aᵀ, -1) for the inverse A and its gradient dA."""
        (inverse,) = ctx.saved_tensors
        transposed = inverse.mT
        with torch.autocast(grad.device.type, enabled=False):
            return (transposed @ grad @ transposed).tril_(-1).neg_()


def _pairs(x: Tensor, m: int) -> Tensor:
    """View the diagonal blocks of 2m tokens of x [..., C, C] as quarters: [..., C/2m, 2, m, 2, m]."""
    return x.unflatten(-2, (-1, 2, m)).unflatten(-1, (-1, 2, m)).diagonal(0, -6, -3).movedim(-1, -5)


class ChunkScan(torch.autograd.Function):
    """The scan from chunk to chunk: R = A (z - e S), O = q S + Aqk R, S ← total ⊙ S + tails R.

    The backward pass is written by hand. Its loop holds only what depends on the next chunk's state; the gradient of
    each input is then one product over all chunks, where autograd would make one product per chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        reads: Tensor,
        inverse: Tensor,
        aqk: Tensor,
        tails: Tensor,
        total: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Scan N chunks. Returns O like z and the state after the last chunk.

        z: [N, BH, C, V]; reads: e stacked on q, decayed from the chunk's start, [N, BH, 2C, K]; inverse, aqk:
        [N, BH, C, C]; tails: [N, BH, K, C]; total: [N, BH, K or 1, 1]; state: [BH, K, V].
        """
        states = state.new_empty(len(z) + 1, *state.shape)
        states[0] = state
        u, r, o = torch.empty_like(z), torch.empty_like(z), torch.empty_like(z)
        every = states.unbind()
        chunks = zip(*(x.unbind() for x in (z, reads, inverse, aqk, tails, total, u, r, o)), strict=True)
        for i, (z_i, reads_i, inverse_i, aqk_i, tails_i, total_i, u_i, r_i, o_i) in enumerate(chunks):
            e_s, q_s = torch.bmm(reads_i, every[i]).tensor_split(2, 1)
            torch.sub(z_i, e_s, out=u_i)
            torch.bmm(inverse_i, u_i, out=r_i)
            torch.baddbmm(q_s, aqk_i, r_i, out=o_i)
            torch.mul(every[i], total_i, out=every[i + 1]).baddbmm_(tails_i, r_i)
        ctx.save_for_backward(reads, inverse, aqk, tails, total, states, u, r)
        return o, every[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_state: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of z, reads, inverse, aqk, tails, total and state."""
        reads, inverse, aqk, tails, total, states, u, r = ctx.saved_tensors
        d_o = d_o.contiguous()
        with torch.autocast(d_o.device.type, enabled=False):
            size = d_o.shape[2]
            d_reads = d_o.new_empty(*reads.shape[:-1], d_o.shape[-1])  # d(e S) stacked on d(q S)
            d_reads[:, :, size:] = d_o
            d_r = aqk.mT @ d_o
            d_states = torch.empty_like(states)
            d_states[-1] = d_state
            every = d_states.unbind()
            per_chunk = (reads.mT, inverse.mT, tails.mT, total, d_r, d_reads, d_reads[:, :, :size])
            chunks = list(zip(*(x.unbind() for x in per_chunk), strict=True))
            for i in reversed(range(len(chunks))):
                reads_i, inverse_i, tails_i, total_i, d_r_i, d_reads_i, d_e_s_i = chunks[i]
                d_r_i.baddbmm_(tails_i, every[i + 1])
                d_e_s_i.copy_(torch.bmm(inverse_i, d_r_i).neg_())
                torch.mul(every[i + 1], total_i, out=every[i]).baddbmm_(reads_i, d_reads_i)
            entering, leaving = states[:-1], d_states[1:]
            return (
                -d_reads[:, :, :size],
                d_reads @ entering.mT,
                d_r @ u.mT,
                d_o @ r.mT,
                leaving @ r.mT,
                (leaving * entering).sum(-1, keepdim=True).sum_to_size(total.shape),
                every[0],
            )


def delta_rule_chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of the module's docstring in chunks, with e = b ⊙ k and z = w ⊙ v.

    q (already scaled), k: [B, T, H, K]; v: [B, T, H, V]; g ≤ 0 and b: [B, T, H, K or 1]; w: [B, T, H, V or 1]; state:
    [B, H, K, V]; all of one floating dtype. T is any length, chunk_size a power of two. Returns o [B, T, H, V] and the
    state after token T.
    """
    batch, steps, heads, _ = q.shape
    size = min(chunk_size, 1 << (steps - 1).bit_length())
    q, k, v, g, b, w = (_split_chunks(x, size) for x in (q, k, v, g, b, w))
    rows = torch.cat([b * k, q], -2)  # [N, BH, 2C, K]
    t, aqk, prefix, suffix = intra_chunk(rows, k, g)
    from_start = prefix.exp()
    reads = rows * torch.cat([from_start, from_start], -2)
    tails = (suffix.exp() * k).mT
    total = from_start[..., -1:, :].mT
    o, state = ChunkScan.apply(w * v, reads, UnitLowerInverse.apply(t), aqk, tails, total, state.flatten(0, 1))
    o = o.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
    return o[:, :steps], state.unflatten(0, (batch, heads))


def _split_chunks(x: Tensor, size: int) -> Tensor:
    """[B, T, H, X] → [N, B·H, C, X], each chunk contiguous.

    The last chunk is padded with tokens of zero key, erase, write and log-decay, which change nothing.
    """
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4).flatten(1, 2).contiguous()
