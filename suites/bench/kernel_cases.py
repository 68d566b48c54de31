"""Cases of the kernel benchmarks: operators, inputs, floors of bytes and FLOPs, errors against float64.

Gated Delta Rule-2, KDA and Gated DeltaNet are called by one set of named inputs, so that every implementation of an
operator gets the same numbers. The reference of each operator is its recurrence in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule

FORWARD, BOTH, DECODE = "forward", "forward+backward", "decode"
AS_LAYER = "layer's call"  # forward and backward, with normalisation and activations, from raw projections in bf16
CHUNK = 64  # tokens per chunk, in every implementation and in the FLOP count
CHECKED_STEPS = 256  # four chunks: the float64 recurrence keeps a state for each of its steps


@dataclass(frozen=True)
class Case:
    """Sizes of one call: q, k [batch, steps, heads, key_dim], v [batch, steps, value_heads, value_dim]."""

    steps: int
    batch: int
    heads: int = 16
    value_heads: int = 16
    key_dim: int = 128
    value_dim: int = 128

    def __str__(self) -> str:
        heads = f"H={self.heads}" + (f" HV={self.value_heads}" if self.value_heads != self.heads else "")
        return f"T={self.steps} B={self.batch} {heads} K={self.key_dim} V={self.value_dim}"


LENGTHS = tuple(Case(t, 32768 // t) for t in (2048, 4096, 8192, 16384, 32768))
DECODING = tuple(Case(1, b) for b in (1, 8, 64, 256))
HEAD_SHAPES = (Case(4096, 8, 16, 16, 64, 64), Case(4096, 8, 8, 8, 128, 256), Case(4096, 8, 8, 8, 256, 256))


def plan() -> list[tuple[Case, str]]:
    """Return the measured cases and directions in order.

    Other head shapes come last, because each makes every kernel compile and tune again.
    """
    units = [(case, direction) for case in LENGTHS for direction in (FORWARD, BOTH)]
    units += [(case, AS_LAYER) for case in (LENGTHS[2], LENGTHS[-1])]
    units += [(case, DECODE) for case in DECODING]
    return units + [(case, direction) for case in HEAD_SHAPES for direction in (FORWARD, BOTH)]


@dataclass(frozen=True)
class Operator:
    """An operator: the input that each argument gets, and our recurrence, which is the reference in float64."""

    arguments: dict[str, str]
    recurrence: Callable[..., Any]


OPERATORS: dict[str, Operator] = {
    "gdn2": Operator(
        {name: name for name in ("q", "k", "v", "g", "b", "w")},
        partial(gated_delta_rule_2, backend="recurrent"),
    ),
    "kda": Operator(
        {"q": "q", "k": "k", "v": "v", "g": "value_g", "beta": "beta"},
        partial(kimi_delta_rule, backend="recurrent"),
    ),
    "gated_deltanet": Operator(
        {"q": "q", "k": "k", "v": "v", "g": "head_g", "beta": "beta"},
        partial(gated_delta_rule, backend="recurrent"),
    ),
}


LAYER_ARGUMENTS = {name: f"raw_{name}" for name in ("q", "k", "v", "g", "b", "w")} | {
    "A_log": "A_log",
    "dt_bias": "bias",
}
"""The inputs of Gated Delta Rule-2 as its layer calls it."""


def inputs_of(operator: str, direction: str) -> dict[str, str]:
    """Return the input that each argument of an operator gets in a direction."""
    return LAYER_ARGUMENTS if direction == AS_LAYER else OPERATORS[operator].arguments


def our_layer_call(**arguments: Any) -> Any:
    """Call our operator as the layer does: it normalises and activates inside."""
    return gated_delta_rule_2(**arguments, use_qk_l2norm=True)


def fla_layer_call(*, b: Tensor, w: Tensor, **arguments: Any) -> Any:
    """Call fla's operator on the same projections. It activates the decay inside, and takes the gates activated."""
    from fla.ops.gdn2 import chunk_gdn2

    return chunk_gdn2(**arguments, b=b.sigmoid(), w=w.sigmoid(), use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True)


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator. form: its name in tables. module, function: the callable's location."""

    operator: str
    form: str
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """Return a callable that takes the operator's arguments; an error from the import passes through."""
        function = getattr(import_module(self.module), self.function)
        return partial(function, backend="triton", chunk_size=CHUNK) if self.form == OURS else function

    def __str__(self) -> str:
        return f"{self.operator} {self.form}"


