"""Our Triton operator against flash-linear-attention's kernels on a CUDA device: time, memory and error.

Compared: our Gated Delta Rule-2 with fla's kernels of the same operator and of the two that it generalises, KDA and
Gated DeltaNet; fla's dispatch to kernels of other packages is off. On: the cases of `suites.bench.kernel_cases`, in
bf16 with fp32 log-decays, forward, forward and backward, and decoding one token; and as the layer calls it, on raw
projections, with normalisation and activations. How often: REPEATS calls per implementation, in turns, after tuning,
compilation and WARM_UP calls. Spread: the 20th and 80th percentile next to the median.

A time is device time between two CUDA events. L2 is overwritten between repetitions, and the host starts with a lead,
so launches are not counted (they are in `host_ms`); a row whose host took longer than the lead says so. Errors are
relative in norm against the float64 recurrence on the same inputs. An implementation that raises has its reason instead
of numbers, and no ratio is given where a result is wrong.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.code import version
from harness.figures import kernels, write
from harness.files import write_atomic
from harness.records.provenance import provenance
from harness.training.device import matmul_rate
from mixers.backends import disable_fla_dispatch, fla_kernels
from suites.bench.kernel_cases import (
    AS_LAYER,
    BOTH,
    DECODE,
    FORWARD,
    Case,
    Implementation,
    byte_floor,
    case_errors,
    chunk_flops,
    draw_inputs,
    implementations,
    plan,
    reference_results,
    run_operator,
)
from suites.bench.rendering import aligned, commit_text
from suites.shared.timing import error_line, in_turns, median_p20_p80

Row = dict[str, Any]

ERRORS = ("output", "gradient", "state")
WRONG = 3e-2  # a relative error in norm that rounding to bf16, at most 4e-3 per number, does not explain
WARM_UP, REPEATS = 3, 30
FLUSH_BYTES = 256 * 2**20  # several times the L2 of any device
LEAD_CYCLES = 8_000_000  # about 4 ms, in which the host issues every launch of the timed call


def run(out: Path, seconds: float = 480, progress: Callable[[str], Any] = print) -> list[Row]:
    """Measure the cases of `plan`; write `kernels.json` (ceilings and rows) and `kernels.png` to `out`; return rows.

    After `seconds` no further case starts; the rows of those left out say so. kernels.json is complete after every
    case. progress: receives one line per case and, last, the table. Raises RuntimeError without a CUDA device, and
    ValueError if `seconds` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {seconds}")
    if not torch.cuda.is_available():
        raise RuntimeError("bench kernels: torch sees no CUDA device here; this comparison needs one")
    disable_fla_dispatch()
    started = time.perf_counter()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device()))
    birth = birth_certificate(flush.device)
    ceilings = device_ceilings(flush)
    progress(f"{birth['device']}: {_ceilings_text(ceilings)}")
    rows: list[Row] = []
    stop = ""
    for case, direction in plan():
        if not stop and time.perf_counter() - started >= seconds:
            stop = f"not started: {seconds:g} s were used up"
        if not stop:
            try:
                gc.collect()  # a refused backward pass leaves its graph in a cycle with the traceback
                torch.cuda.empty_cache()
                fresh = measure_case(case, direction, flush, ceilings, birth)
            except torch.AcceleratorError as error:  # after an illegal access nothing more can run in this process
                stop = f"not started: the device failed: {error_line(error)}"
        if stop:
            forms = implementations(direction)
            fresh = [case_fields(form, case, direction) | ceilings | birth | {"left_out": stop} for form in forms]
        rows += fresh
        cells = stop or ", ".join(f"{r['operator']} {r['implementation']} {_time_text(r)}" for r in fresh)
        progress(f"{direction} {case}: {cells}; {time.perf_counter() - started:.0f} s")
        write_atomic(out / "kernels.json", json.dumps({"ceilings": ceilings, "rows": rows}, indent=1).encode())
    reference_results.cache_clear()
    if any(row["ms"] is not None for row in rows):
        write(kernels(rows), out / "kernels")
    progress(render(rows))
    return rows


