"""Our Triton operator beside flash-linear-attention's kernels on a CUDA device: time, memory and error.

Gated Delta Rule-2 is compared with fla's kernels of the same operator and with those of the two that it generalises,
KDA and Gated DeltaNet: forward, forward and backward, and decoding one token. A time is that of the device between two
CUDA events: tuning and compiling come before, L2 is overwritten between repetitions, the host has a lead so that the
launches are not counted (their time is `host_ms`), and the implementations take turns. Errors are relative in norm
against the float64 recurrence on the same inputs. An implementation that raises has the reason and no number.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.figures import kernels, write
from harness.files import write_atomic
from harness.records.provenance import provenance, version
from harness.training.device import matmul_rate
from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.kda import kimi_delta_rule

Row = dict[str, Any]

FORWARD, BOTH, DECODE = "forward", "forward+backward", "decode"
ERRORS = ("output", "gradient", "state")
CHUNK = 64  # tokens a chunk, of every implementation and of the FLOPs
CHECKED_STEPS = 256  # four chunks: the float64 recurrence keeps a state for each of its steps
WRONG = 3e-2  # a relative error in norm that rounding to bf16, 4e-3 at most a number, does not explain
WARM_UP, REPEATS = 3, 30
FLUSH_BYTES = 256 * 2**20  # several times the L2 of any device
LEAD_CYCLES = 8_000_000  # some 4 ms, in which the host issues every launch of the timed call


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
    """What is measured, in order. Other head shapes come last, since every kernel is compiled and tuned anew there."""
    units = [(case, direction) for case in LENGTHS for direction in (FORWARD, BOTH)]
    units += [(case, DECODE) for case in DECODING]
    return units + [(case, direction) for case in HEAD_SHAPES for direction in (FORWARD, BOTH)]


# Per operator: argument → which of the drawn inputs it gets, and our recurrence.
OPERATORS: dict[str, tuple[dict[str, str], Callable[..., Any]]] = {
    "gdn2": (
        {name: name for name in ("q", "k", "v", "g", "b", "w")},
        partial(gated_delta_rule_2, backend="recurrent"),
    ),
    "kda": (
        {"q": "q", "k": "k", "v": "v", "g": "value_g", "beta": "beta"},
        partial(kimi_delta_rule, backend="recurrent"),
    ),
    "gated_deltanet": (
        {"q": "q", "k": "k", "v": "v", "g": "head_g", "beta": "beta"},
        partial(gated_delta_rule, backend="recurrent"),
    ),
}


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator. form: as tables print it. module, function: where the callable is."""

    operator: str
    form: str
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """Returns a callable of the operator's arguments; raises whatever the import raises."""
        found = getattr(import_module(self.module), self.function)
        return partial(found, backend="triton", chunk_size=CHUNK) if self.form == OURS else found

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


def implementations(direction: str) -> tuple[Implementation, ...]:
    return RECURRENT if direction == DECODE else CHUNKED


def shapes(case: Case) -> dict[str, tuple[tuple[int, ...], int]]:
    """Every input's shape and bytes a number: log-decays in fp32, the rest in bf16."""
    tokens = (case.batch, case.steps)
    key, value = (*tokens, case.heads, case.key_dim), (*tokens, case.value_heads, case.value_dim)
    head = (*tokens, case.value_heads)
    decays = {"g": (key, 4), "value_g": ((*head, case.key_dim), 4), "head_g": (head, 4)}
    return decays | {"q": (key, 2), "k": (key, 2), "b": (key, 2), "v": (value, 2), "w": (value, 2), "beta": (head, 2)}


def byte_floor(operator: str, case: Case, direction: str) -> int:
    """Bytes that no implementation can avoid.

    forward: every input read once, o written once. forward+backward: the gradient of o read and those of the inputs
    written besides. decode: the fp32 state read and written; all else is hundreds of times smaller.
    """
    if direction == DECODE:
        return 2 * 4 * case.batch * case.value_heads * case.key_dim * case.value_dim
    sizes = shapes(case)
    inputs = sum(math.prod(sizes[name][0]) * sizes[name][1] for name in OPERATORS[operator][0].values())
    output = 2 * math.prod(sizes["v"][0])
    return inputs + output if direction == FORWARD else 2 * (inputs + output)


