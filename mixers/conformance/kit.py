"""The conformance kit: try a mixer on everything that the interface promises, and print the findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from mixers.backends import TORCH
from mixers.conformance.behaviour import BEHAVIOUR, backend_agrees, long_input
from mixers.conformance.costs import COSTS
from mixers.conformance.trial import Outcome, Trial, Unserved, Violation
from mixers.interface import Mixer

_DELTA = {"heads": 2, "head_dim": 32, "value_heads": 4, "value_dim": 16, "chunk_size": 16}
_SSM = {"d_inner": 128, "head_dim": 32, "d_state": 16}
SMALL: dict[str, dict[str, Any]] = {
    "gdn2": _DELTA,
    "gated_deltanet": _DELTA,
    "kda": _DELTA,
    "mamba2": _SSM | {"n_groups": 2, "chunk_size": 16},
    "mamba3_siso": _SSM | {"chunk_size": 16},
    "mamba3_mimo": _SSM | {"rank": 2},
    "attention": {"heads": 4, "kv_heads": 2},
}
"""Options of the built-in mixers at width 64: grouped heads, keys and values of different sizes, short chunks."""

CHECKS: dict[str, Callable[[Trial], Outcome]] = BEHAVIOUR | COSTS | {"long input": long_input}


@dataclass(frozen=True)
class Finding:
    """One check of one mixer.

    measured: the largest relative error, ratio or count. bound: its limit. Both are None if the check is a yes or no.
    detail: why the check failed or was skipped, else what it compared.
    """

    check: str
    status: Literal["pass", "fail", "skipped"]
    measured: float | None
    bound: float | None
    detail: str


def conform(
    build: Callable[[], Mixer],
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    seed: int = 0,
    long_tokens: int = 65536,
    progress: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Try the mixers that `build` returns, all of one configuration, on everything that the interface promises.

    backend: what computes bf16 activations; torch always computes float64. long_tokens: the length over which the state
    must not grow more than declared. progress: called with each finding as soon as it is made. An exception within a
    check counts as a `fail`.

    Raises ValueError before the first check if the backend does not serve on this device, if the mixer has no form in
    torch, or if long_tokens is below 2. Passes on whatever `build` raises.
    """
    if long_tokens < 2:
        raise ValueError(f"long_tokens: {long_tokens} tokens cannot be fed in pieces; give at least 2")
    device, findings = torch.device(device), []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        trial = Trial(build, device, backend, long_tokens, generator)
        names = [b.name for b in trial.backends if b.name != TORCH.name]
        checks = CHECKS | {f"backend {name}": partial(backend_agrees, name=name) for name in names}
        for name, check in checks.items():
            generator.manual_seed(seed)
            findings.append(_attempt(name, check, trial))
            if progress is not None:
                progress(findings[-1])
    return findings


def _attempt(name: str, check: Callable[[Trial], Outcome], trial: Trial) -> Finding:
    try:
        measured, bound, detail = check(trial)
    except Unserved as reason:
        return Finding(name, "skipped", None, None, str(reason))
    except Exception as error:
        kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
        return Finding(name, "fail", None, None, kind + (str(error).strip().splitlines() or ["no message"])[0])
    passed = measured is None or measured <= bound  # false for NaN
    return Finding(name, "pass" if passed else "fail", measured, bound, detail)


HEADER = f"{'check':24} {'status':8} {'measured':>9} {'bound':>9}  detail"


def row(finding: Finding) -> str:
    """Format a finding as one line under HEADER."""
    figures = " ".join(f"{'-' if f is None else f'{f:.3g}':>9}" for f in (finding.measured, finding.bound))
    return f"{finding.check:24} {finding.status:8} {figures}  {finding.detail}"


def counts(findings: list[Finding]) -> str:
    """Return the last line: how many checks passed, failed and were skipped."""
    number = {status: sum(f.status == status for f in findings) for status in ("pass", "fail", "skipped")}
    return f"{number['pass']} passed, {number['fail']} failed, {number['skipped']} skipped"


def render(findings: list[Finding]) -> str:
    """Return the whole table: header, one row per finding, counts."""
    return "\n".join([HEADER, *map(row, findings), counts(findings)])
