"""The first minutes on a GPU: one command of at most nine minutes, whose results are on disk as they come.

Five steps, each a process of its own, bounded in time, so that one that fails or hangs costs the others nothing:

    compile      every configuration that later steps launch, in parallel, and fla's kernels beside them
    sanitizer    one small case under compute-sanitizer
    correctness  every configuration that tuning may choose, against the float64 recurrence; causality; equal bits
    kernels      our operator beside fla's, and the time of each of our kernels
    training     training steps of a preset's models

Each step writes `STEP.json`: {step, sizes, birth, rows, failed, seconds}. birth: device, driver, versions and commit.
sizes: `paper`, or `rehearsal` for tiny shapes that say nothing about speed. A number that was not measured is null.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.code import CHECKOUT
from harness.files import write_atomic
from mixers.backends import disable_fla_dispatch, interpreted
from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.launch import AbsentGPU, Kernel, Launch, forcing, recording
from suites.bench import gpu_kernels, training
from suites.bench.kernel_cases import (
    AS_LAYER,
    BOTH,
    CHUNKED,
    DECODE,
    FORWARD,
    Case,
    draw_inputs,
    input_shapes,
    inputs_of,
    relative_errors,
    run_operator,
)
from suites.shared.timing import error_line

Row = dict[str, Any]

LIMIT = 540  # seconds in all
# Relative errors in norm, of output and state and of gradients. bf16: 1 and 2 of its steps, for about five and ten
# roundings. fp32: tf32x3 products emulated in tests/mixers/gdn2/cases.py cost 1.7e-7 and 2.5e-7, with sums in fp32.
# Tensor cores may cut the sums' last bits, which no emulation here shows: 20 and 40 times as much is allowed.
BOUNDS = {torch.bfloat16: (2**-7, 2**-6), torch.float32: (4e-6, 1e-5)}


@dataclass(frozen=True)
class Sizes:
    """Shapes of all steps. checked: correctness, of `checked.batch` sequences. cases: kernels; training: the rest."""

    name: str
    checked: Case
    cases: tuple[tuple[Case, str], ...]
    preset: str
    mixers: tuple[str, ...] | None
    length: int
    batch: int
    device: str


PAPER = Sizes(
    "paper",
    Case(300, 2, 2, 2),
    (
        *((Case(t, 32768 // t), direction) for t in (8192, 32768) for direction in (FORWARD, BOTH, AS_LAYER)),
        (Case(1, 64), DECODE),
    ),
    "360m",
    None,
    4096,
    4,
    "cuda",
)
SMALLEST = Case(20, 1, 1, 1, 16, 16)
REHEARSAL = Sizes(
    "rehearsal",
    SMALLEST,
    ((SMALLEST, AS_LAYER), (Case(1, 1, 1, 1, 16, 16), DECODE)),
    "cpu-600k",
    ("gdn2", "kda"),
    32,
    1,
    "cpu",
)


def brutal_inputs(case: Case, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Return the inputs of `draw_inputs` in a dtype, with decays that forget at once: steps of -50, and of -1e4."""
    drawn = draw_inputs(case, device, seed=0)
    drawn["g"][:, ::7] = -50
    drawn["g"][:, ::11, :, ::3] = -1e4
    return _in(dtype, drawn)


def _in(dtype: torch.dtype, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x if name in ("g", "state") else x.to(dtype) for name, x in drawn.items()}


def _meta_inputs(case: Case) -> dict[str, Tensor]:
    """Return what `draw_inputs` does, on the meta device."""
    sizes = {2: torch.bfloat16, 4: torch.float32}
    shapes = {name: (shape, sizes[size]) for name, (shape, size) in input_shapes(case).items()}
    shapes["do"] = shapes["v"]
    shapes["state"] = (case.batch, case.value_heads, case.key_dim, case.value_dim), torch.float32
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}


