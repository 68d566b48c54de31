"""The gated delta rule in torch: one chunked core for Gated DeltaNet, KDA and Gated DeltaNet-2.

With S̄ = diag(exp g_t) S_{t-1}, the core computes S_t = S̄ + k_t (z_t - S̄ᵀ e_t)ᵀ and o_t = S_tᵀ q_t. The operators
differ only in what they pass as e (erase side), z (write side) and g (log-decay, per channel or per head). Within a
chunk of C tokens with decays D_rs = Σ_{s<i≤r} g_i

    T_rs = Σ_c e_rc k_sc exp(D_rs,c) for s < r,     Aqk_rs = Σ_c q_rc k_sc exp(D_rs,c) for s ≤ r
    A = (I + T)^-1,                                 R = A (z - (exp(G) ⊙ e) S_0)
    O = (exp(G) ⊙ q) S_0 + Aqk R,                   S_C = diag(exp G_C) S_0 + (exp(G_C - G) ⊙ k)ᵀ R

where every decay is a product of α = exp g over the tokens between, never a quotient of two products; T, Aqk and the
decayed operands come from mixers.parts.delta_chunks. The gradient is written by hand: in the loop over chunks is only
what depends on the next chunk's state, and each tensor is read and written fewer times than by autograd. With
dz = Aᵀ dR, the gradient of T is -dz Rᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.parts.common import accumulator_dtype, first_order
from mixers.parts.delta_chunks import (
    Decayed,
    decay_channels,
    decay_channels_backward,
    decay_heads,
    decay_heads_backward,
)

CHUNK = 16
"""Tokens per chunk where the caller leaves it open; 16 and 32 are the fastest on a CPU."""

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
    chunk_size: int | None,
    backend: Literal["recurrent", "chunked"],
) -> tuple[Tensor, Tensor]:
    """The gated delta rule with one write strength per head, the operator of Gated DeltaNet and KDA.

        S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

    q, k: [B, T, H, K]; v: [B, T, HV, V]; g ≤ 0: [B, T, HV, K or 1]; beta: [B, T, HV]; initial_state: [B, HV, K, V],
    zeros if None. scale defaults to K^-1/2. `recurrent` follows the equations token by token, `chunked` computes the
    same in chunks of `chunk_size` tokens (None: CHUNK). Returns o [B, T, HV, V] in v's dtype and the final state in at
    least fp32.
    """
    out_dtype, dtype, groups = v.dtype, accumulator_dtype(q, k, v, g, beta), v.shape[2] // k.shape[2]
    # Not repeat_interleave, which copies even where each key head has one value head, and sums in its backward pass.
    q, k = (x.to(dtype).unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3) for x in (q, k))  # [B, T, HV, K]
    v, g, beta = v.to(dtype), g.to(dtype), beta.to(dtype).unsqueeze(-1)
    if initial_state is None:
        initial_state = q.new_zeros(q.shape[0], v.shape[2], q.shape[-1], v.shape[-1])
    q, state = q * (q.shape[-1] ** -0.5 if scale is None else scale), initial_state.to(dtype)
    if backend == "chunked":
        o, state = delta_rule_chunked(q, k, v, g, beta, beta, state, chunk_size or CHUNK)
        return o.to(out_dtype), state
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None] * state
        old = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t] * (v[:, t] - old))
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1).to(out_dtype), state


class ChunkedDeltaRule(torch.autograd.Function):
    """The chunked recurrence on whole chunks, with the gradient of every input."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor, state: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Return O like z and the state after the last chunk of `size` tokens.

        q, k, e: [B, T, H, K]; z: [B, T, H, V]; g: [B, T, H, K or 1]; state: [B, H, K, V]; T a multiple of size.
        """
        e, q, keys, values, g = (_split_chunks(x, size) for x in (e, q, k, z, g))
        rows, keys = torch.stack([e, q], -2).flatten(0, 2), keys.flatten(0, 2)
        d = (decay_heads if g.shape[-1] == 1 else decay_channels)(rows, keys, g.flatten(0, 2))
        inverse = _inverse(d.products[:, :, 0])
        chunks, batch, heads = g.shape[:3]
        reads, inverses, products, tails, total = (
            x.unflatten(0, (chunks, batch * heads))
            for x in (d.reads.flatten(1, 2), inverse, d.products, d.tails, d.total.mT)
        )
        states = state.new_empty(chunks + 1, batch * heads, *state.shape[2:])
        states[0] = state.flatten(0, 1)
        z = values.flatten(1, 2).contiguous()
        r, o = torch.empty_like(z), torch.empty_like(z)
        every = states.unbind()
        for i in range(chunks):
            e_s, q_s = torch.bmm(reads[i], every[i]).unflatten(1, (size, 2)).unbind(2)
            torch.bmm(inverses[i], z[i] - e_s, out=r[i])
            torch.baddbmm(q_s, products[i, :, :, 1], r[i], out=o[i])
            torch.mul(every[i], total[i], out=every[i + 1]).baddbmm_(tails[i].mT, r[i])
        ctx.save_for_backward(rows, keys, g, inverse, r, states, *d[:4], *d.kept)
        ctx.size = size
        return _join_chunks(o.unflatten(1, (batch, heads))), every[-1].unflatten(0, (batch, heads)).clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_o: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, e, z, g and state."""
        rows, keys, g, inverse, r, states, *rest = ctx.saved_tensors
        d = Decayed(*rest[:4], tuple(rest[4:]))
        chunks, batch, heads, size = g.shape[:4]
        with torch.autocast(d_o.device.type, enabled=False):
            d_both = r.new_empty(chunks, batch * heads, size, 2, r.shape[-1])  # gradients of e S beside those of q S
            d_both[..., 1, :] = _split_chunks(d_o, size).flatten(1, 2)
            reads, inverses, products, tails, total = (
                x.unflatten(0, (chunks, batch * heads))
                for x in (d.reads.flatten(1, 2), inverse, d.products, d.tails, d.total.mT)
            )
            d_r = products[..., 1, :].mT @ d_both[..., 1, :]
            d_states = torch.empty_like(states)
            d_states[-1] = d_state.flatten(0, 1)
            every = d_states.unbind()
            for i in reversed(range(chunks)):
                d_z = torch.bmm(inverses[i].mT, d_r[i].baddbmm_(tails[i], every[i + 1]))
                d_both[i, :, :, 0] = -d_z  # not out=: torch.compile takes no view with gaps there
                torch.mul(every[i + 1], total[i], out=every[i]).baddbmm_(reads[i].mT, d_both[i].flatten(1, 2))
            d_rs = d_both.flatten(0, 1).flatten(1, 2)  # [M, 2C, V]
            r, entering, leaving = r.flatten(0, 1), states[:-1].flatten(0, 1), d_states[1:].flatten(0, 1)
            d_products = (d_rs @ r.mT).unflatten(1, (size, 2))
            d_reads = (d_rs @ entering.mT).unflatten(1, (size, 2))
            d_tails = r @ leaving.mT
            d_log = (leaving * entering).sum(-1).unsqueeze(1).sum_to_size(d.total.shape).mul_(d.total)
            backward = decay_heads_backward if g.shape[-1] == 1 else decay_channels_backward
            d_rows, d_k, d_g = backward(rows, keys, g.flatten(0, 2), d, d_products, d_reads, d_tails, d_log)
            d_e, d_q, d_k, d_z, d_g = (
                _join_chunks(x.unflatten(0, (chunks, batch, heads)))
                for x in (d_rows[:, :, 0], d_rows[:, :, 1], d_k, -d_both[..., 0, :].flatten(0, 1), d_g)
            )
        return d_q, d_k, d_e, d_z, d_g, every[0].unflatten(0, (batch, heads)), None