def measure_case(case: Case, direction: str, flush: Tensor, ceilings: dict[str, float], birth: Row) -> list[Row]:
    """Time a case in one direction and return one row per implementation.

    flush: the buffer whose writing empties L2. ceilings: see `device_ceilings`. birth: see `birth_certificate`.
    """
    drawn = draw_inputs(case, flush.device, seed=1)
    rows: dict[Implementation, Row] = {}
    runs: dict[Implementation, Callable[[], Any]] = {}
    for form in implementations(direction):
        rows[form] = case_fields(form, case, direction) | ceilings | birth
        try:
            call = form.load()
            run_once = partial(run_operator, call, form.operator, drawn, direction)
            # Full size comes first: kernels keep the configuration that was fastest in their first call.
            for _ in range(WARM_UP):
                run_once()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run_once()
            rows[form]["peak_memory_bytes"] = torch.cuda.max_memory_allocated() - before
            rows[form] |= case_errors(form, call, case, direction, str(flush.device))
            runs[form] = run_once
        except Exception as error:  # libraries refuse with many error classes; the reason is the result
            rows[form] = case_fields(form, case, direction) | ceilings | birth | {"refused": error_line(error)}
    times: dict[Implementation, list[tuple[float, float]]] = {form: [] for form in runs}
    try:
        for repeat in range(REPEATS):
            for form in in_turns(runs, repeat):
                times[form].append(time_on_device(runs[form], flush))
    except torch.AcceleratorError as error:
        for form in runs:
            rows[form]["refused"] = f"no time, the device failed: {error_line(error)}"
        times.clear()
    for form, pairs in times.items():
        rows[form] |= time_fields(form, case, direction, [device for device, _ in pairs], ceilings)
        rows[form]["host_ms"] = statistics.median(host for _, host in pairs)
    return list(rows.values())


def time_on_device(call: Callable[[], Any], flush: Tensor) -> tuple[float, float]:
    """Return the device's milliseconds between events around one call, and the host's for issuing it."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(LEAD_CYCLES)
    flush.zero_()
    start.record()
    before = time.perf_counter()
    call()
    host = time.perf_counter() - before
    end.record()
    end.synchronize()
    return start.elapsed_time(end), 1e3 * host


def device_ceilings(flush: Tensor) -> dict[str, float]:
    """Return the rates that the device reaches: bytes/s of a 1 GiB copy, read and written, and FLOP/s of bf16 products.

    lead_ms: the device's time for what runs before a timed call, in which the host issues it. flush: the buffer whose
    writing empties L2.
    """
    source = torch.randint(0, 256, (2**30,), dtype=torch.uint8, device=flush.device)
    target = torch.empty_like(source)
    for _ in range(WARM_UP):
        target.copy_(source)
    milliseconds = statistics.median(time_on_device(lambda: target.copy_(source), flush)[0] for _ in range(REPEATS))
    return {
        "copy_bytes_per_s": 1e3 * 2 * source.numel() / milliseconds,
        "matmul_flop_per_s": matmul_rate(flush.device, torch.bfloat16),
        "lead_ms": statistics.median(_lead(flush) for _ in range(WARM_UP)),
    }


def _lead(flush: Tensor) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    torch.cuda._sleep(LEAD_CYCLES)
    flush.zero_()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def birth_certificate(device: torch.device) -> Row:
    """Return versions, device, driver, commit and time, which every row carries."""
    known = asdict(provenance("", device, torch.bfloat16, "triton"))
    names = ("git_commit", "git_dirty", "version_python", "version_torch", "version_triton", "device", "time")
    return {name: known[name] for name in names} | {
        "version_fla": known["version_fla"] or version("fla-core"),  # the part of fla that contains its kernels
        "fla_kernels": fla_kernels(),
        "version_cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def case_fields(implementation: Implementation, case: Case, direction: str) -> Row:
    """Return the fields of a row that say what is measured, with None for those that the measurement fills in."""
    return {
        "operator": implementation.operator,
        "implementation": implementation.form,
        "direction": direction,
        "T": case.steps,
        "B": case.batch,
        "H": case.heads,
        "HV": case.value_heads,
        "K": case.key_dim,
        "V": case.value_dim,
        "dtype": "bfloat16",
        "refused": None,
        "left_out": None,
        "ms": None,
        "output_error": None,
        "gradient_error": None,
        "state_error": None,
    }


def time_fields(
    implementation: Implementation, case: Case, direction: str, times: list[float], ceilings: dict[str, float]
) -> Row:
    """Return the fields of a row that follow from its times in ms; fractions are of the device's measured ceilings."""
    median, low, high = median_p20_p80(times)
    floor, flops = byte_floor(implementation.operator, case, direction), chunk_flops(case, direction)
    return {
        "ms": median,
        "ms_p20": low,
        "ms_p80": high,
        "repeats": len(times),
        "tokens_per_s": 1e3 * case.steps * case.batch / median,
        "bytes": floor,
        "flops": flops,
        "bytes_per_s": 1e3 * floor / median,
        "flop_per_s": 1e3 * flops / median,
        "copy_fraction": 1e3 * floor / median / ceilings["copy_bytes_per_s"],
        "matmul_fraction": 1e3 * flops / median / ceilings["matmul_flop_per_s"],
    }


def is_wrong(row: Row) -> bool:
    """Whether an error of the row exceeds what rounding to bf16 explains."""
    return any(row[f"{key}_error"] is not None and row[f"{key}_error"] > WRONG for key in ERRORS)