def evaluate(drawn: dict[str, Tensor], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output, final state and the gradients of q, k, v, g, b, w and the entering state."""
    names = [*inputs_of("gdn2", BOTH).values(), "state"]
    leaves = {name: drawn[name].detach().to(dtype or drawn[name].dtype).requires_grad_() for name in names}
    operands = {name: leaves[name] for name in names if name != "state"}
    o, state = gated_delta_rule_2(
        **operands, initial_state=leaves["state"], output_final_state=True, backend=backend, chunk_size=None
    )
    gradients = torch.autograd.grad([o, state], list(leaves.values()), [drawn["do"].to(o), drawn["state"].to(state)])
    return [o.detach(), state.detach(), *gradients]


def _launches(sizes: Sizes) -> list[Launch]:
    """Return the launches of the steps after this one, each distinct kernel once, with tensors on the meta device."""
    found: dict[str, Launch] = {}
    with recording() as recorded:
        for dtype in BOUNDS:
            evaluate(_in(dtype, _meta_inputs(sizes.checked)), "triton")
        for case, direction in sizes.cases:
            call = gpu_kernels.implementations(direction)[0].load()
            run_operator(call, "gdn2", _meta_inputs(case), direction)
    for launch in recorded:
        parts = {n: x.dtype if isinstance(x, Tensor) else x for n, x in launch.arguments.items()}
        found.setdefault(f"{launch.kernel.name} {parts}", launch)
    return sorted(found.values(), key=lambda launch: launch.kernel.name != "chunk_gradients")  # they take longest


def _kernels() -> dict[str, Kernel]:
    from mixers.gdn2 import chunk, fused_recurrent

    forward = (chunk.INTRA_CHUNK, chunk.SCAN_FORWARD)
    backward = (chunk.SCAN_BACKWARD, chunk.STATE_GRADIENTS, chunk.CHUNK_GRADIENTS)
    return {kernel.name: kernel for kernel in (*forward, *backward, fused_recurrent.RECURRENT_STEPS)}


def compile_one(kernel: str, arguments: dict[str, Any], choice: int, capability: int) -> float:
    """Compile one configuration into Triton's cache on disk and return the seconds it took. Needs no GPU."""
    from triton.runtime import driver

    driver.set_active(AbsentGPU(capability))
    started = time.perf_counter()
    compiled = _kernels()[kernel]
    compiled.compile(arguments, compiled.candidates(arguments, capability)[choice])
    return time.perf_counter() - started


def warm_fla(index: int, case: Case) -> float:
    """Run fla's operator once, forward and backward, so that its kernels are in the cache; return the seconds."""
    disable_fla_dispatch()
    started = time.perf_counter()
    form = CHUNKED[index]
    run_operator(form.load(), form.operator, draw_inputs(case, "cuda", seed=0), BOTH)
    return time.perf_counter() - started


def compile_step(sizes: Sizes) -> Iterator[Row]:
    """Compile in one process per core. Yields one row per configuration: kernel, configuration, seconds or error."""
    capability = 90
    if sizes.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        waiting = {}
        if sizes.device == "cuda":
            for index, form in enumerate(CHUNKED[1:], 1):
                waiting[pool.submit(warm_fla, index, Case(256, 1))] = {"kernel": str(form), "configuration": None}
        for launch in _launches(sizes):
            for choice, candidate in enumerate(launch.kernel.candidates(launch.arguments, capability)):
                task = pool.submit(compile_one, launch.kernel.name, launch.arguments, choice, capability)
                waiting[task] = {"kernel": launch.kernel.name, "configuration": str(candidate)}
        for done in as_completed(waiting):
            error = done.exception()
            failed = {"seconds": None, "failed": error_line(error)} if error else {"seconds": done.result()}
            yield {"failed": None} | waiting[done] | failed


def one_case(sizes: Sizes) -> None:
    """Run forward, backward and a decoding step once on a small case: the program that the sanitizer watches."""
    small = Case(80, 1, 1, 1, 64, 64) if sizes.device == "cuda" else SMALLEST
    evaluate(brutal_inputs(small, torch.bfloat16, sizes.device), "triton")
    drawn = draw_inputs(Case(1, *(getattr(small, n) for n in vars(small) if n != "steps")), sizes.device, seed=0)
    run_operator(gpu_kernels.implementations(DECODE)[0].load(), "gdn2", drawn, DECODE)
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def sanitizer_step(sizes: Sizes) -> Iterator[Row]:
    """Run `one_case` under compute-sanitizer's memcheck, then racecheck. Yields one row per tool."""
    for tool in ("memcheck", "racecheck"):
        row = {"tool": tool, "failed": None, "output": None}
        if shutil.which("compute-sanitizer") is None:
            yield row | {"left_out": "compute-sanitizer is not on the PATH"}
            continue
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        command += [*_command(sizes), "--step", "one-case"]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        text = (done.stdout + done.stderr)[-2000:]
        yield row | {"output": text, "failed": None if done.returncode == 0 else f"exit code {done.returncode}"}


def correctness_step(sizes: Sizes) -> Iterator[Row]:
    """Compare every configuration with the float64 recurrence, at brutal decays.

    One kernel at a time takes each of its configurations, the others their first. Yields one row per dtype and
    configuration, then rows on causality and on equal bits.
    """
    for dtype, bounds in BOUNDS.items():
        drawn = brutal_inputs(sizes.checked, dtype, sizes.device)
        exact = evaluate(drawn, "recurrent", torch.float64)
        with recording() as launches:
            evaluate({name: x.to("meta") for name, x in drawn.items()}, "triton")
        capability = 90 if sizes.device == "cpu" else 10 * torch.cuda.get_device_capability()[0]
        choices = {x.kernel.name: x.kernel.candidates(x.arguments, capability) for x in launches}
        first = {name: candidates[0] for name, candidates in choices.items()}
        for name, candidates in choices.items():
            for candidate in candidates:
                row = {"dtype": str(dtype), "kernel": name, "configuration": str(candidate), "failed": None}
                row |= {"output_error": None, "gradient_error": None, "bounds": bounds}
                try:
                    with forcing(first | {name: candidate}):
                        errors = relative_errors(evaluate(drawn, "triton"), exact)
                except torch.AcceleratorError:
                    raise  # nothing more can run in this process
                except Exception as error:  # a configuration that is not launched has its reason
                    yield row | {"failed": error_line(error)}
                    continue
                row |= {"output_error": max(errors[:2]), "gradient_error": max(errors[2:])}
                right = row["output_error"] <= bounds[0] and row["gradient_error"] <= bounds[1]  # False for nan
                yield row | {"failed": None if right else "an error exceeds its bound"}
        before, again = (evaluate(drawn, "triton") for _ in range(2))
        equal = all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
        yield {"dtype": str(dtype), "what": "the same bits twice", "failed": None if equal else "they differ"}
        half = sizes.checked.steps // 2
        changed = drawn | {n: drawn[n].clone() for n in inputs_of("gdn2", BOTH).values()}
        for name in inputs_of("gdn2", BOTH).values():
            changed[name][:, half:] = drawn[name][:, half:] * 0.5
        equal = torch.equal(evaluate(changed, "triton")[0][:, :half], before[0][:, :half])
        late = None if equal else "an output depends on a later token"
        yield {"dtype": str(dtype), "what": "causal in every input, bit for bit", "failed": late}


def kernel_times(call: Callable[[], Any], calls: int = 5) -> dict[str, float]:
    """Return the device's milliseconds of each of our kernels in one call, by the profiler; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
    events = {event.key: event.device_time_total / calls / 1e3 for event in profile.key_averages()}
    return {name: events[name] for name in _kernels() if events.get(name)}


def kernels_step(sizes: Sizes) -> Iterator[Row]:
    """Measure each case beside fla, as `bench kernels` does, and then each of our kernels by itself."""
    disable_fla_dispatch()
    flush = torch.empty(gpu_kernels.FLUSH_BYTES, dtype=torch.uint8, device=sizes.device)
    birth, ceilings = gpu_kernels.birth_certificate(flush.device), gpu_kernels.device_ceilings(flush)
    for case, direction in sizes.cases:
        yield from gpu_kernels.measure_case(case, direction, flush, ceilings, birth)
    for case, direction in sizes.cases:
        if direction in (AS_LAYER, DECODE):
            form = gpu_kernels.implementations(direction)[0]
            drawn = draw_inputs(case, sizes.device, seed=1)
            times = kernel_times(partial(run_operator, form.load(), form.operator, drawn, direction))
            yield {"direction": direction, "case": str(case), "kernel_ms": times or None}


def training_step(sizes: Sizes) -> Iterator[Row]:
    """Time training steps of each mixer of the preset. Yields the rows of `bench throughput`."""
    from harness.experiments.presets import preset

    names = sizes.mixers or tuple(preset(sizes.preset).mixers)
    share = STEPS["training"][1] / len(names)
    for name in names:
        yield from training.run(
            sizes.preset, [name], length=sizes.length, batch=sizes.batch, steps=1, device=sizes.device, seconds=share,
            progress=lambda line: None,
        )  # fmt: skip


STEPS: dict[str, tuple[Callable[[Sizes], Iterator[Row]], float]] = {
    "compile": (compile_step, 150),
    "sanitizer": (sanitizer_step, 60),
    "correctness": (correctness_step, 100),
    "kernels": (kernels_step, 150),
    "training": (training_step, 80),
}
"""Steps in order, each with its share of the seconds. What a step leaves is added to the next one's."""


def run_step(name: str, sizes: Sizes, out: Path) -> list[Row]:
    """Run one step in this process and keep `out/NAME.json` complete after every row. Returns its rows.

    An error ends the step and is in `failed`; the rows before it stay.
    """
    started, rows, failed = time.perf_counter(), [], None
    birth = gpu_kernels.birth_certificate(torch.device(sizes.device))

    def keep() -> None:
        found = {"step": name, "sizes": sizes.name, "birth": birth, "rows": rows, "failed": failed}
        found["seconds"] = time.perf_counter() - started
        write_atomic(out / f"{name}.json", json.dumps(found, indent=1, default=str).encode())

    try:
        for row in STEPS[name][0](sizes):
            rows.append(row)
            keep()
    except Exception as error:
        failed = error_line(error)
    keep()
    return rows


def _command(sizes: Sizes) -> list[str]:
    return [sys.executable, "run.py", "bench", "short", *(["--rehearse"] if sizes == REHEARSAL else [])]


def run(sizes: Sizes, out: Path, progress: Callable[[str], Any] = print) -> list[str]:
    """Run all steps as processes, one after the other, within LIMIT seconds. Returns the names of those that failed.

    Raises RuntimeError without the device that the sizes are for, or where the kernels would be interpreted on a GPU.
    """
    if sizes.device == "cuda" and (interpreted() or not torch.cuda.is_available()):
        raise RuntimeError(
            "bench short: torch sees no CUDA device, or TRITON_INTERPRET is set; --rehearse runs on a CPU"
        )
    deadline, allowed, failed = time.perf_counter() + LIMIT, 0.0, []
    for name, (_, seconds) in STEPS.items():
        started = time.perf_counter()
        allowed = min(allowed + seconds, deadline - started)
        why = None
        try:
            command = [*_command(sizes), "--step", name, "--out", str(out.absolute())]
            if (code := subprocess.run(command, cwd=CHECKOUT, timeout=max(1.0, allowed)).returncode) != 0:
                why = f"exit code {code}"
        except subprocess.TimeoutExpired:
            why = f"stopped after its {allowed:.0f} s"
        progress(summary(name, out, why))
        if why is not None or wrong(name, out):
            failed.append(name)
        allowed = max(0.0, allowed - (time.perf_counter() - started))
    return failed


def _found(name: str, out: Path) -> Row:
    path = out / f"{name}.json"
    if not path.exists():
        return {"rows": [], "failed": "it left no results", "seconds": None}
    return json.loads(path.read_text(encoding="utf-8"))


def wrong(name: str, out: Path) -> bool:
    """Whether a step failed, or a row of it: `failed` of ours, `refused` of comparisons does not count."""
    found = _found(name, out)
    return found["failed"] is not None or any(row.get("failed") for row in found["rows"])


def summary(name: str, out: Path, why: str | None) -> str:
    """Return one line on a step: rows, failures, seconds, and the reason why it was ended, if it was."""
    found = _found(name, out)
    failures = [row for row in found["rows"] if row.get("failed")]
    texts = [f"{name}: {len(found['rows'])} rows, {len(failures)} failed"]
    texts += [f"{found['seconds']:.0f} s"] if found["seconds"] is not None else []
    texts += [text for text in (why, found["failed"]) if text]
    return ", ".join(texts)
