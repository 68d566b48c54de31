"""Training form of Gated Delta Rule-2: two Triton kernels parallel over chunks and two that scan them.

With C tokens per chunk, P the product of α from the chunk's start up to a token, and F the product after it to the end:

    intra_chunk      T and Aqk by doubling blocks, A = (I + T)^-1, P ⊙ q, P ⊙ e, F ⊙ k
    scan_forward     R = A (z - (P ⊙ e) S),  O = (P ⊙ q) S + Aqk R,  S ← Π α ⊙ S + (F ⊙ k)ᵀ R
    scan_backward    dR = Aqkᵀ dO + (F ⊙ k) dS,  dz = Aᵀ dR,  dS ← Π α ⊙ dS + (P ⊙ q)ᵀ dO - (P ⊙ e)ᵀ dz
    chunk_gradients  dAqk = dO Rᵀ,  dT = -dz Rᵀ,  and from these, the states and their gradients all the rest

(arXiv 2605.22791, section 3 and appendices, with A (z - (P ⊙ e) S) in place of U - Y S, which saves one product and the
memory for Y and U. The gradient of T is -Aᵀ dA Aᵀ with dA = dR xᵀ, x = z - (P ⊙ e) S. Since dz = Aᵀ dR and R = A x, it
equals -dz Rᵀ and needs no product with A.)

Bytes per token and head at K = V = 128 and C = 64, in bf16 with bf16 projections of g, if each tensor passes once:

                     reads                                                  writes                                 sum
    intra_chunk      q, k, g, b 1024                                        P⊙q, P⊙e, F⊙k 768; A, Aqk 256         2128
    scan_forward     P⊙q, P⊙e, F⊙k 768; A, Aqk 256; v, w 512                o 256; R 256; states 512             2584
    scan_backward    P⊙q, P⊙e, F⊙k 768; A, Aqk 256; dO 256                  dz 256; their gradients 512          2072
    chunk_gradients  q, k, g, b, v, w 1536; dO, R, dz 768; states 1024      dq, dk, dg, db, dv, dw 1536          4952

plus small tensors (Π α over blocks of 8, 1 / |q|, 1 / |k|). The lower bound is 1792 for the forward pass (inputs and o)
and 3328 for the backward pass (inputs, dO, gradients). `run.py bench kernels --static` counts the sums from launches.

Saved for the backward pass: the decayed operands, A and Aqk (1 KB), which the scan needs written anyway and which would
cost 2128 to recompute; R and the states (768), which would cost another serial scan. V is split over programs to fill
the GPU, so the key side is read once per block of V; the programs of one head run at the same time and share it through
the L2 cache. The matrices inside chunks, their gradients and data handed from one part of a program to the next stay in
the cache, because the program that writes them also reads them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixers.gdn2.kernels.gradients import CHUNK_GRADIENTS
from mixers.gdn2.kernels.intra import INTRA_CHUNK
from mixers.gdn2.kernels.launch import padded
from mixers.gdn2.kernels.scan import SCAN_BACKWARD, SCAN_FORWARD

# Channels of a state that enter a product at a time. More operands would use up the registers.
KEY_BLOCK = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 16}


@lru_cache(maxsize=64)
def _tables(offsets: tuple[int, ...], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the starts of sequences in tokens and in chunks, [N + 1] each, and the starts and lengths of chunks, [NT].

    No chunk holds tokens of two sequences.
    """
    start = torch.tensor(offsets)
    lengths = start.diff()
    first = torch.nn.functional.pad(((lengths + size - 1) // size).cumsum(0), (1, 0))
    of_sequence = torch.repeat_interleave(torch.arange(len(lengths)), first.diff())
    chunk_start = start[of_sequence] + size * (torch.arange(len(of_sequence)) - first[of_sequence])
    rows = (start[of_sequence + 1] - chunk_start).clamp(max=size).to(torch.int32)
    return start.to(device), first.to(device), chunk_start.to(device), rows.to(device)


class ChunkedRule(torch.autograd.Function):
    """The chunked rule on packed tokens, with the gradient of every tensor input."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        b: Tensor,
        w: Tensor,
        A_log: Tensor | None,
        dt_bias: Tensor | None,
        initial: Tensor | None,
        offsets: tuple[int, ...],
        scale: float,
        erase_range: float,
        norm: bool,
        size: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return (o, final state), like `chunked`. size: tokens per chunk; keep: save for the backward pass."""
        (*_, heads, key_dim), (*_, value_heads, value_dim) = q.shape, v.shape
        tables = _tables(offsets, size, q.device)
        sequence_start, sequence_chunk, chunk_start, chunk_rows = tables
        chunks, sequences = len(chunk_rows), len(offsets) - 1
        io = compute_dtype(q, k, v, b, w)
        precision = "tf32x3" if io == torch.float32 else "tf32"

        def new(*shape: int, dtype: torch.dtype = io) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=q.device)

        q_decayed, e_decayed, k_decayed = (new(chunks, heads, size, key_dim) for _ in range(3))
        total = new(chunks, heads, key_dim, dtype=torch.float32)
        inverse, aqk = new(chunks, heads, size, size), new(chunks, heads, size, size)
        whole = new(chunks, heads, size // 8, key_dim, dtype=torch.float32)
        near = new(chunks, heads, size, 8, dtype=torch.float32)
        solved = new(chunks, heads, size, size, dtype=torch.float32)
        q_rstd, k_rstd = (new(chunks, heads, size, dtype=torch.float32) if norm else None for _ in range(2))
        sizes = dict(H=heads, K=key_dim, C=size)
        INTRA_CHUNK(
            lambda meta: (chunks * heads,),
            q=q, k=k, g=g, b=b, A_log=A_log, dt_bias=dt_bias, chunk_start=chunk_start, chunk_rows=chunk_rows,
            q_decayed=q_decayed, e_decayed=e_decayed, k_decayed=k_decayed, total=total, inverse=inverse, aqk=aqk,
            q_rstd=q_rstd, k_rstd=k_rstd, whole=whole, near=near, solved=solved, scale=scale, erase_range=erase_range,
            NORM=norm, ACTIVATE=A_log is not None, PRECISION=precision, **sizes,
        )  # fmt: skip
        o = torch.empty_like(v)
        r = new(chunks, value_heads, size, value_dim) if keep else None
        states = new(chunks, value_heads, key_dim, value_dim) if keep else None
        final = new(sequences, value_heads, key_dim, value_dim, dtype=torch.float32)
        sizes |= dict(HV=value_heads, V=value_dim)
        SCAN_FORWARD(
            lambda meta: (sequences * value_heads * triton.cdiv(value_dim, meta["BV"]),),
            v=v, w=w, q_decayed=q_decayed, e_decayed=e_decayed, k_decayed=k_decayed, total=total, inverse=inverse,
            aqk=aqk, initial=initial, sequence_start=sequence_start, sequence_chunk=sequence_chunk,
            o=o, r=r, states=states, final=final,
            KB=min(KEY_BLOCK[io], padded(key_dim)), ACTIVATE=A_log is not None, HAS_INITIAL=initial is not None,
            KEEP=keep, PRECISION=precision, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(
            q, k, v, g, b, w, A_log, dt_bias, q_decayed, e_decayed, k_decayed, total, inverse, aqk, q_rstd, k_rstd,
            whole, r, states,
        )  # fmt: skip
        ctx.tables, ctx.scale, ctx.erase_range = tables, scale, erase_range
        ctx.sizes, ctx.precision, ctx.has_initial = sizes, precision, initial is not None
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of `forward`, None for those without one."""
        (
            q, k, v, g, b, w, A_log, dt_bias, q_decayed, e_decayed, k_decayed, total, inverse, aqk, q_rstd, k_rstd,
            whole, r, states,
        ) = ctx.saved_tensors  # fmt: skip
        sequence_start, sequence_chunk, chunk_start, chunk_rows = ctx.tables
        (chunks, heads, _, key_dim), (value_heads, value_dim) = q_decayed.shape, v.shape[2:]
        sequences, io = len(sequence_start) - 1, states.dtype
        d_o = torch.zeros_like(v) if d_o is None else d_o.contiguous()
        dz, d_states = torch.empty_like(r), torch.empty_like(states)
        d_initial = torch.empty(sequences, value_heads, key_dim, value_dim, dtype=torch.float32, device=q.device)
        SCAN_BACKWARD(
            lambda meta: (sequences * value_heads * triton.cdiv(value_dim, meta["BV"]),),
            do=d_o, q_decayed=q_decayed, e_decayed=e_decayed, k_decayed=k_decayed, total=total, inverse=inverse,
            aqk=aqk, d_final=None if d_final is None else d_final.contiguous(),
            sequence_start=sequence_start, sequence_chunk=sequence_chunk,
            dz=dz, d_states=d_states, d_initial=d_initial,
            KB=min(KEY_BLOCK[io], padded(key_dim)), HAS_FINAL=d_final is not None, PRECISION=ctx.precision,
            **ctx.sizes,
        )  # fmt: skip
        dq, dk, dv, db, dw = (torch.empty_like(x, dtype=io) for x in (q, k, v, b, w))
        dg = torch.empty_like(g)
        d_aqk, d_t = torch.empty_like(aqk), torch.empty_like(aqk)
        d_whole = whole.new_empty(chunks, heads, 4 * whole.shape[2] + 1, key_dim)
        radial = None if q_rstd is None else torch.empty(*q_rstd.shape, 2, dtype=torch.float32, device=q.device)
        d_log = d_bias = None
        if A_log is not None:
            d_log = torch.empty(chunks, heads, key_dim, dtype=torch.float32, device=q.device)
            d_bias = torch.empty_like(d_log)
        CHUNK_GRADIENTS(
            lambda meta: (chunks * heads,),
            q=q, k=k, v=v, g=g, b=b, w=w, A_log=A_log, dt_bias=dt_bias, q_rstd=q_rstd, k_rstd=k_rstd, whole=whole,
            chunk_start=chunk_start, chunk_rows=chunk_rows, do=d_o, r_saved=r, dz=dz, states=states,
            d_states=d_states, d_aqk=d_aqk, d_t=d_t, d_whole=d_whole, radial=radial,
            dq=dq, dk=dk, dv=dv, dg=dg, db=db, dw=dw, d_log=d_log, d_bias=d_bias,
            scale=ctx.scale, erase_range=ctx.erase_range,
            NORM=q_rstd is not None, ACTIVATE=A_log is not None, PRECISION=ctx.precision, **ctx.sizes,
        )  # fmt: skip
        if A_log is not None:
            d_log = d_log.sum((0, 2)).to(A_log.dtype)
            d_bias = d_bias.sum(0).flatten().to(dt_bias.dtype)
        dq, dk, dv, db, dw = (d.to(x.dtype) for d, x in zip((dq, dk, dv, db, dw), (q, k, v, b, w), strict=True))
        return dq, dk, dv, dg, db, dw, d_log, d_bias, d_initial if ctx.has_initial else None, *[None] * 6


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of the operands of products: the common one if it is bf16 or fp16, else fp32."""
    dtypes = {x.dtype for x in tensors}
    return dtypes.pop() if dtypes in ({torch.bfloat16}, {torch.float16}) else torch.float32


def chunk_size_for(chunk_size: int, longest: int, io: torch.dtype) -> int:
    """Return the tokens per chunk: `chunk_size`, but no more than the longest sequence fills, and at least 16.

    Matrix instructions need 16. fp32 always uses 16, since the three parts of a tf32x3 product take more registers.
    """
    return 16 if io == torch.float32 else max(16, min(chunk_size, triton.next_power_of_2(longest)))


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None, dt_bias: Tensor | None,
    initial: Tensor | None, offsets: tuple[int, ...], scale: float, erase_range: float, norm: bool, chunk_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the operator in chunks, differentiably. Returns (o [B, T, HV, V], final state [N, HV, K, V] in fp32).

    offsets: the N sequences' first tokens and the total, in tokens of the flattened B × T. norm: L2-normalise q and k.
    The other arguments are those of `gated_delta_rule_2`.
    """
    initial = None if initial is None else initial.to(torch.float32)
    inputs = [None if x is None else x.contiguous() for x in (q, k, v, g, b, w, A_log, dt_bias, initial)]
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    longest = max(stop - start for start, stop in zip(offsets, offsets[1:], strict=False))
    size = chunk_size_for(chunk_size, longest, compute_dtype(q, k, v, b, w))
    return ChunkedRule.apply(*inputs, offsets, scale, erase_range, norm, size, keep)
