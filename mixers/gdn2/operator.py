"""The public operator `gated_delta_rule_2`: its contract, and the choice of the implementation."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.backends import KERNEL_DTYPES, interpreted
from mixers.gdn2 import reference
from mixers.interface import check_cu_seqlens
from mixers.parts.common import accumulator_dtype, is_power_of_two, l2_normalise, require
from mixers.parts.delta_rule import CHUNK, without_autocast

Backend = Literal["auto", "recurrent", "chunked", "triton"]
KERNEL_CHUNK = 64  # tokens per chunk of the kernels where the caller leaves it open
LARGEST_HEAD = 256  # limit of the kernels: a state of 256 by 16 fits a block's registers
# Up to this many tokens per sequence, and without a gradient, one pass with the state on chip moves fewer bytes than
# chunks, which write and read their operands.
SHORT = 16


def check(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor) -> tuple[int, int, int, int, int, int]:
    """Return B, T, H, K, HV, V of the inputs. Raises ValueError naming the argument that breaks the contract."""
    require(q.dim() == 4 and min(q.shape) > 0, f"q: expected a non-empty [B, T, H, K], got {list(q.shape)}")
    batch, steps, heads, key_dim = q.shape
    require(k.shape == q.shape, f"k: expected {list(q.shape)} like q, got {list(k.shape)}")
    for name, tensor in (("g", g), ("b", b)):
        require(
            tensor.shape in (q.shape, (*q.shape[:3], 1)),
            f"{name}: expected {list(q.shape)} like q, or 1 as its last size, got {list(tensor.shape)}",
        )
    require(
        v.dim() == 4 and v.shape[:2] == q.shape[:2] and v.shape[2] > 0 and v.shape[2] % heads == 0 and v.shape[3] > 0,
        f"v: expected [{batch}, {steps}, HV, V] with HV a multiple of {heads}, got {list(v.shape)}",
    )
    require(
        w.shape in (v.shape, (*v.shape[:3], 1)),
        f"w: expected {list(v.shape)} like v, or 1 as its last size, got {list(w.shape)}",
    )
    for name, tensor in (("q", q), ("k", k), ("v", v), ("g", g), ("b", b), ("w", w)):
        require(tensor.is_floating_point(), f"{name}: expected a floating dtype, got {tensor.dtype}")
        require(tensor.device == q.device, f"{name}: on {tensor.device}, but q is on {q.device}")
    return batch, steps, heads, key_dim, v.shape[2], v.shape[3]


def check_kernels(tensors: dict[str, Tensor], chunk_size: int) -> None:
    """Raise ValueError naming the argument that the Triton kernels do not serve, before any launch."""
    device = tensors["q"].device.type
    if device == "cpu":
        require(
            interpreted(),
            "backend: 'triton' needs a GPU, and q is on the CPU; use 'chunked', or set TRITON_INTERPRET=1 before "
            "Python starts to run the kernels slowly under Triton's interpreter",
        )
    elif device != "meta":  # static checks record launches on the meta device
        require(device == "cuda", f"backend: 'triton' serves CUDA devices, and q is on {device}; use 'chunked'")
    reason = unserved(tensors["q"].shape[3], tensors["v"].shape[3], chunk_size)
    require(reason is None, f"{reason}; use 'chunked'")
    for name, tensor in tensors.items():
        require(
            tensor.dtype in KERNEL_DTYPES,
            f"{name}: the kernels serve bfloat16, float16 and float32, got {tensor.dtype}; use 'chunked'",
        )


def unserved(key_dim: int, value_dim: int, chunk_size: int) -> str | None:
    """Return why the kernels do not serve these sizes, or None if they do."""
    for name, axis, size in (("q", "K", key_dim), ("v", "V", value_dim)):
        if size > LARGEST_HEAD:
            return f"{name}: the kernels serve {axis} up to {LARGEST_HEAD}, got {size}"
    if chunk_size not in (16, 32, 64):
        return f"chunk_size: the kernels serve 16, 32 and 64, got {chunk_size}"
    return None


def refuse_transforms() -> None:
    """Raise RuntimeError inside vmap, grad and the other transforms of torch.func."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "gated_delta_rule_2: torch.func's vmap, grad and the like cannot look into kernels and gradients written "
            "by hand; call it outside of them, or with backend='recurrent' and q and k normalised before"
        )


