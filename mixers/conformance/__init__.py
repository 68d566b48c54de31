"""The conformance kit: everything that a mixer must pass, as one function.

    findings = conform(lambda: build_mixer("gdn2", 64, SMALL["gdn2"]))
    print(render(findings))

The reference is the mixer itself in float64 on its torch form: one sequence, fed whole, alone. The kit uses the
interface only and knows nothing of a mixer's internals. It first adds a little noise to every parameter, so that no
parameter keeps an initial value, such as 0 or 1, that hides its effect.
"""

from mixers.conformance.kit import HEADER, SMALL, Finding, conform, counts, render, row

__all__ = ["HEADER", "SMALL", "Finding", "conform", "counts", "render", "row"]
