"""The chunked torch forms beside flash-linear-attention's naive chunk operators: same inputs, time and error.

Each is timed forward and backward on fresh inputs of the same shape, first and second in turn, since what runs first
meets colder caches; each at the chunk size that suits it (fla: its default). Errors are relative in norm against
the float64 recurrence, of the output and of the worst gradient. No ratio is given where a result is wrong.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule

STEPS, HEADS, HEAD_DIM = 512, 4, 64
OURS, FLA = "mixerbench chunked", "fla naive chunk"
CHUNK_SIZE = {OURS: 32, FLA: 64}  # passed as `chunk_size` to either; 64 is the default of fla's naive operators
WRONG = 1e-3  # a relative error in norm beyond which fp32 rounding is no excuse

Operator = Callable[..., Tensor]


def _cases() -> dict[str, tuple[tuple[str, ...], Operator, Operator, Operator]]:
    """Per operator: its inputs, our recurrence, our chunked form, fla's chunked form."""
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    from fla.ops.gdn2.naive import naive_chunk_gdn2
    from fla.ops.kda.naive import naive_chunk_kda

    return {
        "gdn2": (
            ("q", "k", "v", "g", "b", "w"),
            lambda *x: gated_delta_rule_2(*x, backend="recurrent")[0],
            lambda *x: gated_delta_rule_2(*x, chunk_size=CHUNK_SIZE[OURS])[0],
            lambda *x: naive_chunk_gdn2(*x, chunk_size=CHUNK_SIZE[FLA])[0],
        ),
        "kda": (
            ("q", "k", "v", "g", "beta"),
            lambda *x: kimi_delta_rule(*x, backend="recurrent")[0],
            lambda *x: kimi_delta_rule(*x, chunk_size=CHUNK_SIZE[OURS])[0],
            lambda *x: naive_chunk_kda(*x, chunk_size=CHUNK_SIZE[FLA])[0],
        ),
        "gated_deltanet": (
            ("q", "k", "v", "head_g", "beta"),
            lambda *x: gated_delta_rule(*x, backend="recurrent")[0],
            lambda *x: gated_delta_rule(*x, chunk_size=CHUNK_SIZE[OURS])[0],
            lambda *x: naive_chunk_gated_delta_rule(*x, chunk_size=CHUNK_SIZE[FLA])[0],
        ),
    }


def inputs(seed: int) -> dict[str, Tensor]:
    """One set of inputs in float64, as a trained layer would give them: B = 1, T = 512, 4 heads of 64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (1, STEPS, HEADS, HEAD_DIM)
    g = -draw(*shape).abs()
    return {
        "q": F.normalize(draw(*shape), dim=-1),
        "k": F.normalize(draw(*shape), dim=-1),
        "v": draw(*shape),
        "g": g,
        "b": draw(*shape).sigmoid(),
        "w": draw(*shape).sigmoid(),
        "head_g": g[..., 0],
        "beta": draw(*shape[:-1]).sigmoid(),
        "do": draw(*shape),
    }


def evaluate(operator: Operator, names: tuple[str, ...], drawn: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients."""
    leaves = [drawn[name].to(dtype, copy=True).requires_grad_() for name in names]
    o = operator(*leaves)
    o.backward(drawn["do"].to(dtype))
    return [o.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def seconds(operator: Operator, names: tuple[str, ...], drawn: dict[str, Tensor]) -> tuple[float, float]:
    """Wall time of one forward and one backward pass in fp32."""
    leaves = [drawn[name].to(torch.float32, copy=True).requires_grad_() for name in names]
    grad = drawn["do"].to(torch.float32)
    start = time.perf_counter()
    o = operator(*leaves)
    middle = time.perf_counter()
    o.backward(grad)
    return middle - start, time.perf_counter() - middle


def run(repeats: int, threads: int) -> list[dict[str, Any]]:
    """A row per operator and implementation: median milliseconds forward, backward and of both, with the 20th and 80th
    percentile of both, relative errors, and the setting they hold for. The implementations take turns, so that neither
    has the quieter machine.
    """
    if repeats < 3:
        raise ValueError(f"--repeats: {repeats} gives no spread; use at least 3")
    if threads < 1:
        raise ValueError(f"--threads: {threads} does no work; use at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    try:
        for name, (arguments, exact, ours, theirs) in _cases().items():
            forms = {OURS: ours, FLA: theirs}
            truth = evaluate(exact, arguments, inputs(0), torch.float64)
            errors = {
                form: [
                    ((a.double() - t).norm() / t.norm()).item()
                    for a, t in zip(evaluate(f, arguments, inputs(0), torch.float32), truth, strict=True)
                ]
                for form, f in forms.items()
            }
            for f in forms.values():
                seconds(f, arguments, inputs(1))
            times: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
            for repeat in range(repeats):
                drawn = inputs(repeat + 2)
                for form, f in list(forms.items())[:: -1 if repeat % 2 else 1]:
                    times[form].append(seconds(f, arguments, drawn))
            for form in forms:
                both = sorted(1e3 * (a + b) for a, b in times[form])
                low, *_, high = statistics.quantiles(both, n=5)
                rows.append(
                    {
                        "operator": name,
                        "form": form,
                        "chunk_size": CHUNK_SIZE[form],
                        "device": "cpu",
                        "threads": threads,
                        "repeats": repeats,
                        "torch": torch.__version__,
                        "forward_ms": 1e3 * statistics.median(a for a, _ in times[form]),
                        "backward_ms": 1e3 * statistics.median(b for _, b in times[form]),
                        "total_ms": statistics.median(both),
                        "total_ms_p20": low,
                        "total_ms_p80": high,
                        "output_error": errors[form][0],
                        "gradient_error": max(errors[form][1:]),
                    }
                )
    finally:
        torch.set_num_threads(before)
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """The rows as text, with how many times as fast ours is where both are right."""
    first = rows[0]
    lines = [
        f"B=1 T={STEPS} H={HEADS} K=V={HEAD_DIM} fp32, {first['device']}, threads={first['threads']}, "
        f"torch {first['torch']}, repeats={first['repeats']}; ms: medians, and of the total 20th and 80th percentile",
        f"{'operator':16}{'form':20}{'chunk_size':>10}{'forward':>9}{'backward':>10}{'total':>9}{'p20–p80':>16}"
        f"{'o error':>10}{'grad error':>12}  speed",
    ]
    slowest = {row["operator"]: row["total_ms"] for row in rows if row["form"] == FLA}
    wrong = {r["operator"] for r in rows if max(r["output_error"], r["gradient_error"]) > WRONG}
    for r in rows:
        ratio = "disagree" if r["operator"] in wrong else f"{slowest[r['operator']] / r['total_ms']:.1f}×"
        spread = f"{r['total_ms_p20']:.1f}–{r['total_ms_p80']:.1f}"
        lines.append(
            f"{r['operator']:16}{r['form']:20}{r['chunk_size']:10}{r['forward_ms']:9.2f}{r['backward_ms']:10.2f}"
            f"{r['total_ms']:9.2f}{spread:>16}{r['output_error']:10.1e}{r['gradient_error']:12.1e}  {ratio}"
        )
    return "\n".join(lines)