def resolve(backend: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """Resolve `auto`: the kernels on a GPU, chunked torch elsewhere and for float64. Other names stay."""
    if backend != "auto":
        return backend
    return "triton" if device.type == "cuda" and dtype != torch.float64 else "chunked"


@without_autocast
def gated_delta_rule_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    update_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    erase_range: float = 1.0,
    chunk_size: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Gated Delta Rule-2 (arXiv 2605.22791, section 3); the equations are in mixers.gdn2.reference.

    q, k, g, b: [B, T, H, K]; v, w: [B, T, HV, V], HV a multiple of H. g ≤ 0 is the log-decay, b the erase gate on the
    key axis, w the write gate on the value axis; the last size of each may be 1, one value for all channels of a head.
    scale defaults to K^-1/2. cu_seqlens: [N + 1] offsets of N sequences packed along T, with B = 1; a sequence may be
    empty, and its final state is its initial one. initial_state: [N, HV, K, V], where N = B without cu_seqlens; zeros
    if None. use_qk_l2norm: L2-normalise q and k per head first.

    With A_log [H] and dt_bias [H·K], g, b and w are projections before their activation: the log-decay is
    -exp(A_log) · softplus(g + dt_bias), the erase gate is erase_range · σ(b), and the write gate is σ(w).

    backend: `recurrent` or `chunked` for torch, `triton` for the kernels (bf16, fp16 or fp32; K, V ≤ 256; chunk_size
    16, 32 or 64), `auto` for the choice of `resolve`. The kernels multiply in bf16 or fp16 if q, k, v, b and w all have
    that dtype, and in fp32 otherwise; state, decays and accumulators are fp32. update_state: write the final state over
    initial_state (fp32, contiguous) and return it; only without gradients. chunk_size: None for 64 in the kernels and
    16 in torch.

    Returns (o [B, T, HV, V] in v's dtype, final state [N, HV, K, V], or None without output_final_state). The state is
    fp32, or fp64 for fp64 inputs. Every tensor input has a gradient; second derivatives and torch.func transforms need
    backend `recurrent` without use_qk_l2norm. Raises ValueError naming the argument, its value and the expectation, and
    RuntimeError for a derivative that there is not.
    """
    batch, steps, heads, key_dim, value_heads, value_dim = check(q, k, v, g, b, w)
    require(chunk_size is None or is_power_of_two(chunk_size), f"chunk_size: expected a power of two, got {chunk_size}")
    require(
        backend in ("auto", "recurrent", "chunked", "triton"),
        f"backend: expected auto, recurrent, chunked or triton, got {backend!r}",
    )
    scale = key_dim**-0.5 if scale is None else scale
    require(scale != 0 and math.isfinite(scale), f"scale: expected a finite number other than 0, got {scale}")
    require((A_log is None) == (dt_bias is None), "A_log, dt_bias: give both, with projections, or neither")
    require(
        A_log is not None or erase_range == 1,
        f"erase_range: {erase_range} without A_log would be ignored; give A_log and dt_bias, or scale b yourself",
    )
    if A_log is not None:
        require(A_log.shape == (heads,), f"A_log: expected [{heads}], got {list(A_log.shape)}")
        require(
            dt_bias.shape == (heads * key_dim,), f"dt_bias: expected [{heads * key_dim}], got {list(dt_bias.shape)}"
        )
    offsets = tuple(range(0, batch * steps + 1, steps))
    if cu_seqlens is not None:
        offsets = tuple(check_cu_seqlens(q, cu_seqlens, empty=True))
    shape = (len(offsets) - 1, value_heads, key_dim, value_dim)
    if initial_state is not None:
        require(initial_state.shape == shape, f"initial_state: expected {list(shape)}, got {list(initial_state.shape)}")
        require(initial_state.device == q.device, f"initial_state: on {initial_state.device}, but q is on {q.device}")
    if update_state:
        require(
            initial_state is not None and initial_state.dtype == torch.float32 and initial_state.is_contiguous(),
            "update_state: needs a contiguous fp32 initial_state to write to; pass one, or leave update_state out",
        )
        tensors = [x for x in (q, k, v, g, b, w, A_log, dt_bias, initial_state) if x is not None]
        require(
            not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors),
            "update_state: an input requires a gradient, which needs the state that would be overwritten; "
            "use torch.no_grad()",
        )
    dtype = accumulator_dtype(q, k, v, g, b, w)
    backend = resolve(backend, q.device, dtype)
    if (backend != "recurrent" or use_qk_l2norm) and not torch.compiler.is_compiling():
        refuse_transforms()
    chunk_size = chunk_size or (KERNEL_CHUNK if backend == "triton" else CHUNK)
    if backend == "triton":
        check_kernels({"q": q, "k": k, "v": v, "g": g, "b": b, "w": w}, chunk_size)
        o, state = _by_kernels(
            (q, k, v, g, b, w), (A_log, dt_bias), initial_state, offsets, scale, erase_range, use_qk_l2norm, chunk_size,
            update_state,
        )  # fmt: skip
        return o, state if output_final_state else None

    if initial_state is None:
        initial_state = torch.zeros(shape, dtype=dtype, device=q.device)
    if use_qk_l2norm:
        q, k = l2_normalise(q), l2_normalise(k)
    if A_log is not None:
        step = F.softplus(g.to(dtype) + dt_bias.to(dtype).view(heads, key_dim))
        g = -A_log.to(dtype).exp()[:, None] * step
        b, w = erase_range * b.sigmoid(), w.sigmoid()
    run = partial(
        reference.recurrent if backend == "recurrent" else partial(reference.chunked, chunk_size=chunk_size),
        scale=scale,
    )
    entering = initial_state.to(dtype)
    if cu_seqlens is None:
        o, state = run(q, k, v, g, b, w, state=entering)
    else:
        outputs, states = [], []
        for i, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False)):
            if start == stop:
                states.append(entering[i : i + 1])
                continue
            piece = (x[:, start:stop] for x in (q, k, v, g, b, w))
            part, left = run(*piece, state=entering[i : i + 1])
            outputs.append(part)
            states.append(left)
        o, state = torch.cat(outputs, 1), torch.cat(states)
    if update_state:
        state = initial_state.copy_(state)
    return o, state if output_final_state else None


def _by_kernels(
    inputs: tuple[Tensor, ...],
    activation: tuple[Tensor | None, Tensor | None],
    initial: Tensor | None,
    offsets: tuple[int, ...],
    scale: float,
    erase_range: float,
    norm: bool,
    chunk_size: int,
    update_state: bool,
) -> tuple[Tensor, Tensor]:
    """Run the kernels: in chunks if a gradient is needed or a sequence is long, else token by token."""
    from mixers.gdn2.chunk import chunked
    from mixers.gdn2.fused_recurrent import recurrent

    q, k, v, g, b, w = inputs
    inputs = (q, k, v, g.expand_as(q), b.expand_as(q), w.expand_as(v))  # the kernels read a value per channel
    tensors = [x for x in (*inputs, *activation, initial) if x is not None]
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    longest = max(stop - start for start, stop in zip(offsets, offsets[1:], strict=False))
    if not gradient and longest <= SHORT:
        return recurrent(*inputs, *activation, initial, offsets, scale, erase_range, norm, update_state)
    o, state = chunked(*inputs, *activation, initial, offsets, scale, erase_range, norm, chunk_size)
    return o, initial.copy_(state) if update_state else state