OURS = "mixerbench triton"
_OUR_OPERATOR = Implementation("gdn2", OURS, "mixers.gdn2", "gated_delta_rule_2")
CHUNKED = (
    _OUR_OPERATOR,
    Implementation("gdn2", "fla chunk", "fla.ops.gdn2", "chunk_gdn2"),
    Implementation("kda", "fla chunk", "fla.ops.kda", "chunk_kda"),
    Implementation("gated_deltanet", "fla chunk", "fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
)
RECURRENT = (
    _OUR_OPERATOR,
    Implementation("gdn2", "fla recurrent", "fla.ops.gdn2", "fused_recurrent_gdn2"),
    Implementation("kda", "fla recurrent", "fla.ops.kda", "fused_recurrent_kda"),
    Implementation("gated_deltanet", "fla recurrent", "fla.ops.gated_delta_rule", "fused_recurrent_gated_delta_rule"),
)


LAYER = (
    Implementation("gdn2", OURS, "suites.bench.kernel_cases", "our_layer_call"),
    Implementation("gdn2", "fla chunk", "suites.bench.kernel_cases", "fla_layer_call"),
)


def implementations(direction: str) -> tuple[Implementation, ...]:
    """Return the implementations compared in a direction: recurrent ones for decoding, else chunked ones."""
    return {DECODE: RECURRENT, AS_LAYER: LAYER}.get(direction, CHUNKED)


def input_shapes(case: Case) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return the shape and the bytes per number of every input: log-decays in fp32, the rest in bf16.

    raw_…, A_log, bias: projections before normalisation and activation, and the parameters of the decay, in fp32.
    """
    tokens = (case.batch, case.steps)
    key, value = (*tokens, case.heads, case.key_dim), (*tokens, case.value_heads, case.value_dim)
    head = (*tokens, case.value_heads)
    decays = {"g": (key, 4), "value_g": ((*head, case.key_dim), 4), "head_g": (head, 4)}
    named = {"q": (key, 2), "k": (key, 2), "b": (key, 2), "v": (value, 2), "w": (value, 2), "beta": (head, 2)}
    raw = {f"raw_{name}": (value if name in "vw" else key, 2) for name in ("q", "k", "v", "g", "b", "w")}
    return decays | named | raw | {"A_log": ((case.heads,), 4), "bias": ((case.heads * case.key_dim,), 4)}


def byte_floor(operator: str, case: Case, direction: str) -> int:
    """Return the bytes that every implementation must move.

    forward: read every input once, write o once. forward+backward, layer's call: also read the gradient of o and write
    those of the inputs. decode: read and write the fp32 state; everything else is hundreds of times smaller.
    """
    if direction == DECODE:
        return 2 * 4 * case.batch * case.value_heads * case.key_dim * case.value_dim
    shapes = input_shapes(case)
    read = sum(math.prod(shapes[name][0]) * shapes[name][1] for name in inputs_of(operator, direction).values())
    written = 2 * math.prod(shapes["v"][0])
    return read + written if direction == FORWARD else 2 * (read + written)


def chunk_flops(case: Case, direction: str) -> float:
    """Return the FLOPs of the chunk form with C = 64, two per multiply-add; they are the same for the three operators.

    Per chunk and key head: T and Aqk 4C²K, the triangular inverse C³/3, Y 2C²K. Per chunk and value head: U 2C²V,
    Aqk R 2C²V, and 2CKV each for Y S, q S and kᵀR. The backward pass has two products for each of these; recomputation
    is not counted. decode, per number of the state: decay 1, erase read 2, rank-one write 2, output read 2.
    """
    tokens, c, k, v = case.steps * case.batch, CHUNK, case.key_dim, case.value_dim
    if direction == DECODE:
        return 7.0 * tokens * case.value_heads * k * v
    forward = tokens * (case.heads * (6 * c * k + c * c / 3) + case.value_heads * (4 * c * v + 6 * k * v))
    return forward if direction == FORWARD else 3 * forward


def draw_inputs(case: Case, device: torch.device | str, seed: int) -> dict[str, Tensor]:
    """Return random inputs by name, with `do` shaped like o and `state` [B, HV, K, V] in fp32.

    q and k have norm 1, and gates are sigmoids of normal values; projections are normal values. Decays are those of a
    new layer: rates of 1 to 16 per head times steps drawn log-uniformly from 0.001 to 0.1.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: Iterable[int]) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def decay(shape: tuple[int, ...]) -> Tensor:
        rate = (1 + 15 * uniform(shape[2])).view(-1, *[1] * (len(shape) - 3))
        return -rate * (math.log(1e-3) + math.log(100) * uniform(*shape)).exp()

    drawn: dict[str, Tensor] = {}
    for name, (shape, _) in input_shapes(case).items():
        if name == "A_log":
            drawn[name] = (1 + 15 * uniform(*shape)).log()
        elif name == "bias":
            drawn[name] = (math.log(1e-3) + math.log(100) * uniform(*shape)).exp().expm1().log()
        elif name.startswith("raw"):
            drawn[name] = normal(shape).bfloat16()
        elif name.endswith("g"):
            drawn[name] = decay(shape)
        elif name in ("q", "k"):
            drawn[name] = F.normalize(normal(shape), dim=-1).bfloat16()
        else:
            drawn[name] = (normal(shape) if name == "v" else normal(shape).sigmoid()).bfloat16()
    drawn["do"] = normal(input_shapes(case)["v"][0]).bfloat16()
    drawn["state"] = normal((case.batch, case.value_heads, case.key_dim, case.value_dim))
    return drawn


