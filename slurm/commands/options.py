"""Options that the commands on jobs share."""

from __future__ import annotations

from typing import Annotated

import typer

Where = Annotated[
    str,
    typer.Option(
        "--cluster", help="local: processes on this machine; debug: this process; PROFILE: Slurm.", metavar="PROFILE"
    ),
]
SetProfile = Annotated[
    list[str] | None, typer.Option("--set-profile", help="Override a field of PROFILE, as train.minutes=2880.")
]
Parallel = Annotated[int, typer.Option("--parallel", help="Runs at the same time, on this machine.")]
After = Annotated[
    str | None, typer.Option("--after", metavar="JOBID,…", help="Start nothing before these jobs of Slurm have ended.")
]
