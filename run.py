"""The command line. Every command parses, calls one function and prints."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

# Imported for the commands that they register.
import harness.commands  # noqa: F401
import slurm.commands  # noqa: F401
import suites.commands  # noqa: F401
from harness.command_line import AsJson, app, errors, print_result

# The command line is for reading: libraries that announce themselves on import are asked not to.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ORDER = (
    *("doctor", "list", "params", "check", "prefetch", "submit", "status", "logs", "cancel", "retry", "train"),
    *("collect", "table", "figure", "report", "eval", "generate", "export"),
)
"""Commands as `--help` lists them: what one needs first comes first."""


@app.command()
def doctor(
    cluster: Annotated[
        str | None, typer.Option(help="Check a profile against the cluster at hand.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has: versions, device, what computes each mixer and what would, data at hand, Slurm; exit
    code 1 if the cluster would refuse the profile."""
    import shutil

    import torch

    from harness.records.provenance import provenance
    from mixers.backends import choose, convolution, reasons
    from mixers.mamba3 import cute_missing
    from mixers.registry import entries
    from suites.shared import offline

    with errors():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        found = asdict(provenance("", device, dtype, backend=""))
        report = {key: value for key, value in found.items() if key.startswith(("version", "device", "git", "threads"))}
        report["mixers"] = {
            name: {
                "serving": choose(entry.cls.backends, "auto", device, dtype),
                "backends": reasons(entry.cls.backends, device, dtype),
            }
            for name, entry in sorted(entries().items())
        }
        report["short_convolutions"] = convolution() if device.type == "cuda" else "torch"
        missing = "" if device.type == "cpu" else cute_missing()
        report["mamba3_mimo_step"] = "CuTe" if missing is None else f"torch; {missing}".removesuffix("; ")
        report["language_data"] = "fetched" if offline.available() else "missing: run `python run.py data fetch`"
        report["slurm"] = shutil.which("sbatch") or "missing: sbatch is not on the PATH; use --cluster local"
        refused = []
        if cluster is not None:
            from slurm.probe import problems
            from slurm.profile import load_profile

            refused = problems(load_profile(cluster))
            report["cluster"] = refused or f"{cluster}: fits"
    rows = [f"{key:24} {value}" for key, value in report.items() if key not in ("mixers", "cluster")]
    for name, mixer in report["mixers"].items():
        rows.append(f"mixer {name:18} runs on {mixer['serving']}")
        rows += [f"{'':24}   not {backend}: {why}" for backend, why in mixer["backends"].items() if why is not None]
    if cluster is not None:
        rows += [f"{'cluster':24} {line}" for line in refused or [report["cluster"]]]
    print_result(report, as_json, "\n".join(rows))
    if refused:
        raise typer.Exit(1)


app.registered_commands.sort(key=lambda command: ORDER.index(command.name or command.callback.__name__))


def main() -> None:
    """Entry point of the console script `mixerbench`."""
    app()


if __name__ == "__main__":
    main()
