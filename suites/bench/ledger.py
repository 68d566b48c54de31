"""The time of each kernel on paper: the largest of what its bytes, its instructions and its longest chain need.

Counted, not measured: the machine code of a configuration for sm_90, compiled without a GPU, with each loop taken as
often as the shape says. Per program of one chunk and head (of the gradients also of one block of K; of the scans per
chunk, sequence, value head and block of V), for every pipe of a multiprocessor:

    issue    warp instructions, of which four are issued a cycle
    tensor   FLOPs of matrix instructions, at the rate of dense bf16 or TF32 products
    shared   wavefronts of shared memory and shuffles, one a cycle, without bank conflicts
    special  warp instructions of exponentials, logarithms and reciprocals, one in two cycles
    chain    cycles that one warp takes to issue its instructions, by the compiler's stall counts, without any wait for
             memory or results: a lower bound of a program's time, which its blocks on a multiprocessor share

Every branch forward counts as not taken, so code that a rare value needs is in the counts too.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton

from mixers.gdn2.kernels.launch import AbsentGPU, Launch, resources
from suites.bench.static_kernels import HEADS, SHAPES, launches

CHUNK_HEADS = 8192
"""Chunks × heads that times are for: 32,768 tokens of 16 heads in chunks of 64."""
SEQUENCES, VALUE_HEADS = 1, 16  # of the scans: one sequence, the least parallel case
# H100 SXM, from its datasheet and CUDA's programming guide; bytes a second as copies reach them there.
MULTIPROCESSORS, CLOCK, BYTES = 132, 1.7e9, 3.0e12
TENSOR_FLOPS = {16: 4096, 32: 2048}  # a cycle and multiprocessor, by bits of the operands
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 228 * 1024, 2048, 32  # a multiprocessor


@dataclass(frozen=True)
class Instruction:
    """A line of machine code: address in bytes, operation, operands, and cycles until the next may be issued."""

    address: int
    operation: str
    operands: str
    stall: int


def parse(listing: str) -> list[Instruction]:
    """Return the instructions of a `cuobjdump -sass` listing. The second word of each encodes its stall count."""
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);[^\n]*\n\s*/\* 0x([0-9a-f]{16}) \*/"
    return [
        Instruction(int(address, 16), operation, operands, int(word, 16) >> 41 & 15)
        for address, operation, operands, word in re.findall(pattern, listing)
    ]


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """Return first and last address of each loop, in order of the first: branches backwards before the program's
    end."""
    end = next((x.address for x in reversed(code) if x.operation.startswith("EXIT")), code[-1].address)
    found = []
    for x in code:
        target = re.search(r"0x([0-9a-f]+)", x.operands)
        if x.operation.startswith("BRA") and target and int(target[1], 16) < x.address <= end:
            found.append((int(target[1], 16), x.address))
    return sorted(found)


def wavefronts(x: Instruction) -> int:
    """Return the cycles of shared memory that a warp's instruction takes, 128 bytes each."""
    name, *parts = x.operation.split(".")
    if name == "SHFL":
        return 1
    if name in ("LDSM", "STSM"):
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    if name in ("LDS", "STS"):
        return 4 if "128" in parts else 2 if "64" in parts else 1
    return 0


def tensor_cycles(x: Instruction) -> float:
    """Return the cycles of the tensor cores that a warp's matrix instruction takes."""
    name, *parts = x.operation.split(".")
    if name == "HMMA":  # .16816 and .1688: m 16, n 8, and k 16 or 8
        flops = 2 * 16 * 8 * int(parts[0][3:])
    elif name == "HGMMA":  # .64xNxK, by four warps together
        flops = 2 * math.prod(map(int, parts[0].split("x"))) / 4
    else:
        return 0.0
    return flops / TENSOR_FLOPS[32 if "TF32" in parts else 16]


def trips(kernel: str, sizes: dict[str, Any]) -> list[float]:
    """Return how often each loop of a kernel runs, in the order of the code, for chunks of 64 and one head per group.

    sizes: constants and block sizes. A loop that the compiler unrolls is not in the code.
    """
    key = math.ceil(sizes["K"] / sizes.get("BK", 1))
    return {
        "intra_chunk": [key, key],
        "scan_forward": [1],
        "scan_backward": [1],
        "state_gradients": [1],
        "chunk_gradients": [],
    }[kernel]


def programs(kernel: str, sizes: dict[str, Any]) -> int:
    """Return how many programs share the work of a chunk and head."""
    axis, block = {
        "intra_chunk": ("K", "K"),
        "scan_forward": ("V", "BV"),
        "scan_backward": ("V", "BV"),
        "state_gradients": ("K", "KB"),
        "chunk_gradients": ("K", "BK"),
    }[kernel]
    return math.ceil(sizes[axis] / sizes[block])


def totals(code: list[Instruction], counts: list[float]) -> dict[str, float]:
    """Return the counts of one warp: issue, tensor, shared, special, chain, barriers.

    counts: trips of the loops, in order; loops inside loops multiply. Raises ValueError if the code has other loops.
    """
    found = loops(code)
    if len(found) != len(counts):
        ranges = ", ".join(f"{a:#x}–{b:#x}" for a, b in found)
        raise ValueError(f"the code has {len(found)} loops ({ranges}), and {len(counts)} trip counts were given")
    sums = dict.fromkeys(("issue", "tensor", "shared", "special", "chain", "barriers"), 0.0)
    for x in code:
        if x.operation.startswith(("NOP", "BRA")) and x.address > max((b for _, b in found), default=0):
            continue
        times = math.prod(n for (a, b), n in zip(found, counts, strict=True) if a <= x.address <= b)
        sums["issue"] += times
        sums["chain"] += times * max(1, x.stall)
        sums["shared"] += times * wavefronts(x)
        sums["tensor"] += times * tensor_cycles(x)
        sums["special"] += times * x.operation.startswith("MUFU")
        sums["barriers"] += times * x.operation.startswith("BAR")
    return sums