def _inverse(t: Tensor) -> Tensor:
    """Return (I + T)^-1 of T [..., C, C] by forward substitution. Only entries below the diagonal are read."""
    identity = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device)
    return torch.linalg.solve_triangular(t, identity.expand_as(t), upper=False, unitriangular=True)


def delta_rule_chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of the module's docstring in chunks, with e = b ⊙ k and z = w ⊙ v.

    q (already scaled), k: [B, T, H, K]; v: [B, T, H, V]; g ≤ 0 and b: [B, T, H, K or 1]; w: [B, T, H, V or 1]; state:
    [B, H, K, V]; all of one floating dtype. T is any length, chunk_size a power of two. Returns o [B, T, H, V] and the
    state after token T.
    """
    steps = q.shape[1]
    size = min(chunk_size, 1 << (steps - 1).bit_length())
    inputs = (q, k, b * k, w * v, g)
    if missing := -steps % size:
        # Tokens of zero key, erase, write and log-decay change nothing.
        inputs = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in inputs)
    o, state = ChunkedDeltaRule.apply(*inputs, state, size)
    return o[:, :steps], state


def _split_chunks(x: Tensor, size: int) -> Tensor:
    """[B, T, H, X] → a view [N, B, H, C, X]."""
    return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)


def _join_chunks(x: Tensor) -> Tensor:
    """[N, B, H, C, X] → [B, T, H, X]."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)