def chunk_flops(case: Case, direction: str) -> float:
    """FLOPs, two a multiply-add, of the chunk form with C = 64; the same for the three operators.

    Per chunk: T and Aqk 4C²K, the triangular inverse C³/3, Y 2C²K for each key head; U 2C²V, Aqk R 2C²V, and Y S, q S
    and kᵀR 2CKV each for each value head. Backward is two products for each of these; what an implementation computes
    again is not counted. decode: decay 1, erase read 2, rank-one write 2 and output read 2 a number of the state.
    """
    tokens, c, k, v = case.steps * case.batch, CHUNK, case.key_dim, case.value_dim
    if direction == DECODE:
        return 7.0 * tokens * case.value_heads * k * v
    forward = tokens * (case.heads * (6 * c * k + c * c / 3) + case.value_heads * (4 * c * v + 6 * k * v))
    return forward if direction == FORWARD else 3 * forward


def summary(
    implementation: Implementation, case: Case, direction: str, times: list[float], ceilings: dict[str, float]
) -> Row:
    """The part of a row that follows from the times, in ms; fractions are of the device's measured ceilings."""
    low, *_, high = statistics.quantiles(times, n=5, method="inclusive")
    middle = statistics.median(times)
    moved, done = byte_floor(implementation.operator, case, direction), chunk_flops(case, direction)
    return {
        "ms": middle,
        "ms_p20": low,
        "ms_p80": high,
        "repeats": len(times),
        "tokens_per_s": 1e3 * case.steps * case.batch / middle,
        "bytes": moved,
        "flops": done,
        "bytes_per_s": 1e3 * moved / middle,
        "flop_per_s": 1e3 * done / middle,
        "copy_fraction": 1e3 * moved / middle / ceilings["copy_bytes_per_s"],
        "matmul_fraction": 1e3 * done / middle / ceilings["matmul_flop_per_s"],
    }


def identity(implementation: Implementation, case: Case, direction: str) -> Row:
    """The part of a row that says what was measured, with None for what the measurement fills in."""
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


def inputs(case: Case, device: torch.device | str, seed: int) -> dict[str, Tensor]:
    """Random inputs by name, with `do` like o and `state` [B, HV, K, V] fp32.

    q and k have norm 1; the gates are sigmoids; the decays those of a new layer, rates of 1 to 16 a head times steps
    spread evenly over the logarithms of 0.001 to 0.1.
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
    for name, (shape, _) in shapes(case).items():
        if name.endswith("g"):
            drawn[name] = decay(shape)
        elif name in ("q", "k"):
            drawn[name] = F.normalize(normal(shape), dim=-1).bfloat16()
        else:
            drawn[name] = (normal(shape) if name == "v" else normal(shape).sigmoid()).bfloat16()
    drawn["do"] = normal(shapes(case)["v"][0]).bfloat16()
    drawn["state"] = normal((case.batch, case.value_heads, case.key_dim, case.value_dim))
    return drawn


def evaluate(
    call: Callable[..., Any], operator: str, drawn: dict[str, Tensor], direction: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The operator once, as the direction says: [o], [o, the gradients of the inputs], or [o, final state].

    forward is that of training: the inputs want gradients. dtype: what the inputs become before; as they are if None.
    """
    used = {argument: drawn[name] for argument, name in OPERATORS[operator][0].items()}
    if dtype is not None:
        used, drawn = {name: x.to(dtype) for name, x in used.items()}, {n: drawn[n].to(dtype) for n in ("do", "state")}
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
    """Our forms of KDA and Gated DeltaNet return the final state unasked and know no such option."""
    function = call.func if isinstance(call, partial) else call
    return {} if function in (kimi_delta_rule, gated_delta_rule) else {"output_final_state": True}


@lru_cache
def truth(operator: str, case: Case, direction: str, device: str) -> list[Tensor]:
    """The float64 recurrence on the rounded inputs of `case`."""
    return evaluate(OPERATORS[operator][1], operator, inputs(case, device, seed=0), direction, torch.float64)


def errors(implementation: Implementation, call: Callable[..., Any], case: Case, direction: str, device: str) -> Row:
    """Errors of output and worst gradient, or of output and final state, on one short sequence (decode: one step).

    Raises ArithmeticError for a result that is not finite.
    """
    checked = Case(min(case.steps, CHECKED_STEPS), 1, case.heads, case.value_heads, case.key_dim, case.value_dim)
    # The truth of both directions shares its forward pass, so it is computed once for both.
    exact = truth(implementation.operator, checked, DECODE if direction == DECODE else BOTH, device)
    results = evaluate(call, implementation.operator, inputs(checked, device, seed=0), direction)
    found = [((a.double() - t).norm() / t.norm()).item() for a, t in zip(results, exact, strict=False)]
    if not all(map(math.isfinite, found)):
        raise ArithmeticError(f"a result is not finite at {checked}")
    return {
        "output_error": found[0],
        "gradient_error": max(found[1:]) if direction == BOTH else None,
        "state_error": found[1] if direction == DECODE else None,
    }


