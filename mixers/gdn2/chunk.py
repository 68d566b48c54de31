"""Training form of Gated Delta Rule-2: three Triton kernels parallel over chunks and two that scan them.

With C tokens per chunk, P the product of α from the chunk's start up to a token, and F the product after it to the end:

    intra_chunk      T and Aqk by doubling blocks, A = (I + T)^-1, P ⊙ q, P ⊙ e, F ⊙ k
    scan_forward     R = A (z - (P ⊙ e) S),  O = (P ⊙ q) S + Aqk R,  S ← Π α ⊙ S + (F ⊙ k)ᵀ R
    scan_backward    dR = Aqkᵀ dO + (F ⊙ k) dS,  dz = Aᵀ dR,  dS ← Π α ⊙ dS + (P ⊙ q)ᵀ dO - (P ⊙ e)ᵀ dz
    state_gradients  dAqk = dO Rᵀ,  dT = -dz Rᵀ,  d(P ⊙ q) = dO Sᵀ,  d(P ⊙ e) = -dz Sᵀ,  d(F ⊙ k) = R dSᵀ,  dv, dw
    chunk_gradients  from these dq, dk, dg, db

(arXiv 2605.22791, section 3 and appendices, with A (z - (P ⊙ e) S) in place of U - Y S, which saves one product and the
memory for Y and U. The gradient of T is -Aᵀ dA Aᵀ with dA = dR xᵀ, x = z - (P ⊙ e) S. Since dz = Aᵀ dR and R = A x, it
equals -dz Rᵀ and needs no product with A.)

Bytes per token and head at K = V = 128 and C = 64, in bf16 with bf16 projections of g, if each tensor passes once:

                     reads                                        writes                                     sum
    intra_chunk      q, k, g, b 1024                              P⊙q, P⊙e, F⊙k 768; A, Aqk 256             2128
    scan_forward     P⊙q, P⊙e, F⊙k 768; A, Aqk 256; v, w 512      o 256; R 256; states 512                  2584
    scan_backward    P⊙q, P⊙e, F⊙k 768; A, Aqk 256; dO 256        dz 256; their gradients 512               2072
    state_gradients  v, w, o, dO, R, dz 1536; states, dS 1024     d(P⊙q, P⊙e, F⊙k) 768; dA, dT 256; dv, dw 512
    chunk_gradients  q, k, g, b 1024; d(P⊙q, …), dA, dT 1024      dq, dk, dg, db 1024

plus small tensors (Π α over blocks of 8, 1 / |q|, 1 / |k|). The lower bound is 1792 for the forward pass (inputs and o)
and 3328 for the backward pass (inputs, dO, gradients). `run.py bench kernels --static` counts the sums from launches.

Saved for the backward pass: the decayed operands, A and Aqk (1 KB), which the scan needs written anyway and which would
cost 2128 to recompute; R and the states (768), which would cost another serial scan. V is split over programs to fill
the GPU, so the key side is read once per block of V; the programs of one head run at the same time and share it through
the L2 cache. Data handed from one part of a program to the next stays in the cache. Gradients take two kernels, since
one has products to pipeline, and the other needs all registers for the pairs inside blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from mixers.gdn2.kernels.gradients import CHUNK_GRADIENTS
from mixers.gdn2.kernels.intra import INTRA_CHUNK
from mixers.gdn2.kernels.launch import padded
from mixers.gdn2.kernels.scan import SCAN_BACKWARD, SCAN_FORWARD
from mixers.gdn2.kernels.state_gradients import STATE_GRADIENTS
from mixers.parts.common import first_order

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


@dataclass
class Saved:
    """Results of the forward pass that the backward pass reads.

    q_decayed, e_decayed, k_decayed: [NT, H, C, K], with NT chunks of C tokens. total: [NT, H, K]. inverse, aqk:
    [NT, H, C, C]. whole: [NT, H, C/8, K]. q_rstd, k_rstd: [NT, H, C], empty without `norm`. r: [NT, HV, C, V] and
    states: [NT, HV, K, V], empty without `keep`.
    """

    q_decayed: Tensor
    e_decayed: Tensor
    k_decayed: Tensor
    total: Tensor
    inverse: Tensor
    aqk: Tensor
    whole: Tensor
    q_rstd: Tensor
    k_rstd: Tensor
    r: Tensor
    states: Tensor

    @classmethod
    def empty(
        cls, q: Tensor, k: Tensor, v: Tensor, b: Tensor, w: Tensor, offsets: Sequence[int], norm: bool, size: int,
        keep: bool,
    ) -> Saved:  # fmt: skip
        """Allocate them for these inputs."""
        (*_, heads, key_dim), (*_, value_heads, value_dim) = q.shape, v.shape
        chunks = sum((stop - start + size - 1) // size for start, stop in zip(offsets, offsets[1:], strict=False))
        io = compute_dtype(q, k, v, b, w)

        def new(*shape: int, dtype: torch.dtype = io, needed: bool = True) -> Tensor:
            return torch.empty(shape if needed else 0, dtype=dtype, device=q.device)

        return cls(
            *(new(chunks, heads, size, key_dim) for _ in range(3)),
            new(chunks, heads, key_dim, dtype=torch.float32),
            *(new(chunks, heads, size, size) for _ in range(2)),
            new(chunks, heads, size // 8, key_dim, dtype=torch.float32),
            *(new(chunks, heads, size, dtype=torch.float32, needed=norm) for _ in range(2)),
            new(chunks, value_heads, size, value_dim, needed=keep),
            new(chunks, value_heads, key_dim, value_dim, needed=keep),
        )

    def tensors(self) -> list[Tensor]:
        """Return them in order."""
        return list(vars(self).values())


def _entering_state(q: Tensor, v: Tensor, offsets: Sequence[int]) -> Tensor:
    """Allocate a state of every sequence, [N, HV, K, V]."""
    return torch.empty(len(offsets) - 1, v.shape[2], q.shape[3], v.shape[3], dtype=torch.float32, device=q.device)


def _precision(io: torch.dtype) -> str:
    return "tf32x3" if io == torch.float32 else "tf32"


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None, dt_bias: Tensor | None,
    initial: Tensor | None, offsets: Sequence[int], scale: float, erase_range: float, norm: bool, size: int, keep: bool,
) -> list[Tensor]:  # fmt: skip
    """Launch the two forward kernels. Returns o, the final state, then the tensors of `Saved`.

    size: tokens per chunk. keep: whether a backward pass follows.
    """
    sequence_start, sequence_chunk, chunk_start, chunk_rows = _tables(tuple(offsets), size, q.device)
    o, final = torch.empty_like(v), _entering_state(q, v, offsets)
    out = Saved.empty(q, k, v, b, w, offsets, norm, size, keep)
    (chunks, heads, _, key_dim), (*_, value_heads, value_dim) = out.q_decayed.shape, v.shape
    io = out.q_decayed.dtype
    near = torch.empty(chunks, heads, size, 8, dtype=torch.float32, device=q.device)
    solved = torch.empty(chunks, heads, size, size, dtype=torch.float32, device=q.device)
    sizes = dict(H=heads, K=key_dim, C=size, ACTIVATE=A_log is not None, PRECISION=_precision(io))
    decayed = dict(
        q_decayed=out.q_decayed, e_decayed=out.e_decayed, k_decayed=out.k_decayed, total=out.total,
        inverse=out.inverse, aqk=out.aqk,
    )  # fmt: skip
    INTRA_CHUNK(
        lambda meta: (chunks * heads,),
        q=q, k=k, g=g, b=b, A_log=A_log, dt_bias=dt_bias, chunk_start=chunk_start, chunk_rows=chunk_rows, **decayed,
        q_rstd=out.q_rstd, k_rstd=out.k_rstd, whole=out.whole, near=near, solved=solved,
        scale=scale, erase_range=erase_range, NORM=norm, **sizes,
    )  # fmt: skip
    SCAN_FORWARD(
        lambda meta: ((len(offsets) - 1) * value_heads * triton.cdiv(value_dim, meta["BV"]),),
        v=v, w=w, **decayed, initial=initial, sequence_start=sequence_start, sequence_chunk=sequence_chunk,
        o=o, r=out.r, states=out.states, final=final, HV=value_heads, V=value_dim,
        KB=min(KEY_BLOCK[io], padded(key_dim)), HAS_INITIAL=initial is not None, KEEP=keep, **sizes,
    )  # fmt: skip
    return [o, final, *out.tensors()]


def run_backward(
    o: Tensor, d_o: Tensor, d_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor,
    A_log: Tensor | None, dt_bias: Tensor | None, kept: Sequence[Tensor], offsets: Sequence[int], scale: float,
    erase_range: float, norm: bool, size: int,
) -> list[Tensor]:  # fmt: skip
    """Launch the three backward kernels. kept: the tensors of `Saved`.

    Returns the gradients of q, k, v, g, b, w and the initial state, and with A_log those of A_log and dt_bias.
    """
    sequence_start, sequence_chunk, chunk_start, chunk_rows = _tables(tuple(offsets), size, q.device)
    saved = Saved(*kept)
    (chunks, heads, _, key_dim), (value_heads, value_dim) = saved.q_decayed.shape, v.shape[2:]
    io = saved.states.dtype
    sizes = dict(H=heads, HV=value_heads, K=key_dim, V=value_dim, C=size, PRECISION=_precision(io))
    dz, d_states = torch.empty_like(saved.r), torch.empty_like(saved.states)
    d_initial = _entering_state(q, v, offsets)
    SCAN_BACKWARD(
        lambda meta: ((len(offsets) - 1) * value_heads * triton.cdiv(value_dim, meta["BV"]),),
        do=d_o, q_decayed=saved.q_decayed, e_decayed=saved.e_decayed, k_decayed=saved.k_decayed, total=saved.total,
        inverse=saved.inverse, aqk=saved.aqk, d_final=d_final, sequence_start=sequence_start,
        sequence_chunk=sequence_chunk, dz=dz, d_states=d_states, d_initial=d_initial,
        KB=min(KEY_BLOCK[io], padded(key_dim)), HAS_FINAL=d_final is not None, **sizes,
    )  # fmt: skip
    dq, dk, dv, db, dw = (torch.empty_like(x, dtype=io) for x in (q, k, v, b, w))
    dg = torch.empty_like(g)
    d_aqk, d_t = torch.empty_like(saved.aqk), torch.empty_like(saved.aqk)
    key_block = min(KEY_BLOCK[io], padded(key_dim))
    parts = triton.cdiv(key_dim, key_block)
    radial = saved.q_rstd.new_empty(chunks, heads, parts, 2, size) if norm else None
    between = dict(
        **{f"d{name}_border": torch.empty_like(saved.q_decayed) for name in "qek"},
        d_total=torch.empty_like(saved.total), d_aqk=d_aqk, d_t=d_t, radial=radial,
    )  # fmt: skip
    tables = dict(chunk_start=chunk_start, chunk_rows=chunk_rows)
    flags = dict(NORM=norm, ACTIVATE=A_log is not None)
    STATE_GRADIENTS(
        lambda meta: (chunks * heads * parts,),
        v=v, w=w, o=o, do=d_o, r_saved=saved.r, dz=dz, states=saved.states, d_states=d_states, **tables, **between,
        dv=dv, dw=dw, KB=key_block, **flags, **sizes,
    )  # fmt: skip
    d_whole = saved.whole.new_empty(chunks, heads, size // 4, key_dim)
    d_log = d_bias = None
    if A_log is not None:
        d_log = torch.empty(chunks, heads, key_dim, dtype=torch.float32, device=q.device)
        d_bias = torch.empty_like(d_log)
    del sizes["HV"], sizes["V"]
    CHUNK_GRADIENTS(
        lambda meta: (chunks * heads * triton.cdiv(key_dim, meta["BK"]),),
        q=q, k=k, g=g, b=b, A_log=A_log, dt_bias=dt_bias, q_rstd=saved.q_rstd, k_rstd=saved.k_rstd,
        whole=saved.whole, **tables, **between, d_whole=d_whole, dq=dq, dk=dk, dg=dg, db=db, d_log=d_log, d_bias=d_bias,
        scale=scale, erase_range=erase_range, PARTS=parts, **flags, **sizes,
    )  # fmt: skip
    gradients = [d.to(x.dtype) for d, x in zip((dq, dk, dv, dg, db, dw), (q, k, v, g, b, w), strict=True)]
    if A_log is None:
        return [*gradients, d_initial]
    return [
        *gradients,
        d_initial,
        d_log.sum((0, 2)).to(A_log.dtype),
        d_bias.sum(0).flatten().to(dt_bias.dtype),
    ]


# torch.compile sees each pass as one operator and does not look inside, at launches that it cannot trace.
@torch.library.custom_op("mixerbench::gdn2_forward", mutates_args=())
def _forward_operator(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None, dt_bias: Tensor | None,
    initial: Tensor | None, offsets: Sequence[int], scale: float, erase_range: float, norm: bool, size: int, keep: bool,
) -> list[Tensor]:  # fmt: skip
    return run_forward(q, k, v, g, b, w, A_log, dt_bias, initial, offsets, scale, erase_range, norm, size, keep)


@_forward_operator.register_fake
def _(q, k, v, g, b, w, A_log, dt_bias, initial, offsets, scale, erase_range, norm, size, keep):
    saved = Saved.empty(q, k, v, b, w, offsets, norm, size, keep)
    return [torch.empty_like(v), _entering_state(q, v, offsets), *saved.tensors()]


@torch.library.custom_op("mixerbench::gdn2_backward", mutates_args=())
def _backward_operator(
    o: Tensor, d_o: Tensor, d_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor,
    A_log: Tensor | None, dt_bias: Tensor | None, kept: Sequence[Tensor], offsets: Sequence[int], scale: float,
    erase_range: float, norm: bool, size: int,
) -> list[Tensor]:  # fmt: skip
    return run_backward(
        o, d_o, d_final, q, k, v, g, b, w, A_log, dt_bias, kept, offsets, scale, erase_range, norm, size
    )  # fmt: skip


@_backward_operator.register_fake
def _(o, d_o, d_final, q, k, v, g, b, w, A_log, dt_bias, kept, offsets, scale, erase_range, norm, size):
    activated = [] if A_log is None else [A_log, dt_bias]
    d_initial = _entering_state(q, v, offsets)
    return [*(torch.empty_like(x) for x in (q, k, v, g, b, w)), d_initial, *(torch.empty_like(x) for x in activated)]


class ChunkedRule(torch.autograd.Function):
    """The chunked rule on packed tokens, with the gradient of every tensor input."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None,
        dt_bias: Tensor | None, initial: Tensor | None, offsets: tuple[int, ...], scale: float, erase_range: float,
        norm: bool, size: int, keep: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return (o, final state), like `chunked`. size: tokens per chunk; keep: save for the backward pass."""
        run = torch.ops.mixerbench.gdn2_forward if torch.compiler.is_compiling() else run_forward
        results = run(q, k, v, g, b, w, A_log, dt_bias, initial, offsets, scale, erase_range, norm, size, keep)
        ctx.save_for_backward(q, k, v, g, b, w, A_log, dt_bias, results[0], *results[2:])
        ctx.numbers, ctx.has_initial = (offsets, scale, erase_range, norm, size), initial is not None
        ctx.set_materialize_grads(False)
        return results[0], results[1]

    @staticmethod
    @first_order
    def backward(ctx: Any, d_o: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of `forward`, None for those without one."""
        *inputs, A_log, dt_bias, o = ctx.saved_tensors[:9]
        v = inputs[2]
        d_o = torch.zeros_like(v) if d_o is None else d_o.contiguous()
        d_final = None if d_final is None else d_final.contiguous()
        kept = list(ctx.saved_tensors[9:])
        run = torch.ops.mixerbench.gdn2_backward if torch.compiler.is_compiling() else run_backward
        *gradients, d_initial = (found := run(o, d_o, d_final, *inputs, A_log, dt_bias, kept, *ctx.numbers))[:7]
        d_log, d_bias = (None, None) if A_log is None else found[7:]
        return *gradients, d_log, d_bias, d_initial if ctx.has_initial else None, *[None] * 6


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