def render(rows: list[Row]) -> str:
    """Return a table with one line per case and direction; worst errors, refusals and omissions follow it.

    The ratio is fla's time for Gated Delta Rule-2 over ours; it is given only where both are right.
    """
    first = rows[0]
    fla = "–" if first["version_fla"] is None else first["version_fla"]
    lines = [
        f"{first['device']}, torch {first['version_torch']}, triton {first['version_triton']}, fla {fla}, "
        f"{commit_text(first)}; {_ceilings_text(first)}",
        f"bf16, log-decay fp32; ms: median [20th–80th percentile] of {REPEATS}; copy %, matmul %: of these ceilings, "
        "by gdn2 of mixerbench at the floor of bytes and FLOPs; ratio: fla's gdn2 over ours",
    ]
    for directions in ((FORWARD, BOTH), (AS_LAYER,), (DECODE,)):
        forms = implementations(directions[0])
        table = [["direction", "case", *map(str, forms), "copy %", "matmul %", "GiB", "ratio"]]
        units = dict.fromkeys((r["direction"], _case(r)) for r in rows if r["direction"] in directions)
        for direction, case in units:
            by_form = {
                (r["operator"], r["implementation"]): r for r in rows if (r["direction"], _case(r)) == (direction, case)
            }
            cells = [by_form.get((form.operator, form.form)) for form in forms]
            texts = ["–" if r is None else _time_text(r) for r in cells]
            table.append([direction, str(case), *texts, *_our_fractions(cells[0]), _ratio(cells[0], cells[1])])
        if len(table) > 1:
            lines += ["", *aligned(table)]
    lines += ["", *_remarks(rows)]
    return "\n".join(lines)


def _ceilings_text(ceilings: dict[str, float]) -> str:
    copy, matmul = ceilings["copy_bytes_per_s"] / 1e12, ceilings["matmul_flop_per_s"] / 1e12
    return f"copy {copy:.2f} TB/s, bf16 matmul {matmul:.0f} TFLOP/s"


def _time_text(row: Row) -> str:
    if row["left_out"]:
        return "left out"
    if row["ms"] is None:
        return "refused"
    return f"{row['ms']:.3f} [{row['ms_p20']:.3f}–{row['ms_p80']:.3f}]" + (" wrong" if is_wrong(row) else "")


def _case(row: Row) -> Case:
    return Case(row["T"], row["B"], row["H"], row["HV"], row["K"], row["V"])


def _our_fractions(ours: Row | None) -> list[str]:
    if ours is None or ours["ms"] is None:
        return ["–"] * 3
    fractions = [f"{100 * ours[key]:.0f}" for key in ("copy_fraction", "matmul_fraction")]
    return [*fractions, f"{ours['peak_memory_bytes'] / 2**30:.2f}"]


def _ratio(ours: Row | None, theirs: Row | None) -> str:
    if ours is None or theirs is None or ours["ms"] is None or theirs["ms"] is None:
        return "–"
    return "disagree" if is_wrong(ours) or is_wrong(theirs) else f"{theirs['ms'] / ours['ms']:.2f}×"


def _remarks(rows: list[Row]) -> list[str]:
    """Return the worst errors of each implementation, then refusals and omissions, each once."""
    remarks: list[str] = []
    for operator, form in dict.fromkeys((r["operator"], r["implementation"]) for r in rows):
        of_form = [r for r in rows if (r["operator"], r["implementation"]) == (operator, form)]
        worst = {key: [r[f"{key}_error"] for r in of_form if r[f"{key}_error"] is not None] for key in ERRORS}
        texts = [f"{key} {max(values):.1e}" for key, values in worst.items() if values]
        if texts:
            remarks.append(f"worst relative error, {operator} {form}: {', '.join(texts)} (bound {WRONG:.0e})")
        refusals: dict[str, list[str]] = {}
        for r in of_form:
            if r["refused"]:
                refusals.setdefault(r["refused"], []).append(f"{r['direction']} {_case(r)}")
        remarks += [f"refused, {operator} {form}, {_and_more(cases)}: {why}" for why, cases in refusals.items()]
    late = [f"{r['operator']} {r['implementation']} {r['direction']} {_case(r)}" for r in rows if _host_is_late(r)]
    if late:
        remarks.append(f"the host took longer than its lead, so launches may be in the time: {'; '.join(late)}")
    omissions: dict[str, dict[str, None]] = {}
    for r in rows:
        if r["left_out"]:
            omissions.setdefault(r["left_out"], {})[f"{r['direction']} {_case(r)}"] = None
    remarks += [f"{why}: {'; '.join(cases)}" for why, cases in omissions.items()]
    return remarks


def _host_is_late(row: Row) -> bool:
    return row["ms"] is not None and row["host_ms"] > row["lead_ms"]


def _and_more(cases: list[str]) -> str:
    return cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
