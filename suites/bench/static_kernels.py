"""Every configuration of our kernels compiled for GPUs that may be absent: registers, spills, shared memory.

Compared: what a configuration needs with what a GPU generation has. On: the launches of the layer's operator for head
shapes SHAPES, forward, backward and one decoding step. How often: once; compilation is deterministic, so there is no
spread, and nothing is timed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from mixers.backends import interpreted
from mixers.gdn2.kernels.launch import SHARED_MEMORY, AbsentGPU, Launch, recording, resources

SHAPES: dict[str, dict[str, Any]] = {
    "paper": dict(K=128, V=128, dtype="bfloat16"),
    "small": dict(K=64, V=64, dtype="bfloat16"),
    "wide": dict(K=256, V=256, dtype="bfloat16"),
    "odd": dict(K=80, V=48, dtype="float16", HV=8),
    "fp32": dict(K=128, V=128, dtype="float32"),
}
"""Head shapes by name: the one that the paper's layers launch, then others that the kernels support."""
BATCH, STEPS, HEADS = 8, 4096, 4  # of the recorded launches; the compiled code does not depend on them


def launches(K: int, V: int, dtype: str, HV: int = HEADS) -> list[Launch]:
    """Return the launches of the layer's operator for these sizes: forward, backward and one decoding step."""
    from mixers.gdn2.operator import gated_delta_rule_2

    def empty(*shape: int, dtype: str = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=getattr(torch, dtype), device="meta", requires_grad=True)

    key, value = (BATCH, STEPS, HEADS, K), (BATCH, STEPS, HV, V)
    tensors = [empty(*key), empty(*key), empty(*value), empty(*key), empty(*key), empty(*value)]
    gates = dict(A_log=empty(HEADS, dtype="float32"), dt_bias=empty(HEADS * K, dtype="float32"), use_qk_l2norm=True)
    with recording() as recorded:
        o, _ = gated_delta_rule_2(*tensors, **gates, backend="triton")
        o.backward(torch.empty_like(o))
        with torch.no_grad():
            state = empty(BATCH, HV, K, V, dtype="float32")
            step = [x[:, :1] for x in tensors]
            gated_delta_rule_2(*step, **gates, initial_state=state, output_final_state=True, backend="triton")
    return recorded


def _compile(shape: str, index: int, choice: int, capability: int) -> dict[str, Any]:
    from triton.runtime import driver

    driver.set_active(AbsentGPU(capability))
    launch = launches(**SHAPES[shape])[index]
    candidate = launch.kernel.candidates(launch.arguments, capability)[choice]
    row = {
        "shape": shape,
        "kernel": launch.kernel.name,
        "capability": capability,
        "configuration": {k: v for k, v in candidate.kwargs.items() if k.isupper()}
        | {"num_warps": candidate.num_warps, "num_stages": candidate.num_stages},
        "bytes": launch.moved,
        "flops": launch.flops,
        "tokens_heads": BATCH * STEPS * HEADS,
    }
    try:
        used = resources(launch.kernel.compile(launch.arguments, candidate))
    except Exception as error:  # the compiler raises many error classes; the row names the configuration
        return row | {"fits": False, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}
    return row | vars(used) | {"fits": used.fit(SHARED_MEMORY[capability])}


def run(
    shapes: list[str] | None = None,
    capabilities: list[int] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Return one row per shape, kernel, configuration and GPU generation.

    `fits` is False if the configuration spills registers or needs more shared memory than the GPU has. shapes: names of
    SHAPES, by default `paper`. capabilities: 80, 90, 100, by default all. Raises ValueError naming an unknown shape or
    capability, and RuntimeError if the kernels are interpreted.
    """
    shapes, capabilities = shapes or ["paper"], capabilities or list(SHARED_MEMORY)
    for shape in shapes:
        if shape not in SHAPES:
            raise ValueError(f"--shapes: {shape!r} is none of {', '.join(SHAPES)}")
    for capability in capabilities:
        if capability not in SHARED_MEMORY:
            raise ValueError(f"--capabilities: {capability} is none of {', '.join(map(str, SHARED_MEMORY))}")
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET=1 is set, and interpreted kernels cannot be compiled; unset it")
    tasks = [
        (shape, index, choice, capability)
        for shape in shapes
        for index, launch in enumerate(launches(**SHAPES[shape]))
        for capability in capabilities
        for choice in range(len(launch.kernel.candidates(launch.arguments, capability)))
    ]
    rows = {}
    # Separate processes, because the absent GPU stays set in a process. The gradients compile longest and come first.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        order = sorted(tasks, key=lambda task: task[1] != 4)
        waiting = {pool.submit(_compile, *task): task for task in order}
        for done in as_completed(waiting):
            rows[waiting[done]] = done.result()
            progress(f"compiled {len(rows)} of {len(tasks)}")
    return [rows[task] for task in tasks]


def render(rows: list[dict[str, Any]]) -> str:
    """Return one line per row, with bytes and FLOPs per token and head."""
    lines = [
        f"{'shape':7}{'kernel':17}{'GPU':>7}  {'configuration':36}{'regs':>5}{'spill':>6}{'shared':>8}"
        f"{'B/token·head':>14}{'kFLOP':>8}  matrix instructions"
    ]
    for r in rows:
        configuration = " ".join(f"{k}={v}" for k, v in r["configuration"].items())
        used = " ".join(f"{k}×{v}" for k, v in r.get("matrix_instructions", {}).items()) or "none"
        what = f"{r['registers']:5}{r['spilled']:6}{r['shared']:8}" if "registers" in r else f"{'':19}"
        lines.append(
            f"{r['shape']:7}{r['kernel']:17}{'sm_' + str(r['capability']):>7}  {configuration:36}{what}"
            f"{r['bytes'] / r['tokens_heads']:14.0f}{r['flops'] / r['tokens_heads'] / 1e3:8.1f}  "
            + (used if r["fits"] else f"DOES NOT FIT {r.get('error', '')}")
        )
    return "\n".join(lines)