def run_operator(
    call: Callable[..., Any], operator: str, drawn: dict[str, Tensor], direction: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Run the operator once and return [o], [o, gradients of the inputs], or [o, final state], by direction.

    forward is the forward pass of training: inputs require gradients. layer's call: gradients too. dtype: the inputs
    are first converted to it; None leaves them unchanged.
    """
    used = {argument: drawn[name] for argument, name in inputs_of(operator, direction).items()}
    if dtype is not None:
        used = {name: x.to(dtype) for name, x in used.items()}
        drawn = {name: x.to(dtype) for name, x in drawn.items() if name in ("do", "state")}
    if direction == DECODE:
        with torch.no_grad():
            o, state = call(**used, initial_state=drawn["state"], **_final_state(call))
        return [o, state]
    leaves = {name: x.detach().requires_grad_() for name, x in used.items()}
    o = call(**leaves)[0]
    if direction == FORWARD:
        return [o.detach()]
    return [o.detach(), *torch.autograd.grad(o, list(leaves.values()), drawn["do"])]


def _final_state(call: Callable[..., Any]) -> dict[str, bool]:
    """Return the option for the final state; our KDA and Gated DeltaNet always return it and have no such option."""
    function = call.func if isinstance(call, partial) else call
    return {} if function in (kimi_delta_rule, gated_delta_rule) else {"output_final_state": True}


@lru_cache
def reference_results(operator: str, case: Case, direction: str, device: str) -> list[Tensor]:
    """Return the results of the float64 recurrence on the rounded inputs of `case`."""
    drawn = draw_inputs(case, device, seed=0)
    exact = partial(our_layer_call, backend="recurrent") if direction == AS_LAYER else OPERATORS[operator].recurrence
    return run_operator(exact, operator, drawn, direction, torch.float64)


def relative_errors(results: Iterable[Tensor], exact: Iterable[Tensor]) -> list[float]:
    """Return ‖result − exact‖ / ‖exact‖ of each result; surplus entries of `exact` are ignored."""
    return [((a.double() - t).norm() / t.norm()).item() for a, t in zip(results, exact, strict=False)]


def case_errors(
    implementation: Implementation, call: Callable[..., Any], case: Case, direction: str, device: str
) -> dict[str, float | None]:
    """Return relative errors on one short sequence (decode: one step), as fields of a row.

    `output_error` is that of o, `gradient_error` the worst of the inputs' gradients, `state_error` that of the final
    state; None if the direction does not compute it. Raises ArithmeticError if a result is not finite.
    """
    checked = Case(min(case.steps, CHECKED_STEPS), 1, case.heads, case.value_heads, case.key_dim, case.value_dim)
    # Both directions of training share the forward pass, so its reference is computed once for both.
    exact = reference_results(implementation.operator, checked, BOTH if direction == FORWARD else direction, device)
    drawn = draw_inputs(checked, device, seed=0)
    errors = relative_errors(run_operator(call, implementation.operator, drawn, direction), exact)
    if not all(map(math.isfinite, errors)):
        raise ArithmeticError(f"a result is not finite at {checked}")
    return {
        "output_error": errors[0],
        "gradient_error": max(errors[1:]) if direction in (BOTH, AS_LAYER) else None,
        "state_error": errors[1] if direction == DECODE else None,
    }