def timed(run: Callable[[], Any], flush: Tensor) -> tuple[float, float]:
    """Device ms between events around one call, and host ms of issuing it."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(LEAD_CYCLES)
    flush.zero_()
    start.record()
    before = time.perf_counter()
    run()
    host = time.perf_counter() - before
    end.record()
    end.synchronize()
    return start.elapsed_time(end), 1e3 * host


def device_ceilings(flush: Tensor) -> dict[str, float]:
    """What the device reaches: bytes/s read and written by a copy of 1 GiB, FLOP/s of bf16 products."""
    source = torch.randint(0, 256, (2**30,), dtype=torch.uint8, device=flush.device)
    target = torch.empty_like(source)
    for _ in range(WARM_UP):
        target.copy_(source)
    milliseconds = statistics.median(timed(lambda: target.copy_(source), flush)[0] for _ in range(REPEATS))
    return {
        "copy_bytes_per_s": 1e3 * 2 * source.numel() / milliseconds,
        "matmul_flop_per_s": matmul_rate(flush.device, torch.bfloat16),
    }


def measure(case: Case, direction: str, flush: Tensor, ceilings: dict[str, float], birth: Row) -> list[Row]:
    """A row for each implementation."""
    drawn = inputs(case, flush.device, seed=1)
    rows: dict[Implementation, Row] = {}
    runs: dict[Implementation, Callable[[], Any]] = {}
    for form in implementations(direction):
        rows[form] = identity(form, case, direction) | ceilings | birth
        try:
            call = form.load()
            run = partial(evaluate, call, form.operator, drawn, direction)
            # First at full size: kernels keep the configuration that was fastest in their first call.
            for _ in range(WARM_UP):
                run()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            rows[form]["peak_memory_bytes"] = torch.cuda.max_memory_allocated() - before
            rows[form] |= errors(form, call, case, direction, str(flush.device))
            runs[form] = run
        except Exception as error:  # whatever a library says no with: its reason is the result
            rows[form] = identity(form, case, direction) | ceilings | birth | {"refused": reason(error)}
    times: dict[Implementation, list[tuple[float, float]]] = {form: [] for form in runs}
    try:
        for repeat in range(REPEATS):
            for form in list(runs)[:: -1 if repeat % 2 else 1]:
                times[form].append(timed(runs[form], flush))
    except torch.AcceleratorError as error:
        for form in runs:
            rows[form]["refused"] = f"no time, the device failed: {reason(error)}"
        times.clear()
    for form, pairs in times.items():
        rows[form] |= summary(form, case, direction, [device for device, _ in pairs], ceilings)
        rows[form]["host_ms"] = statistics.median(host for _, host in pairs)
    return list(rows.values())


def reason(error: BaseException) -> str:
    """An exception as one line of at most 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:299] + "…"


def wrong(row: Row) -> bool:
    """Whether an error is beyond what bf16 explains."""
    return any(row[f"{key}_error"] is not None and row[f"{key}_error"] > WRONG for key in ERRORS)