def blocks(registers: int, shared: int, warps: int) -> int:
    """Return the blocks that fit a multiprocessor at the same time."""
    by_registers = REGISTERS // (math.ceil(registers / 8) * 8 * 32 * warps)
    return min(by_registers, SHARED // (shared + 1024), THREADS // (32 * warps), BLOCKS)


def on_paper(row: dict[str, Any]) -> dict[str, float]:
    """Return milliseconds for CHUNK_HEADS by bytes, by each pipe and by the chain, from a row of counts.

    The scans run programs for SEQUENCES × VALUE_HEADS × blocks of V, each of which goes through its chunks in turn.
    """
    per_ms = 1e-3 * CLOCK
    warps = row["num_warps"] * row["programs_per_chunk_head"] * CHUNK_HEADS / MULTIPROCESSORS
    found = {
        "bytes": 1e3 * row["bytes_per_chunk_head"] * CHUNK_HEADS / BYTES,
        "issue": warps * row["issue"] / 4 / per_ms,
        "tensor": warps * row["tensor"] / per_ms,
        "shared": warps * row["shared"] / per_ms,
        "special": warps * row["special"] * 2 / per_ms,
    }
    if row["kernel"].startswith("scan"):
        chunks, independent = CHUNK_HEADS / (SEQUENCES * VALUE_HEADS), SEQUENCES * VALUE_HEADS
    else:
        chunks, independent = 1, CHUNK_HEADS
    waves = math.ceil(independent * row["programs_per_chunk_head"] / (MULTIPROCESSORS * row["blocks"]))
    return found | {"chain": waves * chunks * row["chain"] / per_ms}


def count(launch: Launch, choice: int, tokens_heads: int) -> dict[str, Any]:
    """Compile a configuration for sm_90 and return its row: counts of one warp, resources, bytes, milliseconds.

    The active driver must be `AbsentGPU(90)`. tokens_heads: tokens × heads of the launch. A row whose loops are not the
    expected ones has `failed` and no times.
    """
    candidate = launch.kernel.candidates(launch.arguments, 90)[choice]
    compiled = launch.kernel.compile(launch.arguments, candidate)
    used = resources(compiled)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", file.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sizes = {**{"HV": launch.arguments["H"], "V": launch.arguments["K"]}, **launch.arguments, **candidate.kwargs}
    row: dict[str, Any] = {
        "kernel": launch.kernel.name,
        "configuration": {k: v for k, v in candidate.kwargs.items() if k.isupper()},
        "num_warps": candidate.num_warps,
        "num_stages": candidate.num_stages,
        "registers": used.registers,
        "shared_bytes": used.shared,
        "blocks": blocks(used.registers, used.shared, candidate.num_warps),
        "programs_per_chunk_head": programs(launch.kernel.name, sizes),
        "bytes_per_chunk_head": launch.moved / tokens_heads * sizes["C"],
        "version_triton": triton.__version__,
    }
    try:
        row |= totals(parse(listing), trips(launch.kernel.name, sizes))
    except ValueError as error:
        return row | {"failed": str(error)}
    return row | {"failed": None, "ms": on_paper(row)}


def run(progress: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Return one row per configuration of the training kernels at the paper's head shape, on sm_90.

    The active driver of this process is an absent GPU from then on. Compiling takes about a minute of one core.
    """
    from suites.bench.static_kernels import BATCH, STEPS

    recorded = [x for x in launches(**SHAPES["paper"]) if "C" in x.arguments]
    triton.runtime.driver.set_active(AbsentGPU(90))
    rows = []
    for launch in recorded:
        for choice in range(len(launch.kernel.candidates(launch.arguments, 90))):
            rows.append(count(launch, choice, BATCH * STEPS * HEADS))
            progress(f"counted {rows[-1]['kernel']} {rows[-1]['configuration']}")
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """Return a table: counts per chunk and head, milliseconds by each limit, and the largest of them."""
    lines = [
        f"sm_90, {CHUNK_HEADS} chunks × heads; a chunk and head: KB moved, thousands of warp instructions, cycles; ms",
        f"{'kernel':17}{'configuration':22}{'blocks':>7}{'KB':>7}{'kinstr':>8}{'tensor':>8}{'shared':>8}{'special':>8}"
        f"{'barriers':>9}{'chain':>9}  ms on paper",
    ]
    for r in rows:
        named = " ".join(f"{k}={v}" for k, v in r["configuration"].items()) + f" {r['num_warps']}w {r['num_stages']}s"
        head = f"{r['kernel']:17}{named:22}{r['blocks']:7}{r['bytes_per_chunk_head'] / 1e3:7.0f}"
        if r["failed"]:
            lines.append(f"{head}  not counted: {r['failed']}")
            continue
        warps = r["num_warps"] * r["programs_per_chunk_head"]
        counts = f"{warps * r['issue'] / 1e3:8.0f}" + "".join(f"{warps * r[k]:8.0f}" for k in ("tensor", "shared"))
        limit = max(r["ms"], key=r["ms"].get)
        texts = " ".join(f"{k} {v:.2f}" for k, v in r["ms"].items())
        lines.append(
            f"{head}{counts}{warps * r['special']:8.0f}{r['barriers']:9.0f}{r['chain']:9.0f}  "
            f"{r['ms'][limit]:.2f} by {limit} ({texts})"
        )
    return "\n".join(lines)
