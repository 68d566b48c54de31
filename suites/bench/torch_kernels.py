"""Our chunked torch forms against flash-linear-attention's naive chunk operators on a CPU: time and error.

Compared: both forms of Gated Delta Rule-2, KDA and Gated DeltaNet, each at the chunk size that suits it (fla: its
default). On: fresh random inputs per repetition, B = 1, T = 512, 4 heads of 64, fp32, forward and backward. How often:
`repeats` times per form, in turns, after one untimed call. Spread: the 20th and 80th percentile of the total time.

Errors are relative in norm against the float64 recurrence, of the output and of the worst gradient. No ratio is given
where a result is wrong.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule
from suites.bench.kernel_cases import BOTH, OPERATORS, relative_errors, run_operator
from suites.shared.timing import in_turns, median_p20_p80

Row = dict[str, Any]

STEPS, HEADS, HEAD_DIM = 512, 4, 64
OURS, FLA = "mixerbench chunked", "fla naive chunk"
CHUNK_SIZE = {OURS: 32, FLA: 64}  # passed as `chunk_size` to either; 64 is the default of fla's naive operators
WRONG = 1e-3  # a relative error in norm that fp32 rounding does not explain


def run(repeats: int, threads: int) -> list[Row]:
    """Return one row per operator and form.

    A row has the median milliseconds of forward, backward and both, the 20th and 80th percentile of both, relative
    errors, and the settings that they hold for. Raises ValueError naming the option if `repeats` is below 3 or
    `threads` below 1. The number of CPU threads is restored afterwards.
    """
    if repeats < 3:
        raise ValueError(f"--repeats: {repeats} gives no spread; use at least 3")
    if threads < 1:
        raise ValueError(f"--threads: {threads} does no work; use at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    try:
        for operator, forms in _forms().items():
            drawn = draw_inputs(0)
            exact = run_operator(OPERATORS[operator].recurrence, operator, drawn, BOTH, torch.float64)
            errors = {
                form: relative_errors(run_operator(call, operator, drawn, BOTH, torch.float32), exact)
                for form, call in forms.items()
            }
            for call in forms.values():
                time_passes(call, operator, draw_inputs(1))
            times: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
            for repeat in range(repeats):
                drawn = draw_inputs(repeat + 2)
                for form in in_turns(forms, repeat):
                    times[form].append(time_passes(forms[form], operator, drawn))
            for form in forms:
                median, low, high = median_p20_p80([1e3 * (a + b) for a, b in times[form]])
                rows.append(
                    {
                        "operator": operator,
                        "form": form,
                        "chunk_size": CHUNK_SIZE[form],
                        "device": "cpu",
                        "threads": threads,
                        "repeats": repeats,
                        "torch": torch.__version__,
                        "forward_ms": 1e3 * statistics.median(a for a, _ in times[form]),
                        "backward_ms": 1e3 * statistics.median(b for _, b in times[form]),
                        "total_ms": median,
                        "total_ms_p20": low,
                        "total_ms_p80": high,
                        "output_error": errors[form][0],
                        "gradient_error": max(errors[form][1:]),
                    }
                )
    finally:
        torch.set_num_threads(before)
    return rows


def _forms() -> dict[str, dict[str, Callable[..., Any]]]:
    """Return our chunked form and fla's of every operator, by name."""
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    from fla.ops.gdn2.naive import naive_chunk_gdn2
    from fla.ops.kda.naive import naive_chunk_kda

    pairs = {
        "gdn2": (gated_delta_rule_2, naive_chunk_gdn2),
        "kda": (kimi_delta_rule, naive_chunk_kda),
        "gated_deltanet": (gated_delta_rule, naive_chunk_gated_delta_rule),
    }
    return {
        operator: {
            OURS: partial(ours, chunk_size=CHUNK_SIZE[OURS], backend="chunked"),
            FLA: partial(theirs, chunk_size=CHUNK_SIZE[FLA]),
        }
        for operator, (ours, theirs) in pairs.items()
    }


def draw_inputs(seed: int) -> dict[str, Tensor]:
    """Return random inputs by name in float64, as a trained layer produces them: B = 1, T = 512, 4 heads of 64."""
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
        "value_g": g,
        "head_g": g[..., 0],
        "beta": draw(*shape[:-1]).sigmoid(),
        "do": draw(*shape),
    }


def time_passes(call: Callable[..., Any], operator: str, drawn: dict[str, Tensor]) -> tuple[float, float]:
    """Return the seconds of one forward and one backward pass in fp32, on inputs of their own."""
    arguments = OPERATORS[operator].arguments
    leaves = {key: drawn[name].to(torch.float32, copy=True).requires_grad_() for key, name in arguments.items()}
    gradient = drawn["do"].to(torch.float32)
    started = time.perf_counter()
    o = call(**leaves)[0]
    passed = time.perf_counter()
    o.backward(gradient)
    return passed - started, time.perf_counter() - passed


def render(rows: list[Row]) -> str:
    """Return the rows as text, with fla's time over ours where both forms are right."""
    first = rows[0]
    lines = [
        f"B=1 T={STEPS} H={HEADS} K=V={HEAD_DIM} fp32, {first['device']}, threads={first['threads']}, "
        f"torch {first['torch']}, repeats={first['repeats']}; ms: medians, and of the total 20th and 80th percentile",
        f"{'operator':16}{'form':20}{'chunk_size':>10}{'forward':>9}{'backward':>10}{'total':>9}{'p20–p80':>16}"
        f"{'o error':>10}{'grad error':>12}  speed",
    ]
    theirs = {row["operator"]: row["total_ms"] for row in rows if row["form"] == FLA}
    wrong = {r["operator"] for r in rows if max(r["output_error"], r["gradient_error"]) > WRONG}
    for r in rows:
        ratio = "disagree" if r["operator"] in wrong else f"{theirs[r['operator']] / r['total_ms']:.1f}×"
        spread = f"{r['total_ms_p20']:.1f}–{r['total_ms_p80']:.1f}"
        lines.append(
            f"{r['operator']:16}{r['form']:20}{r['chunk_size']:10}{r['forward_ms']:9.2f}{r['backward_ms']:10.2f}"
            f"{r['total_ms']:9.2f}{spread:>16}{r['output_error']:10.1e}{r['gradient_error']:12.1e}  {ratio}"
        )
    return "\n".join(lines)