def run(out: Path, seconds: float = 480, progress: Callable[[str], Any] = print) -> list[Row]:
    """Measure what `plan` lists, and write `kernels.json` (ceilings and rows) and `kernels.png` into `out`.

    No case is started after `seconds`; those left out have a row that says so. kernels.json is complete after every
    case. progress gets a line a case and, last, the table. Raises RuntimeError without a CUDA device and ValueError
    for a time that allows nothing.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {seconds}")
    if not torch.cuda.is_available():
        raise RuntimeError("bench kernels: torch sees no CUDA device here; this comparison needs one")
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
                fresh = measure(case, direction, flush, ceilings, birth)
            except torch.AcceleratorError as error:  # after a wild access nothing more can run in this process
                stop = f"not started: the device failed: {reason(error)}"
        if stop:
            forms = implementations(direction)
            fresh = [identity(form, case, direction) | ceilings | birth | {"left_out": stop} for form in forms]
        rows += fresh
        cells = stop or ", ".join(f"{r['operator']} {r['implementation']} {_cell(r)}" for r in fresh)
        progress(f"{direction} {case}: {cells}; {time.perf_counter() - started:.0f} s")
        write_atomic(out / "kernels.json", json.dumps({"ceilings": ceilings, "rows": rows}, indent=1).encode())
    truth.cache_clear()
    if any(row["ms"] is not None for row in rows):
        write(kernels(rows), out / "kernels")
    progress(render(rows))
    return rows


def birth_certificate(device: torch.device) -> Row:
    """Versions, device, driver, commit and time, for every row."""
    known = asdict(provenance("", device, torch.bfloat16, "triton"))
    kept = ("git_commit", "git_dirty", "version_python", "version_torch", "version_triton", "device", "time")
    return {key: known[key] for key in kept} | {
        "version_fla": known["version_fla"] or version("fla-core"),  # the part of fla that holds its kernels
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


def _ceilings_text(ceilings: dict[str, float]) -> str:
    copy, matmul = ceilings["copy_bytes_per_s"] / 1e12, ceilings["matmul_flop_per_s"] / 1e12
    return f"copy {copy:.2f} TB/s, bf16 matmul {matmul:.0f} TFLOP/s"


def _cell(row: Row) -> str:
    if row["left_out"]:
        return "left out"
    if row["ms"] is None:
        return "refused"
    return f"{row['ms']:.3f} [{row['ms_p20']:.3f}–{row['ms_p80']:.3f}]" + (" wrong" if wrong(row) else "")


def render(rows: list[Row]) -> str:
    """The rows as a table, a line for each case and direction, then worst errors, refusals and what was left out.

    The ratio is fla's time for the same operator over ours, and is given only where both are right.
    """
    first = rows[0]
    fla = "–" if first["version_fla"] is None else first["version_fla"]
    lines = [
        f"{first['device']}, torch {first['version_torch']}, triton {first['version_triton']}, fla {fla}, "
        f"commit {(first['git_commit'] or 'unknown')[:10]}; {_ceilings_text(first)}",
        "bf16, log-decay fp32; ms: median [20th–80th percentile]; copy %, matmul %: of these ceilings, by gdn2 of "
        "mixerbench at the floor of bytes and FLOPs; ratio: fla's gdn2 over ours",
    ]
    for directions in ((FORWARD, BOTH), (DECODE,)):
        forms = implementations(directions[0])
        table = [["direction", "case", *map(str, forms), "copy %", "matmul %", "GiB", "ratio"]]
        units = dict.fromkeys((r["direction"], _case(r)) for r in rows if r["direction"] in directions)
        for direction, case in units:
            here = {
                (r["operator"], r["implementation"]): r for r in rows if (r["direction"], _case(r)) == (direction, case)
            }
            found = [here.get((form.operator, form.form)) for form in forms]
            cells = ["–" if r is None else _cell(r) for r in found]
            table.append([direction, str(case), *cells, *_own(found[0]), _ratio(found[0], found[1])])
        if len(table) > 1:
            lines += ["", *_aligned(table)]
    lines += ["", *_remarks(rows)]
    return "\n".join(lines)


def _case(row: Row) -> Case:
    return Case(row["T"], row["B"], row["H"], row["HV"], row["K"], row["V"])


def _own(ours: Row | None) -> list[str]:
    if ours is None or ours["ms"] is None:
        return ["–"] * 3
    fractions = [f"{100 * ours[key]:.0f}" for key in ("copy_fraction", "matmul_fraction")]
    return [*fractions, f"{ours['peak_memory_bytes'] / 2**30:.2f}"]


def _ratio(ours: Row | None, theirs: Row | None) -> str:
    if ours is None or theirs is None or ours["ms"] is None or theirs["ms"] is None:
        return "–"
    return "disagree" if wrong(ours) or wrong(theirs) else f"{theirs['ms'] / ours['ms']:.2f}×"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def _remarks(rows: list[Row]) -> list[str]:
    """Worst errors of each implementation, then refusals and omissions, each once."""
    remarks: list[str] = []
    for operator, form in dict.fromkeys((r["operator"], r["implementation"]) for r in rows):
        mine = [r for r in rows if (r["operator"], r["implementation"]) == (operator, form)]
        worst = {key: [r[f"{key}_error"] for r in mine if r[f"{key}_error"] is not None] for key in ERRORS}
        texts = [f"{key} {max(values):.1e}" for key, values in worst.items() if values]
        if texts:
            remarks.append(f"worst relative error, {operator} {form}: {', '.join(texts)} (bound {WRONG:.0e})")
        refusals: dict[str, list[str]] = {}
        for r in mine:
            if r["refused"]:
                refusals.setdefault(r["refused"], []).append(f"{r['direction']} {_case(r)}")
        remarks += [f"refused, {operator} {form}, {_listed(where)}: {why}" for why, where in refusals.items()]
    left: dict[str, dict[str, None]] = {}
    for r in rows:
        if r["left_out"]:
            left.setdefault(r["left_out"], {})[f"{r['direction']} {_case(r)}"] = None
    remarks += [f"{why}: {'; '.join(cases)}" for why, cases in left.items()]
    return remarks


def _listed(where: list[str]) -> str:
    return where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more"
