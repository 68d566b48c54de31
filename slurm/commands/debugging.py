"""Command that does one unit of a run where one can watch it: debug."""

from __future__ import annotations

import shlex
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from harness.command_line import RUNS, RunsRoot, app, errors, this_command
from harness.files import CHECKOUT
from slurm.commands.options import SetProfile


@app.command()
def debug(
    run: Annotated[str, typer.Argument(help="A run of a submission, by its id.")],
    unit: Annotated[str | None, typer.Option(help="train, or what `status` calls an evaluation.")] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", help="debug: this process; PROFILE: a job of Slurm.", metavar="PROFILE")
    ] = "debug",
    set_profile: SetProfile = None,
    runs: RunsRoot = RUNS,
) -> None:
    """Do one unit of a run, and show its output and where it fails.

    The first missing unit, or --unit, with the code of this checkout: in this process, or in a job with the resources
    of one evaluation. What it finishes counts.
    """
    from slurm.local import unit_here
    from slurm.plan import next_unit, submitted_run

    with errors():
        chosen = submitted_run(runs.resolve(), run)
        todo = next_unit(chosen, unit)
        if cluster != "debug":
            command = _job(cluster, set_profile or [], run, todo, runs.resolve())
        elif set_profile:
            raise ValueError("--set-profile: debug has no profile; give --cluster PROFILE")
    if cluster != "debug":
        from slurm.queue import without_options

        typer.echo(shlex.join(command))
        with without_options():
            raise typer.Exit(subprocess.call(command))
    typer.echo(f"{chosen.folder}: {todo}")
    try:
        unit_here(chosen, todo, this_command())
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        typer.echo(f"not finished: {todo}; the same command continues", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"finished: {todo}")


def _job(cluster: str, set_profile: list[str], run: str, unit: str, runs: Path) -> list[str]:
    """The command line that does a unit of a run in a job of its own. Raises ValueError if it would be refused."""
    from slurm.probe import problems
    from slurm.profile import load_profile, srun_command
    from slurm.queue import OF_OURS
    from slurm.snapshot import environment

    if cluster == "local":
        raise ValueError("--cluster: local is this machine; give debug or PROFILE")
    profile = load_profile(cluster, set_profile)
    if refused := problems(profile):
        raise ValueError("; ".join(refused))
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment(CHECKOUT).items()]
    words = ["-m", "run", "debug", run, "--unit", unit, "--runs", str(runs)]
    command = srun_command(profile, f"debug:{run}{OF_OURS}", shlex.join(words), variables)
    return [command[0], "--pty", *command[1:]] if sys.stdin.isatty() else command
